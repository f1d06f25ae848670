// RUN: alpa-mlir-opt %s --alpa-normalize | FileCheck %s

// Calls of calls are inlined, callees removed, the only public function becomes @main.
// CHECK: module attributes {alpa.level = "normal"}
// CHECK-NEXT: func.func public @main(%arg0: tensor<4xf32> {alpa.role = "constant"})
// CHECK-NEXT: stablehlo.tanh %arg0
// CHECK-NEXT: stablehlo.tanh
// CHECK-NEXT: stablehlo.cosine
// CHECK-NEXT: stablehlo.tanh
// CHECK-NEXT: stablehlo.tanh
// CHECK-NEXT: return
// CHECK-NOT: func.func
func.func public @entry(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = call @twice(%a) : (tensor<4xf32>) -> tensor<4xf32>
  %1 = stablehlo.cosine %0 : tensor<4xf32>
  %2 = call @twice(%1) : (tensor<4xf32>) -> tensor<4xf32>
  %3 = call @unused(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %2 : tensor<4xf32>
}
func.func private @twice(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = call @once(%a) : (tensor<4xf32>) -> tensor<4xf32>
  %1 = call @once(%0) : (tensor<4xf32>) -> tensor<4xf32>
  return %1 : tensor<4xf32>
}
func.func private @once(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.tanh %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @unused(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.sine %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}
