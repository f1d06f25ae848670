// RUN: alpa-mlir-opt %s --alpa-normalize --alpa-microbatch="count=2" | filecheck %s

// The program scales both gradients, then takes both steps; the update does all of one weight first.
// CHECK-LABEL: func.func private @update
// CHECK: %[[G0:.*]] = stablehlo.multiply %{{.*}}, %{{.*}} : tensor<4xf32>
// CHECK-NEXT: stablehlo.subtract %arg0, %[[G0]] : tensor<4xf32>
// CHECK-NEXT: constant
// CHECK-NEXT: %[[G1:.*]] = stablehlo.multiply %{{.*}}, %{{.*}} : tensor<8xf32>
// CHECK-NEXT: stablehlo.subtract %arg1, %[[G1]] : tensor<8xf32>
func.func public @main(
    %a: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %b: tensor<8xf32> {alpa.role = "state", alpa.updates = 1 : i64},
    %x: tensor<6x4xf32> {alpa.role = "batch"}, %y: tensor<6x8xf32> {alpa.role = "batch"}) -> (tensor<4xf32>, tensor<8xf32>) {
  %zero = stablehlo.constant dense<0.0> : tensor<f32>
  %s4 = stablehlo.constant dense<0.5> : tensor<4xf32>
  %s8 = stablehlo.constant dense<0.5> : tensor<8xf32>
  %ga = stablehlo.reduce(%x init: %zero) applies stablehlo.add across dimensions = [0] : (tensor<6x4xf32>, tensor<f32>) -> tensor<4xf32>
  %gb = stablehlo.reduce(%y init: %zero) applies stablehlo.add across dimensions = [0] : (tensor<6x8xf32>, tensor<f32>) -> tensor<8xf32>
  %ta = stablehlo.multiply %s4, %ga : tensor<4xf32>
  %tb = stablehlo.multiply %s8, %gb : tensor<8xf32>
  %na = stablehlo.subtract %a, %ta : tensor<4xf32>
  %nb = stablehlo.subtract %b, %tb : tensor<8xf32>
  return %na, %nb : tensor<4xf32>, tensor<8xf32>
}
