// RUN: alpa-mlir-opt %s --alpa-export-to-shardy | FileCheck %s
sdy.mesh @m = <["x"=2]>

// XLA's partitioner knows constraints, not reshards, and complete values only.
// CHECK-LABEL: func.func private @reshard_is_a_constraint
// CHECK-NOT: unreduced
// CHECK: sdy.sharding_constraint %arg0 <@m, [{}, {}]>
// CHECK-NOT: sdy.reshard
func.func private @reshard_is_a_constraint(%a: tensor<4x8xf32> {sdy.sharding = #sdy.sharding<@m, [{}, {}], unreduced={"x"}>})
    -> (tensor<4x8xf32> {sdy.sharding = #sdy.sharding<@m, [{}, {}]>}) {
  %0 = sdy.reshard %a <@m, [{}, {}]> : tensor<4x8xf32>
  return %0 : tensor<4x8xf32>
}
