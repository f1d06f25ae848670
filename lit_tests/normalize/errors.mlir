// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file -verify-diagnostics

func.func public @f(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = call @g(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @g(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = call @h(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @h(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-error@below {{recursive calls cannot be compiled: @g → @h → @g}}
  %0 = call @g(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

func.func private @external(tensor<4xf32>) -> tensor<4xf32>
func.func public @f(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-error@below {{@external has no body}}
  %0 = call @external(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// expected-error@below {{argument 0 has the dynamic shape tensor<?xf32>: every shape must be known}}
func.func public @f(%a: tensor<?xf32>) -> tensor<?xf32> {
  return %a : tensor<?xf32>
}

// -----

func.func public @f(%a: tensor<4xf32>, %n: tensor<1xi32>) -> tensor<4xf32> {
  // expected-error@below {{stablehlo.dynamic_iota has the dynamic shape tensor<?xf32>}}
  %0 = stablehlo.dynamic_iota %n, dim = 0 : (tensor<1xi32>) -> tensor<?xf32>
  %z = stablehlo.constant dense<0.0> : tensor<f32>
  %1 = stablehlo.reduce(%0 init: %z) applies stablehlo.add across dimensions = [0] : (tensor<?xf32>, tensor<f32>) -> tensor<f32>
  %2 = stablehlo.broadcast_in_dim %1, dims = [] : (tensor<f32>) -> tensor<4xf32>
  return %2 : tensor<4xf32>
}

// -----

// expected-error@below {{branches between blocks are not supported}}
func.func public @f(%a: tensor<4xf32>) -> tensor<4xf32> {
  cf.br ^next
^next:
  return %a : tensor<4xf32>
}

// -----

// expected-error@below {{a program needs one public function or a function @main; it has @f, @g}}
module {
  func.func public @f(%a: tensor<4xf32>) -> tensor<4xf32> {
    return %a : tensor<4xf32>
  }
  func.func public @g(%a: tensor<4xf32>) -> tensor<4xf32> {
    return %a : tensor<4xf32>
  }
}

// -----

// expected-error@below {{a program needs one public function or a function @main; it has none}}
module {}

// -----

// expected-error@below {{alpa-normalize takes a program, this module is split already}}
module attributes {alpa.level = "split"} {
  func.func public @main(%a: tensor<4xf32>) -> tensor<4xf32> {
    return %a : tensor<4xf32>
  }
}
