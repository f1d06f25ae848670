// RUN: alpa-mlir-opt %s -split-input-file --alpa-layers="count=2" | FileCheck %s

// Two products, squared error, SGD. Forward ops are cut between the products; the backward pass follows the data down.

// CHECK-LABEL: module @cuts_between_products_and_backward_follows
module @cuts_between_products_and_backward_follows attributes {alpa.level = "microbatched", alpa.microbatches = 2 : i64} {
  func.func private @microbatch(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %x: tensor<4x8xf32> {alpa.binding = "batch:2"}) -> (tensor<f32> {alpa.binding = "sum:0"}, tensor<8x8xf32> {alpa.binding = "sum:1"}, tensor<8x8xf32> {alpa.binding = "sum:2"}) {
    // CHECK: constant {alpa.layer = 1 : i64, alpa.phase = "forward"}
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    // CHECK: dot_general %arg2, %arg0{{.*}}alpa.layer = 0 : i64, alpa.phase = "forward"
    %h = stablehlo.dot_general %x, %w0, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: tanh{{.*}}alpa.layer = 0 : i64, alpa.phase = "forward"
    %a = stablehlo.tanh %h : tensor<4x8xf32>
    // CHECK: dot_general{{.*}}alpa.layer = 1 : i64, alpa.phase = "forward"
    %y = stablehlo.dot_general %a, %w1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: multiply{{.*}}alpa.layer = 1 : i64, alpa.phase = "forward"
    %s = stablehlo.multiply %y, %y : tensor<4x8xf32>
    // CHECK: reduce{{.*}}alpa.layer = 1 : i64, alpa.phase = "forward"
    %l = stablehlo.reduce(%s init: %zero) applies stablehlo.add across dimensions = [0, 1] : (tensor<4x8xf32>, tensor<f32>) -> tensor<f32>
    // CHECK: constant {alpa.layer = 1 : i64, alpa.phase = "backward"}
    %two = stablehlo.constant dense<2.0> : tensor<4x8xf32>
    // CHECK: multiply{{.*}}alpa.layer = 1 : i64, alpa.phase = "backward"
    %dy = stablehlo.multiply %y, %two : tensor<4x8xf32>
    // CHECK: dot_general{{.*}}contracting_dims = [0] x [0]{{.*}}alpa.layer = 1 : i64, alpa.phase = "backward"
    %g1 = stablehlo.dot_general %a, %dy, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
    // CHECK: dot_general{{.*}}contracting_dims = [1] x [1]{{.*}}alpa.layer = 1 : i64, alpa.phase = "backward"
    %da = stablehlo.dot_general %dy, %w1, contracting_dims = [1] x [1] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // The gradient of the first parameter ends in the layer that uses the parameter.
    // CHECK: dot_general %arg2{{.*}}alpa.layer = 0 : i64, alpa.phase = "backward"
    %g0 = stablehlo.dot_general %x, %da, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
    return %l, %g0, %g1 : tensor<f32>, tensor<8x8xf32>, tensor<8x8xf32>
  }
  func.func private @update(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %l: tensor<f32> {alpa.binding = "sum:0"}, %g0: tensor<8x8xf32> {alpa.binding = "sum:1"}, %g1: tensor<8x8xf32> {alpa.binding = "sum:2"}) -> (tensor<8x8xf32> {alpa.binding = "out:0"}, tensor<8x8xf32> {alpa.binding = "out:1"}, tensor<f32> {alpa.binding = "out:2"}) {
    // Ops of the update have the layer of the parameter.
    // CHECK: subtract %arg0{{.*}}alpa.layer = 0 : i64, alpa.phase = "update"
    %n0 = stablehlo.subtract %w0, %g0 : tensor<8x8xf32>
    // CHECK: subtract %arg1{{.*}}alpa.layer = 1 : i64, alpa.phase = "update"
    %n1 = stablehlo.subtract %w1, %g1 : tensor<8x8xf32>
    return %n0, %n1, %l : tensor<8x8xf32>, tensor<8x8xf32>, tensor<f32>
  }
  func.func public @main(%w0: tensor<8x8xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %w1: tensor<8x8xf32> {alpa.role = "state", alpa.updates = 1 : i64}, %x: tensor<8x8xf32> {alpa.role = "batch"}) {
    return
  }
}

// -----

// A step that returns nothing but new state: what all gradients depend on is forward.

