// RUN: alpa-mlir-opt %s --alpa-normalize --alpa-unstack | FileCheck %s

// The slices that a loop over layers reads are arguments of their own; so are the optimizer's, which only the update reads.
// CHECK: func.func public @main(
// CHECK-SAME: %arg0: tensor<1x4xf32> {alpa.part = array<i64: 0, 2, 0>, alpa.role = "state", alpa.updates = 0 : i64}
// CHECK-SAME: %arg1: tensor<1x4xf32> {alpa.part = array<i64: 1, 2, 0>, alpa.role = "state", alpa.updates = 1 : i64}
// CHECK-SAME: %arg2: tensor<1x4xf32> {alpa.part = array<i64: 0, 2, 0>, alpa.role = "state", alpa.updates = 2 : i64}
// CHECK-SAME: %arg3: tensor<1x4xf32> {alpa.part = array<i64: 1, 2, 0>, alpa.role = "state", alpa.updates = 3 : i64}
// CHECK-SAME: %arg4: tensor<1x4xf32> {alpa.role = "batch"}
// CHECK-SAME: -> (tensor<1x4xf32> {alpa.part = array<i64: 0, 2, 0>}, tensor<1x4xf32> {alpa.part = array<i64: 1, 2, 0>}
// CHECK: stablehlo.multiply %arg4, %arg0
// CHECK: stablehlo.multiply {{.*}}, %arg1
// CHECK-NOT: stablehlo.concatenate
// The norm of a whole gradient is the sum over its parts.
// CHECK-COUNT-2: stablehlo.reduce
// CHECK: stablehlo.add {{.*}} : tensor<f32>
// CHECK-NOT: tensor<2x4xf32>
func.func @main(%w: tensor<2x4xf32> {alpa.role = "state", alpa.updates = 0 : i64},
                %m: tensor<2x4xf32> {alpa.role = "state", alpa.updates = 1 : i64},
                %x: tensor<1x4xf32> {alpa.role = "batch"}) -> (tensor<2x4xf32>, tensor<2x4xf32>, tensor<f32>) {
  %zero = stablehlo.constant dense<0.0> : tensor<f32>
  %half = stablehlo.constant dense<0.5> : tensor<2x4xf32>
  %first = stablehlo.constant dense<0> : tensor<i64>
  %one = stablehlo.constant dense<1> : tensor<i64>
  %two = stablehlo.constant dense<2> : tensor<i64>
  %loop:2 = stablehlo.while(%i = %first, %h = %x) : tensor<i64>, tensor<1x4xf32>
   cond {
    %less = stablehlo.compare LT, %i, %two : (tensor<i64>, tensor<i64>) -> tensor<i1>
    stablehlo.return %less : tensor<i1>
  } do {
    %row = stablehlo.dynamic_slice %w, %i, %first, sizes = [1, 4] : (tensor<2x4xf32>, tensor<i64>, tensor<i64>) -> tensor<1x4xf32>
    %next = stablehlo.multiply %h, %row : tensor<1x4xf32>
    %j = stablehlo.add %i, %one : tensor<i64>
    stablehlo.return %j, %next : tensor<i64>, tensor<1x4xf32>
  }
  %g = stablehlo.concatenate %loop#1, %x, dim = 0 : (tensor<1x4xf32>, tensor<1x4xf32>) -> tensor<2x4xf32>
  %square = stablehlo.multiply %g, %g : tensor<2x4xf32>
  %norm = stablehlo.reduce(%square init: %zero) applies stablehlo.add across dimensions = [0, 1] : (tensor<2x4xf32>, tensor<f32>) -> tensor<f32>
  %scale = stablehlo.broadcast_in_dim %norm, dims = [] : (tensor<f32>) -> tensor<2x4xf32>
  %clipped = stablehlo.divide %g, %scale : tensor<2x4xf32>
  %old = stablehlo.multiply %m, %half : tensor<2x4xf32>
  %momentum = stablehlo.add %old, %clipped : tensor<2x4xf32>
  %new = stablehlo.subtract %w, %momentum : tensor<2x4xf32>
  return %new, %momentum, %norm : tensor<2x4xf32>, tensor<2x4xf32>, tensor<f32>
}
