// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file | FileCheck %s

// A composite is replaced by its decomposition.
// CHECK-LABEL: func.func public @main(%arg0: tensor<4xf32>
// CHECK-NEXT: stablehlo.tanh %arg0
// CHECK-NEXT: return
func.func public @composite(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.composite "test.tanh" %a {decomposition = @tanh} : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @tanh(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.tanh %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// CHECK-LABEL: func.func public @main(%arg0: tensor<8xf32>
// CHECK: stablehlo.sort
// CHECK-NOT: chlo.
func.func public @top_k(%a: tensor<8xf32>) -> tensor<2xf32> {
  %0:2 = chlo.top_k(%a, k = 2) : tensor<8xf32> -> (tensor<2xf32>, tensor<2xi32>)
  return %0#0 : tensor<2xf32>
}

// -----

// A deprecated op is written as its successor.
// CHECK-LABEL: func.func public @main(%arg0: tensor<4x8xf32>
// CHECK-NEXT: stablehlo.dot_general
func.func public @dot(%a: tensor<4x8xf32>, %b: tensor<8x2xf32>) -> tensor<4x2xf32> {
  %0 = stablehlo.dot %a, %b : (tensor<4x8xf32>, tensor<8x2xf32>) -> tensor<4x2xf32>
  return %0 : tensor<4x2xf32>
}

// -----

// A callee's annotation of its argument stays as a constraint.
// CHECK: sdy.mesh @mesh
// CHECK: sdy.sharding_constraint %arg0 <@mesh, [{"x"}]>
// CHECK-NEXT: stablehlo.tanh
sdy.mesh @mesh = <["x"=2]>
func.func public @keeps_shardings_of_callees(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = call @f(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @f(%a: tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}]>}) -> tensor<4xf32> {
  %0 = stablehlo.tanh %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}
