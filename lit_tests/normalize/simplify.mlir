// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file | FileCheck %s
// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file | alpa-mlir-opt --alpa-normalize --split-input-file | FileCheck %s

// @removes_identities
// CHECK-LABEL: func.func public @main(%arg0: tensor<4x8xf32>
// CHECK-NEXT: return %arg0, %arg0, %arg0, %arg0, %arg0, %arg0, %arg0, %arg0
func.func public @removes_identities(%a: tensor<4x8xf32>)
    -> (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>) {
  %0 = stablehlo.transpose %a, dims = [0, 1] : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %1 = stablehlo.reshape %a : (tensor<4x8xf32>) -> tensor<32xf32>
  %2 = stablehlo.reshape %1 : (tensor<32xf32>) -> tensor<4x8xf32>
  %3 = stablehlo.convert %a : tensor<4x8xf32>
  %4 = stablehlo.broadcast_in_dim %a, dims = [0, 1] : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %5 = stablehlo.slice %a [0:4, 0:8] : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %z = stablehlo.constant dense<0.0> : tensor<f32>
  %6 = stablehlo.pad %a, %z, low = [0, 0], high = [0, 0], interior = [0, 0] : (tensor<4x8xf32>, tensor<f32>) -> tensor<4x8xf32>
  %7 = stablehlo.concatenate %a, dim = 0 : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %8 = stablehlo.negate %a : tensor<4x8xf32>
  %9 = stablehlo.negate %8 : tensor<4x8xf32>
  return %0, %2, %3, %4, %5, %6, %7, %9 : tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>
}

// -----

// @keeps_a_square_transpose_and_a_reordering_broadcast
// CHECK-LABEL: func.func public @main(%arg0: tensor<4x4xf32>
// CHECK-NEXT: stablehlo.transpose
// CHECK-NEXT: stablehlo.broadcast_in_dim
// CHECK-NEXT: return
func.func public @keeps_a_square_transpose_and_a_reordering_broadcast(%a: tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>) {
  %0 = stablehlo.transpose %a, dims = [1, 0] : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %1 = stablehlo.broadcast_in_dim %a, dims = [1, 0] : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %0, %1 : tensor<4x4xf32>, tensor<4x4xf32>
}

// -----

// @composes_transposes: of dimension i after both is what the first takes from where the second points.
// CHECK-LABEL: func.func public @main(%arg0: tensor<2x3x5xf32>
// CHECK-NEXT: stablehlo.transpose %arg0, dims = [2, 0, 1] : (tensor<2x3x5xf32>) -> tensor<5x2x3xf32>
// CHECK-NEXT: return
func.func public @composes_transposes(%a: tensor<2x3x5xf32>) -> tensor<5x2x3xf32> {
  %0 = stablehlo.transpose %a, dims = [1, 2, 0] : (tensor<2x3x5xf32>) -> tensor<3x5x2xf32>
  %1 = stablehlo.transpose %0, dims = [1, 2, 0] : (tensor<3x5x2xf32>) -> tensor<5x2x3xf32>
  return %1 : tensor<5x2x3xf32>
}

// -----

