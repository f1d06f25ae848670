// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --alpa-layers="count=3"

// expected-error@+1 {{alpa-layers needs a microbatched module (run alpa-microbatch first), got level source}}
module @refuses_other_levels {
  func.func public @main() {
    return
  }
}

// -----

module @refuses_more_layers_than_products attributes {alpa.level = "microbatched", alpa.microbatches = 1 : i64} {
  // expected-error@+1 {{3 layers were asked for, but the forward pass has only 1 contractions to cut between}}
  func.func private @microbatch(%w: tensor<8x8xf32> {alpa.binding = "arg:0"}, %x: tensor<4x8xf32> {alpa.binding = "batch:1"}) -> (tensor<4x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}) {
    %a = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    return %a : tensor<4x8xf32>
  }
  func.func private @update(%a: tensor<4x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}) -> (tensor<4x8xf32> {alpa.binding = "out:0"}) {
    return %a : tensor<4x8xf32>
  }
  func.func public @main(%w: tensor<8x8xf32> {alpa.role = "constant"}, %x: tensor<4x8xf32> {alpa.role = "batch"}) {
    return
  }
}

// -----

module @refuses_a_cut_against_the_data attributes {alpa.level = "microbatched", alpa.microbatches = 1 : i64} {
  func.func private @microbatch(%w: tensor<8x8xf32> {alpa.binding = "arg:0"}, %x: tensor<4x8xf32> {alpa.binding = "batch:1"}) -> (tensor<4x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}) {
    %a = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] {alpa.layer = 2 : i64} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // expected-error@+1 {{alpa.layer = 1, but an operand comes from layer 2: forward data must not flow to a lower layer}}
    %b = stablehlo.dot_general %a, %w, contracting_dims = [1] x [0] {alpa.layer = 1 : i64} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    return %b : tensor<4x8xf32>
  }
  func.func private @update(%a: tensor<4x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}) -> (tensor<4x8xf32> {alpa.binding = "out:0"}) {
    return %a : tensor<4x8xf32>
  }
  func.func public @main(%w: tensor<8x8xf32> {alpa.role = "constant"}, %x: tensor<4x8xf32> {alpa.role = "batch"}) {
    return
  }
}
