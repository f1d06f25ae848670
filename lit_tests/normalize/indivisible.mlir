// RUN: alpa-mlir-opt %s --alpa-normalize -verify-diagnostics | FileCheck %s

// Ops without a rule are said to be whole on every device; rules that users wrote count, and none is left behind.
// CHECK: stablehlo.custom_call @xla_known(%arg0) {sdy.sharding_rule
// CHECK-NOT: sdy.sharding_rule
func.func public @main(%a: tensor<4xf32>, %n: tensor<i32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<f32>) {
  %0 = stablehlo.custom_call @xla_known(%a) {sdy.sharding_rule = #sdy.op_sharding_rule<([i])->([i]) {i=4}, custom>} : (tensor<4xf32>) -> tensor<4xf32>
  // expected-remark@below {{every device computes the whole stablehlo.custom_call: stablehlo.custom_call has no sharding rule}}
  %1 = stablehlo.custom_call @xla_unknown(%a) : (tensor<4xf32>) -> tensor<4xf32>
  // expected-remark@below {{every device computes the whole stablehlo.case: control flow is one unit}}
  %2 = "stablehlo.case"(%n) ({
    %3 = stablehlo.custom_call @xla_unknown(%a) : (tensor<4xf32>) -> tensor<4xf32>
    stablehlo.return %3 : tensor<4xf32>
  }, {
    stablehlo.return %a : tensor<4xf32>
  }) : (tensor<i32>) -> tensor<4xf32>
  %4 = stablehlo.custom_call @xla_scalar(%a) : (tensor<4xf32>) -> tensor<f32>
  return %0, %1, %2, %4 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<f32>
}
