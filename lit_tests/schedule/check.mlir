// The checker plays the lists of a plan; each rule has its own error.
// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --alpa-check-schedule

module @plays attributes {alpa.level = "plan", alpa.microbatches = 1 : i64, alpa.stages = [{devices = array<i64: 0>, mesh = "stage_0"}]} {
  sdy.mesh @stage_0 = <["x"=1]>
  func.func public @main(%arg0: !mpmd.mesh_tensor<"stage_0", tensor<8xf32>> {alpa.role = "batch"}) -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>> attributes {topology = #mpmd.topology<<"stage_0" : <["x"=1]>>>} {
    %0 = "alpa.microbatch"(%arg0) {alpa.dim = 0 : i64, alpa.id = 0 : i64} : (!mpmd.mesh_tensor<"stage_0", tensor<8xf32>>) -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>>
    %1 = "alpa.stack"(%0) {alpa.dim = 0 : i64, alpa.id = 1 : i64} : (!mpmd.mesh_tensor<"stage_0", tensor<8xf32>>) -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>>
    return %1 : !mpmd.mesh_tensor<"stage_0", tensor<8xf32>>
  }
  "alpa.schedule"() ({
    "alpa.run"() {id = 0 : i64, microbatch = 0 : i64} : () -> ()
    "alpa.accumulate"() {ids = array<i64: 1>, microbatch = 0 : i64} : () -> ()
    "alpa.free"() {microbatch = 0 : i64, values = array<i64: 0, 0>} : () -> ()
  }) {kind = "inference", mesh = "stage_0"} : () -> ()
}

// -----

// expected-error@unknown {{schedule of stage_0: accumulation 1 of microbatch 0 is missing (S2)}}
module @misses_a_part attributes {alpa.level = "plan", alpa.microbatches = 1 : i64, alpa.stages = [{devices = array<i64: 0>, mesh = "stage_0"}]} {
  sdy.mesh @stage_0 = <["x"=1]>
  func.func public @main(%arg0: !mpmd.mesh_tensor<"stage_0", tensor<8xf32>> {alpa.role = "batch"}) -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>> attributes {topology = #mpmd.topology<<"stage_0" : <["x"=1]>>>} {
    %0 = "alpa.microbatch"(%arg0) {alpa.dim = 0 : i64, alpa.id = 0 : i64} : (!mpmd.mesh_tensor<"stage_0", tensor<8xf32>>) -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>>
    %1 = "alpa.stack"(%0) {alpa.dim = 0 : i64, alpa.id = 1 : i64} : (!mpmd.mesh_tensor<"stage_0", tensor<8xf32>>) -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>>
    return %1 : !mpmd.mesh_tensor<"stage_0", tensor<8xf32>>
  }
  "alpa.schedule"() ({
    "alpa.run"() {id = 0 : i64, microbatch = 0 : i64} : () -> ()
    "alpa.free"() {microbatch = 0 : i64, values = array<i64: 0, 0>} : () -> ()
  }) {kind = "inference", mesh = "stage_0"} : () -> ()
}
