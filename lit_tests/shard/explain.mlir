// RUN: alpa-mlir-opt %s --alpa-normalize --alpa-explain="mesh=4 cluster=a100 memory=1MB only=%up;%w what-if='arg1=[{x},{}] | arg0=[{},{}]; arg1=[{},{}]'" -o %t 2>&1 | FileCheck %s
// RUN: alpa-mlir-opt %s --alpa-normalize --alpa-shard="mesh=4 cluster=a100 memory=1MB explain=stablehlo.tanh" -o %t 2>&1 | FileCheck --check-prefix=TANH %s
// RUN: not alpa-mlir-opt %s --alpa-normalize --alpa-explain="mesh=4 only=%none" 2>&1 | FileCheck --check-prefix=NONE %s

func.func public @main(%x: tensor<64x512xf32>, %w: tensor<512x512xf32>, %v: tensor<512x512xf32>) -> tensor<64x512xf32> {
  // CHECK: explain.mlir:7:9: remark: stablehlo.dot_general [i,k],[k,j]->[i,j] i=64 j=512 k=512 (add): x on j:
  %up = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<64x512xf32>, tensor<512x512xf32>) -> tensor<64x512xf32>
  // CHECK-NEXT: note: compute
  // CHECK-NEXT: note: holds 32.77 kB per device
  // CHECK-NEXT: note: runner-up: all devices alike: {{.*}} us a step (+25 %), with {{[0-9]}} other decisions changed
  // CHECK-NEXT: note: runner-up: compute
  // CHECK-NEXT: note: runner-up: operand 1 from [{},{x}] to [{},{}]: all_gather over x 13.62 us
  // TANH: explain.mlir:16:10: remark: stablehlo.tanh [i,j]->[i,j] i=64 j=512: x on j:
  // TANH-NEXT: note: compute
  // TANH-NOT: remark
  %act = stablehlo.tanh %up : tensor<64x512xf32>
  %down = stablehlo.dot_general %act, %v, contracting_dims = [1] x [0] : (tensor<64x512xf32>, tensor<512x512xf32>) -> tensor<64x512xf32>
  return %down : tensor<64x512xf32>
}
// CHECK: remark: arg1: [{},{x}]
// CHECK: remark: what if arg1=[{x},{}]: 14.91 us instead of 11.92 us a step (+25 %),
// CHECK: note: arg1: [{x},{}] instead of [{},{x}]
// CHECK: remark: what if arg0=[{},{}]; arg1=[{},{}]: it cannot be: stage 0 does not fit in 1 MB per device on mesh 4: it needs at least 1.50733 MB
// CHECK: note: it would fit without this (0.720896 MB): arg1=[{},{}]
// NONE: explain.mlir:1:1: error: no value is called %none
