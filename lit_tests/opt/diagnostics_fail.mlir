// An expected message that does not come, and one that nobody expected, are failures both.
// RUN: not alpa-mlir-opt %s -verify-diagnostics 2>&1 | FileCheck %s
// CHECK: diagnostics_fail.mlir:[[# @LINE + 3]]:1: error: expected error "shape mismatch" was not produced
// CHECK: diagnostics_fail.mlir:[[# @LINE + 2]]:1: error: unexpected error: {{.*}}same shape
func.func @f(%a: tensor<8xf32>, %b: tensor<4xf32>) -> tensor<8xf32> {
  %0 = "stablehlo.add"(%a, %b) : (tensor<8xf32>, tensor<4xf32>) -> tensor<8xf32> // expected-error {{shape mismatch}}
  return %0 : tensor<8xf32>
}
