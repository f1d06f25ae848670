// RUN: not alpa-mlir-opt %s --alpa-microbatch="count=1" 2>&1 | filecheck %s --check-prefix=BODY
// RUN: alpa-mlir-plan %S/../../examples/dense.mlir --cluster cpu --mesh 4 --microbatches 1 -o %t.mlir > /dev/null
// RUN: not alpa-mlir-opt %t.mlir --alpa-shard="mesh=4" 2>&1 | filecheck %s --check-prefix=SHARD
// RUN: alpa-mlir-plan %S/../../examples/dense.mlir --cluster cpu --mesh 4 --microbatches 1 --emit-after alpa-localize -o %t.mlir > /dev/null
// RUN: not alpa-mlir-opt %t.mlir --alpa-price 2>&1 | filecheck %s --check-prefix=PRICE

// Passes at the wrong place of the road say so.
// BODY: levels.mlir:[[# @LINE + 3]]:1: error: @main has no body: run alpa-normalize first
// SHARD: .mlir:1:1: error: alpa-shard needs a whole program: this one is split already
// PRICE: .mlir:1:1: error: alpa-price needs whole tensors: run it before alpa-localize
func.func private @main(%a: tensor<8x4xf32>) -> tensor<8x4xf32>
