// Two stages of a two-layer perceptron: what each stage and phase becomes, what crosses, what is kept.
// RUN: alpa-mlir-opt %s --alpa-split | FileCheck %s
// RUN: alpa-mlir-opt %s --alpa-split --alpa-schedule=kind=1f1b | FileCheck %s --check-prefix=ORDER
// RUN: alpa-mlir-opt %s --alpa-split --alpa-schedule=kind=gpipe --alpa-check-schedule | FileCheck %s --check-prefix=GPIPE
// RUN: not alpa-mlir-opt %s --alpa-split --alpa-schedule=kind=inference 2>&1 | FileCheck %s --check-prefix=NOBACKWARD
// RUN: not alpa-mlir-opt %s --alpa-schedule 2>&1 | FileCheck %s --check-prefix=UNSPLIT

// CHECK: alpa.level = "split"
// The ones in tanh's derivative are made again in the backward pass, not kept.
// CHECK-LABEL: func.func private @stage_0_forward
// CHECK: stablehlo.constant
// CHECK: return {{%[0-9]+, %[0-9]+}} : tensor<4x16xf32>, tensor<4x16xf32>
// CHECK-LABEL: func.func private @stage_1_forward
// CHECK-LABEL: func.func private @stage_1_backward
// CHECK-LABEL: func.func private @stage_0_backward
// CHECK: stablehlo.constant
// Old weights give their buffers to the new ones.
// CHECK-LABEL: func.func private @stage_0_update(
// CHECK-SAME: tensor<8x16xf32> {alpa.donate = 0 : i64
// CHECK-LABEL: func.func private @stage_1_update(
// CHECK-NOT: func.func private
// CHECK-LABEL: func.func public @main(
// CHECK: %[[X:.*]] = "alpa.microbatch"(%arg2)
// CHECK: %[[F0:.*]]:2 = mpmd.fragment_call<mesh="stage_0", origin=["forward"]> @stage_0_forward(%[[X]], %arg0)
// CHECK: %[[H:.*]] = mpmd.transfer {{.*}}alpa.phase = "forward"} %[[F0]]#1
// The targets live on stage 0, but their microbatches are cut on stage 1.
// CHECK: %[[T:.*]] = "alpa.microbatch"(%arg3) {{.*}} -> !mpmd.mesh_tensor<"stage_1"
// CHECK: mpmd.fragment_call{{.*}} @stage_1_forward(%[[H]], %arg1, %[[T]])
// CHECK: %[[B1:.*]]:2 = mpmd.fragment_call{{.*}} @stage_1_backward(
// CHECK: %[[G:.*]] = mpmd.transfer {{.*}}alpa.phase = "backward"} %[[B1]]#1
// CHECK: %[[B0:.*]] = mpmd.fragment_call{{.*}} @stage_0_backward(%[[F0]]#0, %[[G]], %[[X]])
// CHECK: "alpa.accumulate"(%[[B0]])
// CHECK: mpmd.fragment_call{{.*}} @stage_0_update(
// CHECK: mpmd.fragment_call{{.*}} @stage_1_update(
// CHECK: "alpa.stack"

// Stage 0 runs one forward ahead, then alternates; stage 1 alternates from the start.
// ORDER: alpa.digest = "{{[0-9a-f]+}}", alpa.level = "plan"
// ORDER: "alpa.schedule"() ({
// ORDER-NEXT: "alpa.run"() {id = 0 : i64, microbatch = 0 : i64}
// ORDER-NEXT: "alpa.run"() {id = 1 : i64, microbatch = 0 : i64}
// ORDER-NEXT: "alpa.send"() {id = 2 : i64, microbatch = 0 : i64}
// ORDER-NEXT: "alpa.free"() {microbatch = 0 : i64, values = array<i64: 1, 1>}
// ORDER: "alpa.run"() {id = 1 : i64, microbatch = 1 : i64}
// ORDER-NOT: "alpa.run"() {id = 1 : i64, microbatch = 2 : i64}
// ORDER: "alpa.run"() {id = 7 : i64, microbatch = 0 : i64}
// ORDER: "alpa.accumulate"() {{.*}}microbatch = 0 : i64}
// ORDER: "alpa.run"() {id = 1 : i64, microbatch = 2 : i64}
// ORDER: }) {kind = "1f1b", mesh = "stage_0"}
// ORDER: "alpa.schedule"() ({
// ORDER-NEXT: "alpa.recv"() {id = 2 : i64, microbatch = 0 : i64}
// ORDER: }) {kind = "1f1b", mesh = "stage_1"}

// GPIPE: "alpa.run"() {id = 1 : i64, microbatch = 3 : i64}
// GPIPE: "alpa.run"() {id = 7 : i64, microbatch = 0 : i64}
// GPIPE: }) {kind = "gpipe", mesh = "stage_0"}

// NOBACKWARD: error: schedule=inference cannot run a backward pass
// UNSPLIT: error: alpa-schedule needs a split module (alpa.level is 'sharded'): run alpa-split first

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
    %cst = stablehlo.constant {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} dense<1.000000e-01> : tensor<8x16xf32>
    %0 = stablehlo.multiply %cst, %arg2 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : tensor<8x16xf32>
    %1 = stablehlo.subtract %arg0, %0 {alpa.layer = 0 : i64, alpa.phase = "update", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>} : tensor<8x16xf32>
    %cst_0 = stablehlo.constant {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} dense<1.000000e-01> : tensor<16x4xf32>
    %2 = stablehlo.multiply %cst_0, %arg3 {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : tensor<16x4xf32>
    %3 = stablehlo.subtract %arg1, %2 {alpa.layer = 1 : i64, alpa.phase = "update", alpa.stage = 1 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"y"}, {}]>]>} : tensor<16x4xf32>
    return %1, %3, %arg4, %arg5 : tensor<8x16xf32>, tensor<16x4xf32>, tensor<f32>, tensor<16x4xf32>
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
    %cst_2 = stablehlo.constant dense<1.000000e-01> : tensor<8x16xf32>
    %13 = stablehlo.multiply %cst_2, %12 : tensor<8x16xf32>
    %14 = stablehlo.subtract %arg0, %13 : tensor<8x16xf32>
    %cst_3 = stablehlo.constant dense<1.000000e-01> : tensor<16x4xf32>
    %15 = stablehlo.multiply %cst_3, %7 : tensor<16x4xf32>
    %16 = stablehlo.subtract %arg1, %15 : tensor<16x4xf32>
    return %14, %16, %5, %2 : tensor<8x16xf32>, tensor<16x4xf32>, tensor<f32>, tensor<16x4xf32>
  }
}
