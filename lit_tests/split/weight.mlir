// Backward cut in two for zero-bubble schedules: what stage 0 waits for, and the gradients of parameters.
// RUN: alpa-mlir-opt %S/mlp.mlir --alpa-split=weight-apart=true --alpa-schedule=kind=zero-bubble --alpa-check-schedule | FileCheck %s
// RUN: not alpa-mlir-opt %S/mlp.mlir --alpa-split=weight-apart=true --alpa-schedule=kind=1f1b 2>&1 | FileCheck %s --check-prefix=WHOLE
// RUN: not alpa-mlir-opt %S/mlp.mlir --alpa-split --alpa-schedule=kind=zigzag 2>&1 | FileCheck %s --check-prefix=UNKNOWN

// The last stage's backward part is one product, by the weights; the other product, by its inputs, can wait.
// CHECK-LABEL: func.func private @stage_1_backward
// CHECK: dot_general {{.*}} contracting_dims = [1] x [1]
// CHECK-NOT: dot_general
// Nobody waits for stage 0: all of its backward pass is the weight part.
// CHECK-LABEL: func.func private @stage_0_weight
// CHECK-LABEL: func.func private @stage_1_weight
// CHECK: dot_general {{.*}} contracting_dims = [0] x [0]
// CHECK-LABEL: func.func public @main(
// CHECK-NOT: @stage_0_backward
// CHECK: mpmd.fragment_call<mesh="stage_1", origin=["weight"]> @stage_1_weight({{.*}}alpa.phase = "weight", alpa.stage = 1 : i64}
// CHECK: }) {kind = "zero-bubble", mesh = "stage_0"}

// WHOLE: error: schedule=1f1b runs the backward pass whole, but alpa-split cut it in two
// UNKNOWN: error: unknown schedule 'zigzag': expected 1f1b, eager-1f1b, gpipe, interleaved, zero-bubble, zero-bubble-h2, inference or auto
