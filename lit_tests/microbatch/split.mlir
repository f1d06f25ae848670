// RUN: alpa-mlir-opt %s --alpa-microbatch="count=2" --split-input-file | FileCheck %s

// A matrix product over the batch is a partial sum; scaling it is left to the update.

// CHECK-LABEL: func.func private @microbatch
// CHECK-SAME: %[[X:.*]]: tensor<2x3xf32> {alpa.binding = "batch:1", alpa.dim = 0 : i64}
// CHECK-SAME: -> (tensor<3x3xf32> {alpa.binding = "sum:0"})
// CHECK: %[[G:.*]] = stablehlo.dot_general %[[X]], %[[X]]
// CHECK-NEXT: return %[[G]]
// CHECK-LABEL: func.func private @update
// CHECK-SAME: %[[W:.*]]: tensor<3x3xf32> {alpa.binding = "arg:0"}, %[[S:.*]]: tensor<3x3xf32> {alpa.binding = "sum:0"}
// CHECK-SAME: -> (tensor<3x3xf32> {alpa.binding = "out:0"})
// CHECK: stablehlo.multiply %[[S]]
// CHECK: stablehlo.subtract %[[W]]
// CHECK-LABEL: func.func public @main
// CHECK: stablehlo.while
// CHECK: func.call @microbatch
// CHECK: call @update
module @adds_gradients_before_scaling {
  func.func public @main(%w: tensor<3x3xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %x: tensor<4x3xf32> {alpa.role = "batch"}) -> tensor<3x3xf32> {
    %rate = stablehlo.constant dense<0.1> : tensor<3x3xf32>
    %g = stablehlo.dot_general %x, %x, contracting_dims = [0] x [0] : (tensor<4x3xf32>, tensor<4x3xf32>) -> tensor<3x3xf32>
    %s = stablehlo.multiply %g, %rate : tensor<3x3xf32>
    %n = stablehlo.subtract %w, %s : tensor<3x3xf32>
    return %n : tensor<3x3xf32>
  }
}

// -----

// CHECK-LABEL: module @starts_iota_at_the_microbatch
// CHECK: func.func private @microbatch(%[[X:.*]]: tensor<2xi32> {{.*}}, %[[I:.*]]: tensor<i32> {alpa.binding = "index"}) -> (tensor<2xi32> {alpa.binding = "stack:0", alpa.dim = 0 : i64})
// CHECK: %[[TWO:.*]] = stablehlo.constant dense<2>
// CHECK: %[[START:.*]] = stablehlo.multiply %[[I]], %[[TWO]]
// CHECK: %[[IOTA:.*]] = stablehlo.iota dim = 0 : tensor<2xi32>
// CHECK: %[[B:.*]] = stablehlo.broadcast_in_dim %[[START]]
// CHECK: stablehlo.add %[[IOTA]], %[[B]]
module @starts_iota_at_the_microbatch {
  func.func public @main(%x: tensor<4xi32> {alpa.role = "batch"}) -> tensor<4xi32> {
    %i = stablehlo.iota dim = 0 : tensor<4xi32>
    %r = stablehlo.multiply %x, %i : tensor<4xi32>
    return %r : tensor<4xi32>
  }
}

// -----

// CHECK-LABEL: module @counts_tokens_beforehand
// CHECK: func.func private @prologue(%{{.*}}: tensor<4xf32> {alpa.binding = "arg:1"}) -> (tensor<f32> {alpa.binding = "prologue:0"})
// CHECK: func.func private @microbatch({{.*}}tensor<f32> {alpa.binding = "prologue:0"}) -> (tensor<4xf32> {alpa.binding = "sum:0"})
// CHECK: stablehlo.broadcast_in_dim {{.*}} -> tensor<2xf32>
module @counts_tokens_beforehand {
  func.func public @main(%w: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %mask: tensor<4xf32> {alpa.role = "batch"}, %x: tensor<4x4xf32> {alpa.role = "batch"}) -> tensor<4xf32> {
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %n = stablehlo.reduce(%mask init: %zero) applies stablehlo.add across dimensions = [0] : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
    %b = stablehlo.broadcast_in_dim %n, dims = [] : (tensor<f32>) -> tensor<4xf32>
    %p = stablehlo.divide %mask, %b : tensor<4xf32>
    %g = stablehlo.dot_general %p, %x, contracting_dims = [0] x [0] : (tensor<4xf32>, tensor<4x4xf32>) -> tensor<4xf32>
    %r = stablehlo.add %w, %g : tensor<4xf32>
    return %r : tensor<4xf32>
  }
}

// -----

// CHECK-LABEL: module @combines_maxima
// CHECK: func.func private @microbatch({{.*}}) -> (tensor<f32> {alpa.binding = "sum:0", alpa.combine = "max"})
// CHECK: func.func private @update(%{{.*}}: tensor<f32> {alpa.binding = "sum:0", alpa.combine = "max"})
// CHECK: stablehlo.maximum
module @combines_maxima {
  func.func public @main(%x: tensor<4xf32> {alpa.role = "batch"}) -> tensor<f32> {
    %low = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %m = stablehlo.reduce(%x init: %low) applies stablehlo.maximum across dimensions = [0] : (tensor<4xf32>, tensor<f32>) -> tensor<f32>
    return %m : tensor<f32>
  }
}
