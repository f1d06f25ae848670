// RUN: alpa-mlir-opt %s --alpa-normalize="unroll=0" | FileCheck %s

// A constant stands right before each of its uses, also inside regions; an iota does not.
// CHECK-LABEL: func.func public @main
// CHECK-NEXT: %[[IOTA:.*]] = stablehlo.iota
// CHECK-NEXT: %[[C0:.*]] = stablehlo.constant dense<2.000000e+00>
// CHECK-NEXT: stablehlo.multiply %arg0, %[[C0]]
// CHECK-NEXT: stablehlo.add %{{.*}}, %[[IOTA]]
// CHECK: stablehlo.while
// CHECK: do {
// CHECK: %[[C1:.*]] = stablehlo.constant dense<2.000000e+00>
// CHECK-NEXT: stablehlo.multiply %iterArg{{.*}}, %[[C1]]
// CHECK: }
// CHECK: %[[C2:.*]] = stablehlo.constant dense<2.000000e+00>
// CHECK-NEXT: stablehlo.divide %{{.*}}, %[[C2]]
func.func public @main(%a: tensor<4xf32>) -> tensor<4xf32> {
  %two = stablehlo.constant dense<2.0> : tensor<4xf32>
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %iota = stablehlo.iota dim = 0 : tensor<4xf32>
  %0 = stablehlo.multiply %a, %two : tensor<4xf32>
  %1 = stablehlo.add %0, %iota : tensor<4xf32>
  %2:2 = stablehlo.while(%i = %zero, %x = %1) : tensor<i32>, tensor<4xf32>
  cond {
    %three = stablehlo.constant dense<3> : tensor<i32>
    %p = stablehlo.compare LT, %i, %three : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %p : tensor<i1>
  } do {
    %one = stablehlo.constant dense<1> : tensor<i32>
    %j = stablehlo.add %i, %one : tensor<i32>
    %y = stablehlo.multiply %x, %two : tensor<4xf32>
    stablehlo.return %j, %y : tensor<i32>, tensor<4xf32>
  }
  %3 = stablehlo.add %2#1, %iota : tensor<4xf32>
  %4 = stablehlo.divide %3, %two : tensor<4xf32>
  return %4 : tensor<4xf32>
}
