// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --cse
// RUN: not alpa-mlir-opt %s -split-input-file --cse 2>&1 | FileCheck %s
// RUN: not alpa-mlir-opt %s -split-input-file --cse -o %t.never 2>&1
// RUN: not test -e %t.never

// CHECK: diagnostics.mlir:[[# @LINE + 3]]:{{[0-9]+}}: error: {{.*}}same shape
func.func @adds_equal_shapes(%a: tensor<8xf32>, %b: tensor<4xf32>) -> tensor<8xf32> {
  // expected-error@below {{same shape}}
  %0 = "stablehlo.add"(%a, %b) : (tensor<8xf32>, tensor<4xf32>) -> tensor<8xf32>
  return %0 : tensor<8xf32>
}

// -----

func.func @has_no_error(%a: tensor<8xf32>) -> tensor<8xf32> {
  return %a : tensor<8xf32>
}

// -----

// expected-error@+2 {{alpa.role must be "state" | "batch" | "constant", got "weights" (V1)}}
// CHECK: diagnostics.mlir:[[# @LINE + 1]]:1: error: alpa.role must be
func.func @knows_roles(%a: tensor<8xf32> {alpa.role = "weights"}) -> tensor<8xf32> {
  return %a : tensor<8xf32>
}

// -----

// expected-error@+1 {{expected ':'}}
func.func @parses(%a tensor<8xf32>)
