// RUN: alpa-mlir-opt %s --alpa-shard="mesh=4 cluster=cpu constrain={arg0=[{x},{}]}" --alpa-localize | filecheck %s

// A rule that the user wrote on a custom call is honoured: the first dimension passes through, the second stays whole.
// CHECK: @honours_rules_on_custom_calls
module @honours_rules_on_custom_calls {
  func.func public @main(%x: tensor<4096x64xf32>) -> tensor<4096x64xf32> {
    // CHECK: stablehlo.custom_call @row_wise({{.*}}) {{.*}}: (tensor<1024x64xf32>) -> tensor<1024x64xf32>
    // CHECK-NOT: all_gather
    %0 = stablehlo.custom_call @row_wise(%x) {sdy.sharding_rule = #sdy.op_sharding_rule<([i, j])->([i, j]) {i=4096, j=64} need_replication={j}, custom>} : (tensor<4096x64xf32>) -> tensor<4096x64xf32>
    return %0 : tensor<4096x64xf32>
  }
}
