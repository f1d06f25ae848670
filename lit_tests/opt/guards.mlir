// Passes that would end the process on such input are refused at the op instead.
// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --sdy-propagation-pipeline

// expected-error@+1 {{sdy-propagation-pipeline needs a public @main, this one is private}}
func.func private @main(%a: tensor<8xf32>) -> tensor<8xf32> {
  return %a : tensor<8xf32>
}

// -----

// expected-error@+1 {{sdy-propagation-pipeline needs a function, the module has none}}
module {}

// -----

// expected-error@+1 {{sdy-propagation-pipeline needs a body for each function, @external has none}}
func.func private @external(tensor<8xf32>) -> tensor<8xf32>

// -----

func.func public @main(%a: tensor<8xf32>) -> tensor<8xf32> {
  // expected-error@+1 {{recursive calls cannot be compiled: @main → @main}}
  %0 = func.call @main(%a) : (tensor<8xf32>) -> tensor<8xf32>
  return %0 : tensor<8xf32>
}

// -----

func.func public @main(%a: tensor<8xf32>) -> tensor<8xf32> {
  // expected-error@+1 {{cannot run on a module with instructions such as alpa.stack}}
  %0 = "alpa.stack"(%a) : (tensor<8xf32>) -> tensor<8xf32>
  return %0 : tensor<8xf32>
}

// -----

// This one is fine.
func.func public @main(%a: tensor<8xf32>) -> tensor<8xf32> {
  return %a : tensor<8xf32>
}
