// Who sends which box to whom: parts for replicas, what is too small for parts, equal transfers on one route.
// RUN: alpa-mlir-opt %s --alpa-route=smallest-part=16 | FileCheck %s
// RUN: alpa-mlir-opt %s --alpa-route | FileCheck %s --check-prefix=SMALL
// RUN: not alpa-mlir-opt %S/../split/mlp.mlir --alpa-route 2>&1 | FileCheck %s --check-prefix=UNSPLIT

module attributes {alpa.level = "split", alpa.microbatches = 1 : i64, alpa.stages = [{mesh = "stage_0", devices = array<i64: 0, 1>}, {mesh = "stage_1", devices = array<i64: 2, 3>}]} {
  sdy.mesh @stage_0 = <["x"=2]>
  sdy.mesh @stage_1 = <["x"=2]>
  // The second transfer takes the route of the first, the third one of its own.
  // CHECK: mpmd.transfer {alpa.bytes = 64 : i64, alpa.id = 0 : i64, alpa.phase = "update", alpa.route = 0 : i64}
  // CHECK: mpmd.transfer {alpa.bytes = 64 : i64, alpa.id = 1 : i64, alpa.phase = "update", alpa.route = 0 : i64}
  // CHECK: mpmd.transfer {alpa.bytes = 4 : i64, alpa.id = 2 : i64, alpa.phase = "update", alpa.route = 1 : i64}
  func.func public @main(%a: !mpmd.mesh_tensor<"stage_0", tensor<4x4xf32>, sharding=<@stage_0, [{}, {"x"}]>> {alpa.role = "constant"}, %b: !mpmd.mesh_tensor<"stage_1", tensor<4x4xf32>, sharding=<@stage_1, [{}, {"x"}]>> {alpa.role = "constant"}, %c: !mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>> {alpa.role = "constant"}) -> (!mpmd.mesh_tensor<"stage_1", tensor<4x4xf32>, sharding=<@stage_1, [{}, {}]>>, !mpmd.mesh_tensor<"stage_0", tensor<4x4xf32>, sharding=<@stage_0, [{}, {}]>>, !mpmd.mesh_tensor<"stage_0", tensor<f32>, sharding=<@stage_0, []>>) attributes {topology = #mpmd.topology<<"stage_0" : <["x"=2]>>, <"stage_1" : <["x"=2]>>>} {
    %0 = mpmd.transfer {alpa.id = 0 : i64, alpa.phase = "update"} %a : (!mpmd.mesh_tensor<"stage_0", tensor<4x4xf32>, sharding=<@stage_0, [{}, {"x"}]>>) -> !mpmd.mesh_tensor<"stage_1", tensor<4x4xf32>, sharding=<@stage_1, [{}, {}]>>
    %1 = mpmd.transfer {alpa.id = 1 : i64, alpa.phase = "update"} %b : (!mpmd.mesh_tensor<"stage_1", tensor<4x4xf32>, sharding=<@stage_1, [{}, {"x"}]>>) -> !mpmd.mesh_tensor<"stage_0", tensor<4x4xf32>, sharding=<@stage_0, [{}, {}]>>
    %2 = mpmd.transfer {alpa.id = 2 : i64, alpa.phase = "update"} %c : (!mpmd.mesh_tensor<"stage_1", tensor<f32>, sharding=<@stage_1, []>>) -> !mpmd.mesh_tensor<"stage_0", tensor<f32>, sharding=<@stage_0, []>>
    return %0, %1, %2 : !mpmd.mesh_tensor<"stage_1", tensor<4x4xf32>, sharding=<@stage_1, [{}, {}]>>, !mpmd.mesh_tensor<"stage_0", tensor<4x4xf32>, sharding=<@stage_0, [{}, {}]>>, !mpmd.mesh_tensor<"stage_0", tensor<f32>, sharding=<@stage_0, []>>
  }
}

// Cut along the dimension that the source splits: each device sends its tile whole to one replica, and these exchange.
// CHECK: "alpa.route"() ({
// CHECK-NEXT: "alpa.move"() {from = 0 : i64, start = array<i64: 0, 0>, stop = array<i64: 4, 2>, to = 0 : i64}
// CHECK-NEXT: "alpa.move"() {from = 1 : i64, start = array<i64: 0, 2>, stop = array<i64: 4, 4>, to = 1 : i64}
// CHECK-NEXT: "alpa.spread"() {from = 0 : i64, start = array<i64: 0, 0>, stop = array<i64: 4, 2>, to = array<i64: 1>}
// CHECK-NEXT: "alpa.spread"() {from = 1 : i64, start = array<i64: 0, 2>, stop = array<i64: 4, 4>, to = array<i64: 0>}
// CHECK-NEXT: }) {across = 64 : i64, id = 0 : i64, inside = 64 : i64}
// CHECK-NEXT: "alpa.route"() ({
// CHECK-NEXT: "alpa.move"() {from = 0 : i64, start = array<i64>, stop = array<i64>, to = 0 : i64}
// CHECK-NEXT: "alpa.spread"() {from = 0 : i64, start = array<i64>, stop = array<i64>, to = array<i64: 1>}
// CHECK-NEXT: }) {across = 4 : i64, id = 1 : i64, inside = 4 : i64}

// SMALL: "alpa.route"() ({
// SMALL-NEXT: "alpa.move"() {from = 0 : i64, start = array<i64: 0, 0>, stop = array<i64: 4, 2>, to = 0 : i64}
// SMALL-NEXT: "alpa.move"() {from = 1 : i64, start = array<i64: 0, 2>, stop = array<i64: 4, 4>, to = 0 : i64}
// SMALL-NEXT: "alpa.spread"() {from = 0 : i64, start = array<i64: 0, 0>, stop = array<i64: 4, 4>, to = array<i64: 1>}

// UNSPLIT: error: alpa-route needs a split module (alpa.level is 'sharded'): run alpa-split first
