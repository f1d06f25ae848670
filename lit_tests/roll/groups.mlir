// RUN: alpa-mlir-opt %s --alpa-normalize="unroll-layers=4" | FileCheck %s --check-prefix=ROUND
// RUN: alpa-mlir-opt %s --alpa-normalize="unroll-layers=4" --alpa-roll | FileCheck %s --check-prefix=LOOP

// Eight layers in four groups: of each one round stands, with its slices of the group's part.
// ROUND-COUNT-1: alpa.loop_enter
// ROUND: [[PART:%.*]] = stablehlo.slice %arg0 [0:2, 0:4]
// ROUND: [[ROW:%.*]] = "alpa.loop_slice"([[PART]]) {alpa.trips = 2 : i64} : (tensor<2x4xf32>) -> tensor<4xf32>
// ROUND: [[TANH:%.*]] = stablehlo.tanh
// ROUND: [[LEFT:%.*]] = "alpa.loop_leave"({{.*}}) {alpa.trips = 2 : i64}
// ROUND: "alpa.loop_stack"({{.*}}) {alpa.trips = 2 : i64} : (tensor<4xf32>) -> tensor<2x4xf32>
// ROUND: "alpa.loop_enter"([[LEFT]])
// ROUND: stablehlo.slice %arg0 [2:4, 0:4]
// ROUND-NOT: stablehlo.while

// LOOP-COUNT-4: stablehlo.while
// LOOP-NOT: stablehlo.while
// LOOP-NOT: alpa.loop_
func.func @main(%w: tensor<8x4xf32> {alpa.role = "state", alpa.updates = 0 : i64},
                %x: tensor<1x4xf32> {alpa.role = "batch"}) -> (tensor<8x4xf32>, tensor<1x4xf32>) {
  %first = stablehlo.constant dense<0> : tensor<i64>
  %one = stablehlo.constant dense<1> : tensor<i64>
  %eight = stablehlo.constant dense<8> : tensor<i64>
  %zeros = stablehlo.constant dense<0.0> : tensor<8x4xf32>
  %loop:3 = stablehlo.while(%i = %first, %h = %x, %s = %zeros) : tensor<i64>, tensor<1x4xf32>, tensor<8x4xf32>
   cond {
    %less = stablehlo.compare LT, %i, %eight : (tensor<i64>, tensor<i64>) -> tensor<i1>
    stablehlo.return %less : tensor<i1>
  } do {
    %row = stablehlo.dynamic_slice %w, %i, %first, sizes = [1, 4] : (tensor<8x4xf32>, tensor<i64>, tensor<i64>) -> tensor<1x4xf32>
    %m = stablehlo.multiply %h, %row : tensor<1x4xf32>
    %t = stablehlo.tanh %m : tensor<1x4xf32>
    %n = stablehlo.dynamic_update_slice %s, %t, %i, %first : (tensor<8x4xf32>, tensor<1x4xf32>, tensor<i64>, tensor<i64>) -> tensor<8x4xf32>
    %j = stablehlo.add %i, %one : tensor<i64>
    stablehlo.return %j, %t, %n : tensor<i64>, tensor<1x4xf32>, tensor<8x4xf32>
  }
  return %loop#2, %loop#1 : tensor<8x4xf32>, tensor<1x4xf32>
}