// @folds_constants
// CHECK-LABEL: func.func public @main(%arg0: tensor<4xf32>
// CHECK-NEXT: %[[C:.*]] = stablehlo.constant dense<6.000000e+00> : tensor<4xf32>
// CHECK-NEXT: stablehlo.multiply %arg0, %[[C]]
// CHECK-NEXT: return
func.func public @folds_constants(%a: tensor<4xf32>) -> tensor<4xf32> {
  %two = stablehlo.constant dense<2> : tensor<i32>
  %f = stablehlo.convert %two : (tensor<i32>) -> tensor<f32>
  %b = stablehlo.broadcast_in_dim %f, dims = [] : (tensor<f32>) -> tensor<4xf32>
  %three = stablehlo.constant dense<3.0> : tensor<4xf32>
  %six = stablehlo.multiply %b, %three : tensor<4xf32>
  %yes = stablehlo.compare GT, %three, %b : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xi1>
  %s = stablehlo.select %yes, %six, %b : tensor<4xi1>, tensor<4xf32>
  %0 = stablehlo.multiply %a, %s : tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// @multiplies_only_integers_by_zero: a float may be infinite.
// CHECK-LABEL: func.func public @main(%arg0: tensor<4xf32>
// CHECK: %[[F:.*]] = stablehlo.multiply %arg0
// CHECK: %[[I:.*]] = stablehlo.constant dense<0> : tensor<4xi32>
// CHECK: return %[[F]], %[[I]], %arg1
func.func public @multiplies_only_integers_by_zero(%a: tensor<4xf32>, %i: tensor<4xi32>) -> (tensor<4xf32>, tensor<4xi32>, tensor<4xi32>) {
  %zf = stablehlo.constant dense<0.0> : tensor<4xf32>
  %zi = stablehlo.constant dense<0> : tensor<4xi32>
  %0 = stablehlo.multiply %a, %zf : tensor<4xf32>
  %1 = stablehlo.multiply %i, %zi : tensor<4xi32>
  %2 = stablehlo.add %zi, %i : tensor<4xi32>
  return %0, %1, %2 : tensor<4xf32>, tensor<4xi32>, tensor<4xi32>
}

// -----

// @converts_back_only_what_was_widened
// CHECK-LABEL: func.func public @main(%arg0: tensor<4xbf16>
// CHECK-NEXT: stablehlo.convert %arg1 : (tensor<4xf32>) -> tensor<4xbf16>
// CHECK-NEXT: %[[B:.*]] = stablehlo.convert %{{.*}} : (tensor<4xbf16>) -> tensor<4xf32>
// CHECK-NEXT: return %arg0, %[[B]]
func.func public @converts_back_only_what_was_widened(%a: tensor<4xbf16>, %b: tensor<4xf32>) -> (tensor<4xbf16>, tensor<4xf32>) {
  %0 = stablehlo.convert %a : (tensor<4xbf16>) -> tensor<4xf32>
  %1 = stablehlo.convert %0 : (tensor<4xf32>) -> tensor<4xbf16>
  %2 = stablehlo.convert %b : (tensor<4xf32>) -> tensor<4xbf16>
  %3 = stablehlo.convert %2 : (tensor<4xbf16>) -> tensor<4xf32>
  return %1, %3 : tensor<4xbf16>, tensor<4xf32>
}

// -----

// @slices_at_clamped_constants
// CHECK-LABEL: func.func public @main(%arg0: tensor<8x4xf32>
// CHECK-NEXT: stablehlo.slice %arg0 [6:8, 0:4]
// CHECK-NEXT: return
func.func public @slices_at_clamped_constants(%a: tensor<8x4xf32>) -> tensor<2x4xf32> {
  %i = stablehlo.constant dense<7> : tensor<i32>
  %j = stablehlo.constant dense<-1> : tensor<i32>
  %0 = stablehlo.dynamic_slice %a, %i, %j, sizes = [2, 4] : (tensor<8x4xf32>, tensor<i32>, tensor<i32>) -> tensor<2x4xf32>
  return %0 : tensor<2x4xf32>
}

// -----

// @never_reassociates
// CHECK-LABEL: func.func public @main(%arg0: tensor<f32>
// CHECK: stablehlo.add
// CHECK: stablehlo.add
// CHECK: stablehlo.add
// CHECK-NOT: stablehlo.add
func.func public @never_reassociates(%a: tensor<f32>) -> tensor<f32> {
  %c = stablehlo.constant dense<1.0> : tensor<f32>
  %0 = stablehlo.add %a, %c : tensor<f32>
  %1 = stablehlo.add %0, %c : tensor<f32>
  %2 = stablehlo.add %c, %1 : tensor<f32>
  return %2 : tensor<f32>
}

// -----

// Frontends wrap indices that may be negative.
// @knows_what_an_iota_counts
// CHECK-LABEL: func.func public @main(
// CHECK-NEXT: [[I:%.*]] = stablehlo.iota dim = 0 : tensor<8x4xi32>
// CHECK-NEXT: return [[I]]
func.func public @knows_what_an_iota_counts() -> tensor<8x4xi32> {
  %zero = stablehlo.constant dense<0> : tensor<8x1xi32>
  %eight = stablehlo.constant dense<8> : tensor<8x1xi32>
  %0 = stablehlo.iota dim = 0 : tensor<8xi32>
  %1 = stablehlo.reshape %0 : (tensor<8xi32>) -> tensor<8x1xi32>
  %2 = stablehlo.compare LT, %1, %zero : (tensor<8x1xi32>, tensor<8x1xi32>) -> tensor<8x1xi1>
  %3 = stablehlo.add %1, %eight : tensor<8x1xi32>
  %4 = stablehlo.select %2, %3, %1 : tensor<8x1xi1>, tensor<8x1xi32>
  %5 = stablehlo.broadcast_in_dim %4, dims = [0, 1] : (tensor<8x1xi32>) -> tensor<8x4xi32>
  return %5 : tensor<8x4xi32>
}

// -----

// @takes_one_number
// CHECK-LABEL: func.func public @main(
// CHECK-DAG: stablehlo.constant dense<3.000000e+00> : tensor<1x4xf32>
// CHECK-DAG: stablehlo.constant dense<-7> : tensor<1x1xi32>
// CHECK-NEXT: return
func.func public @takes_one_number() -> (tensor<1x4xf32>, tensor<1x1xi32>) {
  %0 = stablehlo.iota dim = 0 : tensor<8x4xf32>
  %1 = stablehlo.slice %0 [3:4, 0:4] : (tensor<8x4xf32>) -> tensor<1x4xf32>
  %2 = stablehlo.constant dense<[[1, 2, 3], [4, -7, 6]]> : tensor<2x3xi32>
  %3 = stablehlo.slice %2 [1:2, 1:2] : (tensor<2x3xi32>) -> tensor<1x1xi32>
  return %1, %3 : tensor<1x4xf32>, tensor<1x1xi32>
}

// -----

// The gradient of rows that are looked up by number.
// @adds_to_a_row
// CHECK-LABEL: func.func public @main(
// CHECK: [[OLD:%[0-9]+]] = stablehlo.dynamic_slice %arg0, %arg2
// CHECK: [[NEW:%[0-9]+]] = stablehlo.add [[OLD]], %arg1
// CHECK: stablehlo.dynamic_update_slice %arg0, [[NEW]], %arg2
func.func public @adds_to_a_row(%a: tensor<8x4xf32>, %row: tensor<1x4xf32>, %i: tensor<i32>) -> tensor<8x4xf32> {
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %zeros = stablehlo.constant dense<0.0> : tensor<8x4xf32>
  %0 = stablehlo.dynamic_update_slice %zeros, %row, %i, %zero : (tensor<8x4xf32>, tensor<1x4xf32>, tensor<i32>, tensor<i32>) -> tensor<8x4xf32>
  %1 = stablehlo.add %a, %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// @sums_of_rows_are_joined
// CHECK-LABEL: func.func public @main(
// CHECK-NEXT: stablehlo.concatenate %arg0, %arg1, dim = 0
// CHECK-NEXT: return
func.func public @sums_of_rows_are_joined(%a: tensor<1x4xf32>, %b: tensor<1x4xf32>) -> tensor<2x4xf32> {
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %one = stablehlo.constant dense<1> : tensor<i32>
  %zeros = stablehlo.constant dense<0.0> : tensor<2x4xf32>
  %0 = stablehlo.dynamic_update_slice %zeros, %b, %one, %zero : (tensor<2x4xf32>, tensor<1x4xf32>, tensor<i32>, tensor<i32>) -> tensor<2x4xf32>
  %1 = stablehlo.dynamic_update_slice %zeros, %a, %zero, %zero : (tensor<2x4xf32>, tensor<1x4xf32>, tensor<i32>, tensor<i32>) -> tensor<2x4xf32>
  %2 = stablehlo.add %0, %1 : tensor<2x4xf32>
  return %2 : tensor<2x4xf32>
}