// CHECK-LABEL: module @without_a_loss_the_common_part_is_forward
module @without_a_loss_the_common_part_is_forward attributes {alpa.level = "microbatched", alpa.microbatches = 2 : i64} {
  func.func private @microbatch(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %x: tensor<4x8xf32> {alpa.binding = "batch:2"}) -> (tensor<8x8xf32> {alpa.binding = "sum:0"}, tensor<8x8xf32> {alpa.binding = "sum:1"}) {
    // CHECK: dot_general{{.*}}alpa.layer = 0 : i64, alpa.phase = "forward"
    %a = stablehlo.dot_general %x, %w0, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: dot_general{{.*}}alpa.layer = 1 : i64, alpa.phase = "forward"
    %y = stablehlo.dot_general %a, %w1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: dot_general{{.*}}contracting_dims = [0] x [0]{{.*}}alpa.phase = "backward"
    %g1 = stablehlo.dot_general %a, %y, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
    // CHECK: dot_general{{.*}}contracting_dims = [1] x [1]{{.*}}alpa.phase = "backward"
    %da = stablehlo.dot_general %y, %w1, contracting_dims = [1] x [1] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: dot_general{{.*}}contracting_dims = [0] x [0]{{.*}}alpa.phase = "backward"
    %g0 = stablehlo.dot_general %x, %da, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
    return %g0, %g1 : tensor<8x8xf32>, tensor<8x8xf32>
  }
  func.func private @update(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %g0: tensor<8x8xf32> {alpa.binding = "sum:0"}, %g1: tensor<8x8xf32> {alpa.binding = "sum:1"}) -> (tensor<8x8xf32> {alpa.binding = "out:0"}, tensor<8x8xf32> {alpa.binding = "out:1"}) {
    %n0 = stablehlo.subtract %w0, %g0 : tensor<8x8xf32>
    %n1 = stablehlo.subtract %w1, %g1 : tensor<8x8xf32>
    return %n0, %n1 : tensor<8x8xf32>, tensor<8x8xf32>
  }
  func.func public @main(%w0: tensor<8x8xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %w1: tensor<8x8xf32> {alpa.role = "state", alpa.updates = 1 : i64}, %x: tensor<8x8xf32> {alpa.role = "batch"}) {
    return
  }
}

// -----

// Inference: nothing contracts after the results, so there is no backward pass.

// CHECK-LABEL: module @inference_is_forward_only
module @inference_is_forward_only attributes {alpa.level = "microbatched", alpa.microbatches = 2 : i64} {
  func.func private @microbatch(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %x: tensor<4x8xf32> {alpa.binding = "batch:2"}) -> (tensor<4x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}, tensor<4x8xf32> {alpa.binding = "stack:1", alpa.dim = 0 : i64}) {
    // CHECK-NOT: "backward"
    %a = stablehlo.dot_general %x, %w0, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    %y = stablehlo.dot_general %a, %w1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    return %a, %y : tensor<4x8xf32>, tensor<4x8xf32>
  }
  func.func private @update(%a: tensor<8x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}, %y: tensor<8x8xf32> {alpa.binding = "stack:1", alpa.dim = 0 : i64}) -> (tensor<8x8xf32> {alpa.binding = "out:0"}, tensor<8x8xf32> {alpa.binding = "out:1"}) {
    return %a, %y : tensor<8x8xf32>, tensor<8x8xf32>
  }
  func.func public @main(%w0: tensor<8x8xf32> {alpa.role = "constant"}, %w1: tensor<8x8xf32> {alpa.role = "constant"}, %x: tensor<8x8xf32> {alpa.role = "batch"}) {
    return
  }
}

// -----

// A user's own cut is kept and completed along the data.

// CHECK-LABEL: module @keeps_the_layers_of_the_user
module @keeps_the_layers_of_the_user attributes {alpa.level = "microbatched", alpa.microbatches = 2 : i64} {
  func.func private @microbatch(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %x: tensor<4x8xf32> {alpa.binding = "batch:1"}) -> (tensor<4x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}) {
    // CHECK: dot_general{{.*}}alpa.layer = 0 : i64
    %a = stablehlo.dot_general %x, %w0, contracting_dims = [1] x [0] {alpa.layer = 0 : i64} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: dot_general{{.*}}alpa.layer = 0 : i64
    %b = stablehlo.dot_general %a, %w0, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    // CHECK: tanh{{.*}}alpa.layer = 1 : i64
    %c = stablehlo.tanh %b {alpa.layer = 1 : i64} : tensor<4x8xf32>
    // CHECK: negate{{.*}}alpa.layer = 1 : i64
    %d = stablehlo.negate %c : tensor<4x8xf32>
    return %d : tensor<4x8xf32>
  }
  func.func private @update(%a: tensor<8x8xf32> {alpa.binding = "stack:0", alpa.dim = 0 : i64}) -> (tensor<8x8xf32> {alpa.binding = "out:0"}) {
    return %a : tensor<8x8xf32>
  }
  func.func public @main(%w0: tensor<8x8xf32> {alpa.role = "constant"}, %x: tensor<8x8xf32> {alpa.role = "batch"}) {
    return
  }
}
