// The norm of both stages' gradients: stage 1 gives its part, stage 0 adds and updates, stage 1 updates.
// RUN: alpa-mlir-opt %s --alpa-split --alpa-schedule --alpa-check-schedule | FileCheck %s

// The first round only forms a sum of squares: the gradient itself stays for the second.
// CHECK-LABEL: func.func private @stage_1_update_0(
// CHECK-NOT: alpa.donate
// CHECK-LABEL: func.func private @stage_0_update(
// CHECK-LABEL: func.func private @stage_1_update_1(
// CHECK-LABEL: func.func public @main(
// CHECK: %[[PART:.*]] = mpmd.fragment_call{{.*}} @stage_1_update_0(
// CHECK: %[[SENT:.*]] = mpmd.transfer {{.*}}alpa.phase = "update"} %[[PART]]
// CHECK: %[[BOTH:.*]]:2 = mpmd.fragment_call{{.*}} @stage_0_update({{%[0-9]+}}, %[[SENT]], %arg0)
// CHECK: %[[BACK:.*]] = mpmd.transfer {{.*}}alpa.phase = "update"} %[[BOTH]]#0
// CHECK: mpmd.fragment_call{{.*}} @stage_1_update_1(%[[BACK]]

module @mlp attributes {alpa.level = "sharded", alpa.microbatches = 4 : i64, alpa.stages = [{devices = array<i64: 0, 1>, mesh = "stage_0", microbatch_seconds = 3.000000e+00 : f64, step_seconds = 5.000000e-01 : f64}, {devices = array<i64: 2, 3>, mesh = "stage_1", microbatch_seconds = 3.000000e+00 : f64, step_seconds = 5.000000e-01 : f64}]} {
  sdy.mesh @stage_0 = <["x"=2]>
  sdy.mesh @stage_1 = <["x"=1, "y"=2]>
  func.func private @microbatch(%arg0: tensor<8x16xf32> {alpa.binding = "arg:0", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding<@stage_0, [{}, {}]>}, %arg1: tensor<16x4xf32> {alpa.binding = "arg:1", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding<@stage_1, [{"y"}, {}]>}, %arg2: tensor<4x8xf32> {alpa.binding = "batch:2", alpa.dim = 0 : i64, alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>}, %arg3: tensor<4x4xf32> {alpa.binding = "batch:3", alpa.dim = 0 : i64, alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>}) -> (tensor<8x16xf32> {alpa.binding = "sum:0", sdy.sharding = #sdy.sharding<@stage_0, [{}, {}]>}, tensor<16x4xf32> {alpa.binding = "sum:1", sdy.sharding = #sdy.sharding<@stage_1, [{"y"}, {}]>}, tensor<f32> {alpa.binding = "sum:2", sdy.sharding = #sdy.sharding<@stage_1, []>}, tensor<4x4xf32> {alpa.binding = "stack:3", alpa.dim = 0 : i64, sdy.sharding = #sdy.sharding<@stage_1, [{}, {}]>}) {
    %cst = stablehlo.constant {alpa.layer = 0 : i64, alpa.phase = "forward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} dense<1.000000e+00> : tensor<4x16xf32>
    %0 = stablehlo.dot_general %arg2, %arg0, contracting_dims = [1] x [0] {alpa.layer = 0 : i64, alpa.phase = "forward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %1 = stablehlo.tanh %0 {alpa.layer = 0 : i64, alpa.phase = "forward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} : tensor<4x16xf32>
    %2 = stablehlo.multiply %1, %cst {alpa.layer = 0 : i64, alpa.phase = "forward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} : tensor<4x16xf32>
    %3 = sdy.reshard %2 <@stage_1, [{}, {"y"}]> {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64} : tensor<4x16xf32>
    %4 = sdy.reshard %arg3 <@stage_1, [{}, {}]> {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64} : tensor<4x4xf32>
    %5 = stablehlo.dot_general %3, %arg1, contracting_dims = [1] x [0] {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{}, {}]>]>} : (tensor<4x16xf32>, tensor<16x4xf32>) -> tensor<4x4xf32>
    %6 = stablehlo.subtract %5, %4 {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{}, {}]>]>} : tensor<4x4xf32>
    %7 = stablehlo.multiply %6, %6 {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{}, {}]>]>} : tensor<4x4xf32>
    %cst_0 = stablehlo.constant {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, []>]>} dense<0.000000e+00> : tensor<f32>
    %8 = stablehlo.reduce(%7 init: %cst_0) applies stablehlo.add across dimensions = [0, 1] {alpa.layer = 1 : i64, alpa.phase = "forward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, []>]>} : (tensor<4x4xf32>, tensor<f32>) -> tensor<f32>
    %cst_1 = stablehlo.constant {alpa.layer = 1 : i64, alpa.phase = "backward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{}, {}]>]>} dense<2.000000e+00> : tensor<4x4xf32>
    %9 = stablehlo.multiply %cst_1, %6 {alpa.layer = 1 : i64, alpa.phase = "backward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{}, {}]>]>} : tensor<4x4xf32>
    %10 = stablehlo.dot_general %3, %9, contracting_dims = [0] x [0] {alpa.layer = 1 : i64, alpa.phase = "backward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : (tensor<4x16xf32>, tensor<4x4xf32>) -> tensor<16x4xf32>
    %11 = stablehlo.dot_general %9, %arg1, contracting_dims = [1] x [1] {alpa.layer = 1 : i64, alpa.phase = "backward", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{}, {"y"}]>]>} : (tensor<4x4xf32>, tensor<16x4xf32>) -> tensor<4x16xf32>
    %12 = sdy.reshard %11 <@stage_0, [{"x"}, {}]> {alpa.layer = 0 : i64, alpa.phase = "backward", alpa.stage = 0 : i64} : tensor<4x16xf32>
    %13 = stablehlo.multiply %1, %1 {alpa.layer = 0 : i64, alpa.phase = "backward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} : tensor<4x16xf32>
    %14 = stablehlo.subtract %cst, %13 {alpa.layer = 0 : i64, alpa.phase = "backward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} : tensor<4x16xf32>
    %15 = stablehlo.multiply %12, %14 {alpa.layer = 0 : i64, alpa.phase = "backward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>} : tensor<4x16xf32>
    %16 = stablehlo.dot_general %arg2, %15, contracting_dims = [0] x [0] {alpa.layer = 0 : i64, alpa.phase = "backward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
    return %16, %10, %8, %5 : tensor<8x16xf32>, tensor<16x4xf32>, tensor<f32>, tensor<4x4xf32>
  }
  func.func private @update(%arg0: tensor<8x16xf32> {alpa.binding = "arg:0", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding<@stage_0, [{}, {}]>}, %arg1: tensor<16x4xf32> {alpa.binding = "arg:1", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding<@stage_1, [{"y"}, {}]>}, %arg2: tensor<8x16xf32> {alpa.binding = "sum:0", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding<@stage_0, [{}, {}]>}, %arg3: tensor<16x4xf32> {alpa.binding = "sum:1", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding<@stage_1, [{"y"}, {}]>}, %arg4: tensor<f32> {alpa.binding = "sum:2", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding<@stage_1, []>}, %arg5: tensor<16x4xf32> {alpa.binding = "stack:3", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding<@stage_1, [{}, {}]>}) -> (tensor<8x16xf32> {alpa.binding = "out:0", sdy.sharding = #sdy.sharding<@stage_0, [{}, {}]>}, tensor<16x4xf32> {alpa.binding = "out:1", sdy.sharding = #sdy.sharding<@stage_1, [{"y"}, {}]>}, tensor<f32> {alpa.binding = "out:2", sdy.sharding = #sdy.sharding<@stage_1, []>}, tensor<16x4xf32> {alpa.binding = "out:3", sdy.sharding = #sdy.sharding<@stage_1, [{}, {}]>}) {
    %cst = stablehlo.constant {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, []>]>} dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.multiply %arg2, %arg2 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : tensor<8x16xf32>
    %1 = stablehlo.reduce(%0 init: %cst) applies stablehlo.add across dimensions = [0, 1] {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, []>]>} : (tensor<8x16xf32>, tensor<f32>) -> tensor<f32>
    %cst_0 = stablehlo.constant {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, []>]>} dense<0.000000e+00> : tensor<f32>
    %2 = stablehlo.multiply %arg3, %arg3 {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : tensor<16x4xf32>
    %3 = stablehlo.reduce(%2 init: %cst_0) applies stablehlo.add across dimensions = [0, 1] {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, []>]>} : (tensor<16x4xf32>, tensor<f32>) -> tensor<f32>
    %4 = sdy.reshard %3 <@stage_0, []> {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64} : tensor<f32>
    %5 = stablehlo.add %1, %4 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, []>]>} : tensor<f32>
    %6 = stablehlo.rsqrt %5 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, []>]>} : tensor<f32>
    %7 = stablehlo.broadcast_in_dim %6, dims = [] {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : (tensor<f32>) -> tensor<8x16xf32>
    %8 = stablehlo.multiply %arg2, %7 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : tensor<8x16xf32>
    %9 = stablehlo.subtract %arg0, %8 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : tensor<8x16xf32>
    %10 = sdy.reshard %6 <@stage_1, []> {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64} : tensor<f32>
    %11 = stablehlo.broadcast_in_dim %10, dims = [] {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : (tensor<f32>) -> tensor<16x4xf32>
    %12 = stablehlo.multiply %arg3, %11 {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : tensor<16x4xf32>
    %13 = stablehlo.subtract %arg1, %12 {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : tensor<16x4xf32>
    return %9, %13, %arg4, %arg5 : tensor<8x16xf32>, tensor<16x4xf32>, tensor<f32>, tensor<16x4xf32>
  }
  func.func public @main(%arg0: tensor<8x16xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %arg1: tensor<16x4xf32> {alpa.role = "state", alpa.updates = 1 : i64}, %arg2: tensor<16x8xf32> {alpa.role = "batch"}, %arg3: tensor<16x4xf32> {alpa.role = "batch"}) -> (tensor<8x16xf32>, tensor<16x4xf32>, tensor<f32> {jax.result_info = "loss"}, tensor<16x4xf32>) {
    %0 = stablehlo.dot_general %arg2, %arg0, contracting_dims = [1] x [0] : (tensor<16x8xf32>, tensor<8x16xf32>) -> tensor<16x16xf32>
    %1 = stablehlo.tanh %0 : tensor<16x16xf32>
    %2 = stablehlo.dot_general %1, %arg1, contracting_dims = [1] x [0] : (tensor<16x16xf32>, tensor<16x4xf32>) -> tensor<16x4xf32>
    %3 = stablehlo.subtract %2, %arg3 : tensor<16x4xf32>
    %4 = stablehlo.multiply %3, %3 : tensor<16x4xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %5 = stablehlo.reduce(%4 init: %cst) applies stablehlo.add across dimensions = [0, 1] : (tensor<16x4xf32>, tensor<f32>) -> tensor<f32>
    %cst_0 = stablehlo.constant dense<2.000000e+00> : tensor<16x4xf32>
    %6 = stablehlo.multiply %cst_0, %3 : tensor<16x4xf32>
    %7 = stablehlo.dot_general %1, %6, contracting_dims = [0] x [0] : (tensor<16x16xf32>, tensor<16x4xf32>) -> tensor<16x4xf32>
    %8 = stablehlo.dot_general %6, %arg1, contracting_dims = [1] x [1] : (tensor<16x4xf32>, tensor<16x4xf32>) -> tensor<16x16xf32>
    %9 = stablehlo.multiply %1, %1 : tensor<16x16xf32>
    %cst_1 = stablehlo.constant dense<1.000000e+00> : tensor<16x16xf32>
    %10 = stablehlo.subtract %cst_1, %9 : tensor<16x16xf32>
    %11 = stablehlo.multiply %8, %10 : tensor<16x16xf32>
    %12 = stablehlo.dot_general %arg2, %11, contracting_dims = [0] x [0] : (tensor<16x8xf32>, tensor<16x16xf32>) -> tensor<8x16xf32>
    %cst_2 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %13 = stablehlo.multiply %12, %12 : tensor<8x16xf32>
    %14 = stablehlo.reduce(%13 init: %cst_2) applies stablehlo.add across dimensions = [0, 1] : (tensor<8x16xf32>, tensor<f32>) -> tensor<f32>
    %cst_3 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %15 = stablehlo.multiply %7, %7 : tensor<16x4xf32>
    %16 = stablehlo.reduce(%15 init: %cst_3) applies stablehlo.add across dimensions = [0, 1] : (tensor<16x4xf32>, tensor<f32>) -> tensor<f32>
    %17 = stablehlo.add %14, %16 : tensor<f32>
    %18 = stablehlo.rsqrt %17 : tensor<f32>
    %19 = stablehlo.broadcast_in_dim %18, dims = [] : (tensor<f32>) -> tensor<8x16xf32>
    %20 = stablehlo.multiply %12, %19 : tensor<8x16xf32>
    %21 = stablehlo.subtract %arg0, %20 : tensor<8x16xf32>
    %22 = stablehlo.broadcast_in_dim %18, dims = [] : (tensor<f32>) -> tensor<16x4xf32>
    %23 = stablehlo.multiply %7, %22 : tensor<16x4xf32>
    %24 = stablehlo.subtract %arg1, %23 : tensor<16x4xf32>
    return %21, %24, %5, %2 : tensor<8x16xf32>, tensor<16x4xf32>, tensor<f32>, tensor<16x4xf32>
  }
}
