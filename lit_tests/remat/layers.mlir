// The forward op of layer 1 runs again in the backward pass, from the layer's input behind a barrier; layer 0 is kept.
// RUN: alpa-mlir-opt %s --alpa-remat=layers=1 | FileCheck %s
// RUN: alpa-mlir-opt %s --alpa-remat=layers=none | FileCheck %s --check-prefix=NONE
// RUN: not alpa-mlir-opt %s --alpa-remat=layers=0-2 2>&1 | FileCheck %s --check-prefix=MISSING

// CHECK: alpa.remat = array<i64: 1>
// CHECK: %[[A:.*]] = stablehlo.tanh %arg0 {alpa.layer = 0 : i64, alpa.phase = "forward"}
// CHECK: %[[B:.*]] = stablehlo.exponential %[[A]] {alpa.layer = 1 : i64, alpa.phase = "forward"}
// CHECK: %[[IN:.*]] = stablehlo.optimization_barrier {alpa.layer = 1 : i64, alpa.phase = "backward"} %[[A]]
// CHECK: %[[AGAIN:.*]] = stablehlo.exponential %[[IN]] {alpa.layer = 1 : i64, alpa.phase = "backward"}
// CHECK: %[[G:.*]] = stablehlo.multiply %[[AGAIN]], %[[AGAIN]] {alpa.layer = 1 : i64, alpa.phase = "backward"}
// CHECK: stablehlo.multiply %[[A]], %[[G]] {alpa.layer = 0 : i64, alpa.phase = "backward"}

// NONE: alpa.remat = array<i64>
// NONE-NOT: optimization_barrier

// MISSING: error: there is no layer 2 to rematerialise: the layers are 0 to 1

module attributes {alpa.level = "layered", alpa.microbatches = 1 : i64} {
  func.func private @microbatch(%x: tensor<4xf32> {alpa.binding = "batch:0"}) -> (tensor<4xf32> {alpa.binding = "stack:0"}, tensor<4xf32> {alpa.binding = "sum:1"}) {
    %a = stablehlo.tanh %x {alpa.layer = 0 : i64, alpa.phase = "forward"} : tensor<4xf32>
    %b = stablehlo.exponential %a {alpa.layer = 1 : i64, alpa.phase = "forward"} : tensor<4xf32>
    %g = stablehlo.multiply %b, %b {alpa.layer = 1 : i64, alpa.phase = "backward"} : tensor<4xf32>
    %h = stablehlo.multiply %a, %g {alpa.layer = 0 : i64, alpa.phase = "backward"} : tensor<4xf32>
    return %b, %h : tensor<4xf32>, tensor<4xf32>
  }
  func.func private @update(%y: tensor<4xf32> {alpa.binding = "stack:0"}, %g: tensor<4xf32> {alpa.binding = "sum:1"}) -> (tensor<4xf32> {alpa.binding = "out:0"}, tensor<4xf32> {alpa.binding = "out:1"}) {
    return %y, %g : tensor<4xf32>, tensor<4xf32>
  }
  func.func public @main(%x: tensor<4xf32> {alpa.role = "batch"}) -> (tensor<4xf32>, tensor<4xf32>) {
    return %x, %x : tensor<4xf32>, tensor<4xf32>
  }
}
