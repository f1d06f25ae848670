// Passes that would end the process on such input are refused at the op instead.
// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --sdy-propagation-pipeline

// expected-error@+1 {{sdy-propagation-pipeline needs a public @main, this one is private}}
func.func private @main(%a: tensor<8xf32>) -> tensor<8xf32> {
  return %a : tensor<8xf32>
}
