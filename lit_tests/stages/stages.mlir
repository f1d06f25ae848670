// RUN: alpa-mlir-opt %s --alpa-stages="cluster=cpu devices-per-node=2 stages=2" | FileCheck %s
// RUN: alpa-mlir-opt %s --alpa-stages="cluster=cpu mesh=2x2" | FileCheck %s --check-prefix=MESH
// RUN: alpa-mlir-opt %s --alpa-stages="cluster=dgx-h100 nodes=1 devices-per-node=1" | FileCheck %s --check-prefix=ONE

// Two layers on two devices in two stages; both on one mesh; and one device, where nothing can be gained by a cut.

// CHECK: alpa.cost = {{.*}}alpa.level = "staged"
// CHECK-SAME: alpa.stages = [{devices = array<i64: 0>, estimate = {{.*}}, layers = array<i64: 0, 0>, memory_bytes = {{[0-9]+}} : i64, mesh = "stage_0", microbatch_seconds = {{.*}} {devices = array<i64: 1>, estimate = {{.*}}, layers = array<i64: 1, 1>
// CHECK: sdy.mesh @stage_0 = <["x"=1]>
// CHECK-NEXT: sdy.mesh @stage_1 = <["x"=1]>
// CHECK: func.func private @microbatch(
// An argument lives where its next value is made; the batch where it is used first.
// CHECK-SAME: %arg0: tensor<8x8xf32> {alpa.binding = "arg:0", alpa.stage = 0 : i64}
// CHECK-SAME: %arg1: tensor<8x8xf32> {alpa.binding = "arg:1", alpa.stage = 1 : i64}
// CHECK-SAME: %arg2: tensor<4x8xf32> {alpa.binding = "batch:2", alpa.stage = 0 : i64}
// CHECK: dot_general{{.*}}alpa.phase = "forward", alpa.stage = 0 : i64
// CHECK: dot_general{{.*}}alpa.phase = "forward", alpa.stage = 1 : i64
// CHECK: dot_general{{.*}}alpa.phase = "backward", alpa.stage = 1 : i64
// CHECK: dot_general{{.*}}alpa.phase = "backward", alpa.stage = 1 : i64
// CHECK: dot_general{{.*}}alpa.phase = "backward", alpa.stage = 0 : i64
// CHECK: func.func private @update(
// CHECK-SAME: {alpa.binding = "arg:0", alpa.stage = 0 : i64}
// CHECK-SAME: {alpa.binding = "arg:1", alpa.stage = 1 : i64}
// CHECK-SAME: {alpa.binding = "sum:0", alpa.stage = 1 : i64}
// CHECK-SAME: {alpa.binding = "sum:1", alpa.stage = 0 : i64}
// CHECK-SAME: {alpa.binding = "sum:2", alpa.stage = 1 : i64}

// MESH-NOT: alpa.cost
// MESH: alpa.stages = [{devices = array<i64: 0, 1, 2, 3>, layers = array<i64: 0, 1>, mesh = "stage_0"}]
// MESH: sdy.mesh @stage_0 = <["x"=2, "y"=2]>
// MESH-NOT: alpa.stage = 1

// ONE: alpa.stages = [{devices = array<i64: 0>, estimate = {{.*}}, layers = array<i64: 0, 1>
// ONE-NOT: @stage_1

module attributes {alpa.level = "layered", alpa.microbatches = 2 : i64} {
  func.func private @microbatch(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %x: tensor<4x8xf32> {alpa.binding = "batch:2"}) -> (tensor<f32> {alpa.binding = "sum:0"}, tensor<8x8xf32> {alpa.binding = "sum:1"}, tensor<8x8xf32> {alpa.binding = "sum:2"}) {
    %zero = stablehlo.constant {alpa.layer = 1 : i64, alpa.phase = "forward"} dense<0.0> : tensor<f32>
    %a = stablehlo.dot_general %x, %w0, contracting_dims = [1] x [0] {alpa.layer = 0 : i64, alpa.phase = "forward"} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    %y = stablehlo.dot_general %a, %w1, contracting_dims = [1] x [0] {alpa.layer = 1 : i64, alpa.phase = "forward"} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    %l = stablehlo.reduce(%y init: %zero) applies stablehlo.add across dimensions = [0, 1] {alpa.layer = 1 : i64, alpa.phase = "forward"} : (tensor<4x8xf32>, tensor<f32>) -> tensor<f32>
    %g1 = stablehlo.dot_general %a, %y, contracting_dims = [0] x [0] {alpa.layer = 1 : i64, alpa.phase = "backward"} : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
    %da = stablehlo.dot_general %y, %w1, contracting_dims = [1] x [1] {alpa.layer = 1 : i64, alpa.phase = "backward"} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    %g0 = stablehlo.dot_general %x, %da, contracting_dims = [0] x [0] {alpa.layer = 0 : i64, alpa.phase = "backward"} : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<8x8xf32>
    return %l, %g0, %g1 : tensor<f32>, tensor<8x8xf32>, tensor<8x8xf32>
  }
  func.func private @update(%w0: tensor<8x8xf32> {alpa.binding = "arg:0"}, %w1: tensor<8x8xf32> {alpa.binding = "arg:1"}, %l: tensor<f32> {alpa.binding = "sum:0"}, %g0: tensor<8x8xf32> {alpa.binding = "sum:1"}, %g1: tensor<8x8xf32> {alpa.binding = "sum:2"}) -> (tensor<8x8xf32> {alpa.binding = "out:0"}, tensor<8x8xf32> {alpa.binding = "out:1"}, tensor<f32> {alpa.binding = "out:2"}) {
    %n0 = stablehlo.subtract %w0, %g0 {alpa.layer = 0 : i64, alpa.phase = "update"} : tensor<8x8xf32>
    %n1 = stablehlo.subtract %w1, %g1 {alpa.layer = 1 : i64, alpa.phase = "update"} : tensor<8x8xf32>
    return %n0, %n1, %l : tensor<8x8xf32>, tensor<8x8xf32>, tensor<f32>
  }
  func.func public @main(%w0: tensor<8x8xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %w1: tensor<8x8xf32> {alpa.role = "state", alpa.updates = 1 : i64}, %x: tensor<8x8xf32> {alpa.role = "batch"}) {
    return
  }
}
