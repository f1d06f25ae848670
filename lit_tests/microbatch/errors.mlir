// RUN: alpa-mlir-opt %s --alpa-microbatch="count=2" --split-input-file --verify-diagnostics

module @refuses_batch_statistics {
  func.func public @main(%w: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %x: tensor<4xf32> {alpa.role = "batch"}) -> (tensor<4xf32>, tensor<4xf32>) {
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %wx = stablehlo.dot_general %x, %w, contracting_dims = [] x [] : (tensor<4xf32>, tensor<4xf32>) -> tensor<4x4xf32>
    %s = stablehlo.reduce(%wx init: %zero) applies stablehlo.add across dimensions = [0] : (tensor<4x4xf32>, tensor<f32>) -> tensor<4xf32>
    // expected-note@+1 {{this value is combined}}
    %b = stablehlo.broadcast_in_dim %s, dims = [1] : (tensor<4xf32>) -> tensor<4x4xf32>
    // expected-error@+1 {{allow-per-microbatch-statistics}}
    %c = stablehlo.subtract %wx, %b : tensor<4x4xf32>
    %t = stablehlo.reduce(%c init: %zero) applies stablehlo.maximum across dimensions = [1] : (tensor<4x4xf32>, tensor<f32>) -> tensor<4xf32>
    return %w, %t : tensor<4xf32>, tensor<4xf32>
  }
}

// -----

module @refuses_in_batch_negatives {
  func.func public @main(%w: tensor<3x3xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %x: tensor<4x3xf32> {alpa.role = "batch"}) -> (tensor<3x3xf32>, tensor<4x4xf32>) {
    %h = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<4x3xf32>, tensor<3x3xf32>) -> tensor<4x3xf32>
    // expected-error@+1 {{examples meet other examples}}
    %s = stablehlo.dot_general %h, %x, contracting_dims = [1] x [1] : (tensor<4x3xf32>, tensor<4x3xf32>) -> tensor<4x4xf32>
    return %w, %s : tensor<3x3xf32>, tensor<4x4xf32>
  }
}

// -----

module @refuses_sorting_examples {
  func.func public @main(%w: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %x: tensor<4xf32> {alpa.role = "batch"}) -> (tensor<4xf32>, tensor<4xf32>) {
    %h = stablehlo.add %x, %w : tensor<4xf32>
    // expected-error@+1 {{mixes examples of different microbatches}}
    %s = "stablehlo.sort"(%h) ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      %p = stablehlo.compare LT, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %p : tensor<i1>
    }) {dimension = 0 : i64} : (tensor<4xf32>) -> tensor<4xf32>
    return %w, %s : tensor<4xf32>, tensor<4xf32>
  }
}

// -----

module @refuses_a_batch_that_does_not_divide {
  // expected-error@+1 {{2 microbatches do not divide batch argument 0, which has 5 examples}}
  func.func public @main(%x: tensor<5xf32> {alpa.role = "batch"}) -> tensor<5xf32> {
    return %x : tensor<5xf32>
  }
}

// -----

module @asks_for_a_batch {
  // expected-error@+1 {{--batch-args}}
  func.func public @main(%x: tensor<4xf32> {alpa.role = "constant"}) -> tensor<4xf32> {
    %y = stablehlo.tanh %x : tensor<4xf32>
    return %y : tensor<4xf32>
  }
}
