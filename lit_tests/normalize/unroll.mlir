// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file 2> %t | filecheck %s
// RUN: filecheck --check-prefix=SAID %s < %t
// RUN: alpa-mlir-opt %s --alpa-normalize="unroll=1" --split-input-file 2> /dev/null | filecheck --check-prefix=KEPT %s
// RUN: alpa-mlir-opt %s --alpa-normalize="unroll=2" --split-input-file 2> %t.more > /dev/null
// RUN: filecheck --check-prefix=LAYERS %s < %t.more

// A loop over layers may become ten times as many ops.
// LAYERS: remark: unrolled: 2 rounds of 7 ops
// LAYERS: remark: not unrolled: more than unroll=2 ops would come of it

// What `scan` makes: slices of stacked weights, a stack of the values before each layer, read again from its top.
// CHECK-LABEL: func.func public @main
// CHECK-NOT: stablehlo.while
// CHECK: %[[W0:.*]] = stablehlo.slice %arg0 [0:1, 0:4, 0:4]
// CHECK: %[[M0:.*]] = stablehlo.reshape %[[W0]]
// CHECK: %[[X1:.*]] = stablehlo.dot_general %arg1, %[[M0]]
// CHECK: stablehlo.slice %arg0 [1:2, 0:4, 0:4]
// CHECK: %[[X2:.*]] = stablehlo.dot_general %[[X1]]
// CHECK: %[[S:.*]] = stablehlo.add %[[X1]], %[[X2]]
// CHECK: return %[[S]]
// SAID: unroll.mlir:[[# @LINE + 7]]:10: remark: unrolled: 2 rounds of 7 ops
// KEPT: stablehlo.while
func.func public @scan(%w: tensor<2x4x4xf32>, %x: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %one = stablehlo.constant dense<1> : tensor<i32>
  %two = stablehlo.constant dense<2> : tensor<i32>
  %stack = stablehlo.constant dense<0.0> : tensor<2x8x4xf32>
  %r:3 = stablehlo.while(%i = %zero, %h = %x, %s = %stack) : tensor<i32>, tensor<8x4xf32>, tensor<2x8x4xf32>
  cond {
    %more = stablehlo.compare LT, %i, %two : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %more : tensor<i1>
  } do {
    %part = stablehlo.dynamic_slice %w, %i, %zero, %zero, sizes = [1, 4, 4] : (tensor<2x4x4xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x4xf32>
    %m = stablehlo.reshape %part : (tensor<1x4x4xf32>) -> tensor<4x4xf32>
    %kept = stablehlo.broadcast_in_dim %h, dims = [1, 2] : (tensor<8x4xf32>) -> tensor<1x8x4xf32>
    %stacked = stablehlo.dynamic_update_slice %s, %kept, %i, %zero, %zero : (tensor<2x8x4xf32>, tensor<1x8x4xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<2x8x4xf32>
    %y = stablehlo.dot_general %h, %m, contracting_dims = [1] x [0] : (tensor<8x4xf32>, tensor<4x4xf32>) -> tensor<8x4xf32>
    %next = stablehlo.add %i, %one : tensor<i32>
    stablehlo.return %next, %y, %stacked : tensor<i32>, tensor<8x4xf32>, tensor<2x8x4xf32>
  }
  %top = stablehlo.slice %r#2 [1:2, 0:8, 0:4] : (tensor<2x8x4xf32>) -> tensor<1x8x4xf32>
  %last = stablehlo.reshape %top : (tensor<1x8x4xf32>) -> tensor<8x4xf32>
  %sum = stablehlo.add %last, %r#1 : tensor<8x4xf32>
  return %sum : tensor<8x4xf32>
}

// -----

// Loops within loops; counters that run down.
// CHECK-LABEL: func.func public @main
// CHECK-COUNT-6: stablehlo.tanh
// CHECK-NOT: stablehlo.tanh
func.func public @nested(%x: tensor<4xf32>) -> tensor<4xf32> {
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %one = stablehlo.constant dense<1> : tensor<i32>
  %two = stablehlo.constant dense<2> : tensor<i32>
  %three = stablehlo.constant dense<3> : tensor<i32>
  %r:2 = stablehlo.while(%i = %three, %h = %x) : tensor<i32>, tensor<4xf32>
  cond {
    %more = stablehlo.compare GT, %i, %zero : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %more : tensor<i1>
  } do {
    %s:2 = stablehlo.while(%j = %zero, %g = %h) : tensor<i32>, tensor<4xf32>
    cond {
      %more = stablehlo.compare LT, %j, %two : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %more : tensor<i1>
    } do {
      %y = stablehlo.tanh %g : tensor<4xf32>
      %next = stablehlo.add %j, %one : tensor<i32>
      stablehlo.return %next, %y : tensor<i32>, tensor<4xf32>
    }
    %next = stablehlo.subtract %i, %one : tensor<i32>
    stablehlo.return %next, %s#1 : tensor<i32>, tensor<4xf32>
  }
  return %r#1 : tensor<4xf32>
}

// -----

// How often this one runs depends on the data, and this never ends: both stay.
// CHECK-LABEL: func.func public @main
// CHECK-COUNT-2: stablehlo.while
func.func public @unknown(%n: tensor<i32>, %x: tensor<4xf32>) -> tensor<4xf32> {
  %one = stablehlo.constant dense<1> : tensor<i32>
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %r:2 = stablehlo.while(%i = %zero, %h = %x) : tensor<i32>, tensor<4xf32>
  cond {
    %more = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %more : tensor<i1>
  } do {
    %y = stablehlo.tanh %h : tensor<4xf32>
    %next = stablehlo.add %i, %one : tensor<i32>
    stablehlo.return %next, %y : tensor<i32>, tensor<4xf32>
  }
  %s:2 = stablehlo.while(%i = %zero, %h = %r#1) : tensor<i32>, tensor<4xf32>
  cond {
    %more = stablehlo.compare EQ, %i, %zero : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %more : tensor<i1>
  } do {
    %y = stablehlo.tanh %h : tensor<4xf32>
    stablehlo.return %i, %y : tensor<i32>, tensor<4xf32>
  }
  return %s#1 : tensor<4xf32>
}
