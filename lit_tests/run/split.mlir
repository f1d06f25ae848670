// A split module runs without a schedule, in the order of its dataflow; every way of starting gives the same loss.
// RUN: alpa-mlir-run --local %s --steps 2 | FileCheck %s
// REQUIRES: mpi
// RUN: alpa-mlir-run -n 3 %s --steps 2 | FileCheck %s

// CHECK: step 0: out0 (total) = [[TOTAL:.+]], {{[0-9.]+}} ms
// CHECK-NEXT: step 1: out0 (total) = [[TOTAL]], {{[0-9.]+}} ms
module attributes {alpa.level = "split", alpa.microbatches = 2 : i64,
    alpa.stages = [{mesh = "stage_0", devices = array<i64: 0, 1>}, {mesh = "stage_1", devices = array<i64: 2>}]} {
  sdy.mesh @stage_0 = <["x"=2]>
  sdy.mesh @stage_1 = <["x"=1]>
  func.func private @stage_0_forward(%a: tensor<4x3xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>})
      -> (tensor<4x3xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>})
      attributes {mesh_shape = #sdy.mesh<["x"=2]>} {
    %0 = stablehlo.multiply %a, %a : tensor<4x3xf32>
    return %0 : tensor<4x3xf32>
  }
  func.func private @stage_1_forward(%a: tensor<4x3xf32>) -> tensor<f32> attributes {mesh_shape = #sdy.mesh<["x"=1]>} {
    %z = stablehlo.constant dense<0.0> : tensor<f32>
    %0 = stablehlo.reduce(%a init: %z) applies stablehlo.add across dimensions = [0, 1] : (tensor<4x3xf32>, tensor<f32>) -> tensor<f32>
    return %0 : tensor<f32>
  }
  func.func public @main(%x: !mpmd.mesh_tensor<"stage_0", tensor<8x3xf32>, sharding=<@stage_0, [{"x"}, {}]>> {alpa.role = "batch"})
      -> (!mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>> {jax.result_info = "total"})
      attributes {topology = #mpmd.topology<<"stage_0" : <["x"=2]>>, <"stage_1" : <["x"=1]>>>} {
    %0 = "alpa.microbatch"(%x) {alpa.dim = 0 : i64, alpa.id = 0 : i64}
        : (!mpmd.mesh_tensor<"stage_0", tensor<8x3xf32>, sharding=<@stage_0, [{"x"}, {}]>>)
        -> !mpmd.mesh_tensor<"stage_0", tensor<4x3xf32>, sharding=<@stage_0, [{"x"}, {}]>>
    %1 = mpmd.fragment_call<mesh="stage_0", origin=["forward"]> @stage_0_forward(%0) {alpa.id = 1 : i64, alpa.phase = "forward", alpa.stage = 0 : i64}
        : (!mpmd.mesh_tensor<"stage_0", tensor<4x3xf32>, sharding=<@stage_0, [{"x"}, {}]>>)
        -> !mpmd.mesh_tensor<"stage_0", tensor<4x3xf32>, sharding=<@stage_0, [{"x"}, {}]>>
    %2 = mpmd.transfer {alpa.id = 2 : i64, alpa.phase = "forward"} %1
        : (!mpmd.mesh_tensor<"stage_0", tensor<4x3xf32>, sharding=<@stage_0, [{"x"}, {}]>>)
        -> !mpmd.mesh_tensor<"stage_1", tensor<4x3xf32>, sharding=<@stage_1, [{}, {}]>>
    %3 = mpmd.fragment_call<mesh="stage_1", origin=["forward"]> @stage_1_forward(%2) {alpa.id = 3 : i64, alpa.phase = "forward", alpa.stage = 1 : i64}
        : (!mpmd.mesh_tensor<"stage_1", tensor<4x3xf32>, sharding=<@stage_1, [{}, {}]>>)
        -> !mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>>
    %4 = "alpa.accumulate"(%3) {alpa.combine = "add", alpa.id = 4 : i64}
        : (!mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>>) -> !mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>>
    return %4 : !mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>>
  }
}
