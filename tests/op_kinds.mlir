// One small program per StableHLO op kind: its name and the factors of its last op, as `op_kinds.render` prints them.
// abs: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// cbrt: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  %1 = stablehlo.cbrt %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// ceil: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.ceil %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// cosine: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.cosine %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// exponential: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.exponential %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// exponential_minus_one: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.exponential_minus_one %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// floor: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.floor %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// log: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  %1 = stablehlo.log %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// log_plus_one: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  %1 = stablehlo.log_plus_one %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// logistic: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.logistic %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// negate: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.negate %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// round_nearest_afz: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.round_nearest_afz %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// round_nearest_even: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.round_nearest_even %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// rsqrt: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  %1 = stablehlo.rsqrt %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// sign: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.sign %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// sine: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.sine %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// sqrt: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  %1 = stablehlo.sqrt %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// tan: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.tan %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// tanh: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.tanh %arg0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// add: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.add %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// atan2: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.atan2 %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// divide: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.divide %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// maximum: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.maximum %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// minimum: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.minimum %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// multiply: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.multiply %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// remainder: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.remainder %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// subtract: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.subtract %arg0, %arg1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// and: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi32>, %arg1: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.and %arg0, %arg1 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// or: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi32>, %arg1: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.or %arg0, %arg1 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// xor: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi32>, %arg1: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.xor %arg0, %arg1 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// shift_left: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi32>, %arg1: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.shift_left %arg0, %arg1 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// shift_right_arithmetic: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi32>, %arg1: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.shift_right_arithmetic %arg0, %arg1 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// shift_right_logical: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi32>, %arg1: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.shift_right_logical %arg0, %arg1 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// not: ij->ij
func.func public @main(%arg0: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.not %arg0 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// popcnt: ij->ij
func.func public @main(%arg0: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.popcnt %arg0 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// count_leading_zeros: ij->ij
func.func public @main(%arg0: tensor<8x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.count_leading_zeros %arg0 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// power: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.abs %arg0 : tensor<8x4xf32>
  %1 = stablehlo.power %0, %arg1 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// is_finite: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xi1> {
  %0 = stablehlo.is_finite %arg0 : (tensor<8x4xf32>) -> tensor<8x4xi1>
  return %0 : tensor<8x4xi1>
}

// -----

// convert: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xbf16> {
  %0 = stablehlo.convert %arg0 : (tensor<8x4xf32>) -> tensor<8x4xbf16>
  return %0 : tensor<8x4xbf16>
}

// -----

// real: ij->ij
func.func public @main(%arg0: tensor<8x4xcomplex<f32>>) -> tensor<8x4xf32> {
  %0 = stablehlo.real %arg0 : (tensor<8x4xcomplex<f32>>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// imag: ij->ij
func.func public @main(%arg0: tensor<8x4xcomplex<f32>>) -> tensor<8x4xf32> {
  %0 = stablehlo.imag %arg0 : (tensor<8x4xcomplex<f32>>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// complex: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xcomplex<f32>> {
  %0 = stablehlo.complex %arg0, %arg1 : tensor<8x4xcomplex<f32>>
  return %0 : tensor<8x4xcomplex<f32>>
}

// -----

// compare: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xi1> {
  %0 = stablehlo.compare LT, %arg0, %arg1 : (tensor<8x4xf32>, tensor<8x4xf32>) -> tensor<8x4xi1>
  return %0 : tensor<8x4xi1>
}

// -----

// select: ij,ij,ij->ij
func.func public @main(%arg0: tensor<8x4xi1>, %arg1: tensor<8x4xf32>, %arg2: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.select %arg0, %arg1, %arg2 : tensor<8x4xi1>, tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// select_scalar: ,ij,ij->ij
func.func public @main(%arg0: tensor<i1>, %arg1: tensor<8x4xf32>, %arg2: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.select %arg0, %arg1, %arg2 : tensor<i1>, tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// clamp: ,ij,->ij
func.func public @main(%arg0: tensor<f32>, %arg1: tensor<8x4xf32>, %arg2: tensor<f32>) -> tensor<8x4xf32> {
  %0 = stablehlo.add %arg0, %arg0 : tensor<f32>
  %1 = stablehlo.clamp %arg0, %arg1, %0 : (tensor<f32>, tensor<8x4xf32>, tensor<f32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// reduce_precision: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.reduce_precision %arg0, format = e5m10 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// map: ij,ij->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = "stablehlo.map"(%arg0, %arg1) <{dimensions = array<i64: 0, 1>}> ({
  ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>):
    %1 = stablehlo.multiply %arg2, %arg3 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<8x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// bitcast_convert: ij->ij
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xi32> {
  %0 = stablehlo.bitcast_convert %arg0 : (tensor<8x4xf32>) -> tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// bitcast_convert_narrow: ij->ij!
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4x2xi16> {
  %0 = stablehlo.bitcast_convert %arg0 : (tensor<8x4xf32>) -> tensor<8x4x2xi16>
  return %0 : tensor<8x4x2xi16>
}

// -----

// broadcast_in_dim: ij->jki
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<4x6x8xf32> {
  %0 = stablehlo.broadcast_in_dim %arg0, dims = [2, 0] : (tensor<8x4xf32>) -> tensor<4x6x8xf32>
  return %0 : tensor<4x6x8xf32>
}

// -----

// broadcast_one: i1->ij
func.func public @main(%arg0: tensor<8x1xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.broadcast_in_dim %arg0, dims = [0, 1] : (tensor<8x1xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// broadcast_scalar: ->ij
func.func public @main(%arg0: tensor<f32>) -> tensor<8x4xf32> {
  %0 = stablehlo.broadcast_in_dim %arg0, dims = [] : (tensor<f32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// reshape_merge: ijk->(ij)k
func.func public @main(%arg0: tensor<2x4x6xf32>) -> tensor<8x6xf32> {
  %0 = stablehlo.reshape %arg0 : (tensor<2x4x6xf32>) -> tensor<8x6xf32>
  return %0 : tensor<8x6xf32>
}

// -----

// reshape_split: (ij)k->ijk
func.func public @main(%arg0: tensor<8x6xf32>) -> tensor<2x4x6xf32> {
  %0 = stablehlo.reshape %arg0 : (tensor<8x6xf32>) -> tensor<2x4x6xf32>
  return %0 : tensor<2x4x6xf32>
}

// -----

// reshape_regroup: (i!)(!j)->(i!)(!j)
func.func public @main(%arg0: tensor<4x6xf32>) -> tensor<6x4xf32> {
  %0 = stablehlo.reshape %arg0 : (tensor<4x6xf32>) -> tensor<6x4xf32>
  return %0 : tensor<6x4xf32>
}

// -----

// reshape_shift: (ij)k->i(jk)
func.func public @main(%arg0: tensor<12x8xf32>) -> tensor<4x24xf32> {
  %0 = stablehlo.reshape %arg0 : (tensor<12x8xf32>) -> tensor<4x24xf32>
  return %0 : tensor<4x24xf32>
}

// -----

// reshape_ones: i1j->1ij
func.func public @main(%arg0: tensor<8x1x4xf32>) -> tensor<1x8x4xf32> {
  %0 = stablehlo.reshape %arg0 : (tensor<8x1x4xf32>) -> tensor<1x8x4xf32>
  return %0 : tensor<1x8x4xf32>
}

// -----

// transpose: ijk->kij
func.func public @main(%arg0: tensor<2x4x6xf32>) -> tensor<6x2x4xf32> {
  %0 = stablehlo.transpose %arg0, dims = [2, 0, 1] : (tensor<2x4x6xf32>) -> tensor<6x2x4xf32>
  return %0 : tensor<6x2x4xf32>
}

// -----

// reverse: !i->!i
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.reverse %arg0, dims = [0] : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// slice: !i->!i
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<3x4xf32> {
  %0 = stablehlo.slice %arg0 [2:8:2, 0:4] : (tensor<8x4xf32>) -> tensor<3x4xf32>
  return %0 : tensor<3x4xf32>
}

// -----

// pad: !i,->!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<f32>) -> tensor<12x4xf32> {
  %0 = stablehlo.pad %arg0, %arg1, low = [1, 0], high = [3, 0], interior = [0, 0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<12x4xf32>
  return %0 : tensor<12x4xf32>
}

// -----

// pad_interior: !i,->!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<f32>) -> tensor<16x4xf32> {
  %0 = stablehlo.pad %arg0, %arg1, low = [0, 0], high = [1, 0], interior = [1, 0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<16x4xf32>
  return %0 : tensor<16x4xf32>
}

// -----

// pad_nothing: ij,->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<f32>) -> tensor<8x4xf32> {
  %0 = stablehlo.pad %arg0, %arg1, low = [0, 0], high = [0, 0], interior = [0, 0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// concatenate: !i,!i->!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<4x4xf32>) -> tensor<12x4xf32> {
  %0 = stablehlo.concatenate %arg0, %arg1, dim = 0 : (tensor<8x4xf32>, tensor<4x4xf32>) -> tensor<12x4xf32>
  return %0 : tensor<12x4xf32>
}

// -----

// concatenate_slices: !i,!i->!i
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.slice %arg0 [4:8, 0:4] : (tensor<8x4xf32>) -> tensor<4x4xf32>
  %1 = stablehlo.slice %arg0 [0:4, 0:4] : (tensor<8x4xf32>) -> tensor<4x4xf32>
  %2 = stablehlo.concatenate %0, %1, dim = 0 : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<8x4xf32>
  return %2 : tensor<8x4xf32>
}

// -----

// iota: ->ij
func.func public @main() -> tensor<8x4xi32> {
  %0 = stablehlo.iota dim = 0 : tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// iota_float: ->ij
func.func public @main() -> tensor<8x4xf32> {
  %0 = stablehlo.iota dim = 1 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// iota_unsigned: ->i
func.func public @main() -> tensor<8xui32> {
  %0 = stablehlo.iota dim = 0 : tensor<8xui32>
  return %0 : tensor<8xui32>
}

// -----

// constant: ->ij
func.func public @main() -> tensor<4x2xi32> {
  %c = stablehlo.constant dense<[[1, 2], [3, 4], [5, 6], [7, 8]]> : tensor<4x2xi32>
  return %c : tensor<4x2xi32>
}

// -----

// constant_splat: ->ij
func.func public @main() -> tensor<8x4xf32> {
  %cst = stablehlo.constant dense<1.500000e+00> : tensor<8x4xf32>
  return %cst : tensor<8x4xf32>
}

// -----

// constant_bool: ->i
func.func public @main() -> tensor<4xi1> {
  %c = stablehlo.constant dense<[true, false, true, true]> : tensor<4xi1>
  return %c : tensor<4xi1>
}

// -----

// get_dimension_size: !!->
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<i32> {
  %0 = stablehlo.get_dimension_size %arg0, dim = 0 : (tensor<8x4xf32>) -> tensor<i32>
  return %0 : tensor<i32>
}

// -----

// optimization_barrier: ij,k->ij,k
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6xf32>) -> (tensor<8x4xf32>, tensor<6xf32>) {
  %0:2 = stablehlo.optimization_barrier %arg0, %arg1 : tensor<8x4xf32>, tensor<6xf32>
  return %0#0, %0#1 : tensor<8x4xf32>, tensor<6xf32>
}

// -----

// dynamic_slice: !i,,->!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<i32>) -> tensor<4x4xf32> {
  %0 = stablehlo.dynamic_slice %arg0, %arg1, %arg1, sizes = [4, 4] : (tensor<8x4xf32>, tensor<i32>, tensor<i32>) -> tensor<4x4xf32>
  return %0 : tensor<4x4xf32>
}

// -----

// dynamic_update_slice: !i,!i,,->!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<4x4xf32>, %arg2: tensor<i32>) -> tensor<8x4xf32> {
  %0 = stablehlo.dynamic_update_slice %arg0, %arg1, %arg2, %arg2 : (tensor<8x4xf32>, tensor<4x4xf32>, tensor<i32>, tensor<i32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// reduce_add: ij,->j i:add
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<4xf32> {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
  %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.add across dimensions = [0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// reduce_add_init: ij,->j i:add
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<4xf32> {
  %cst = stablehlo.constant dense<5.000000e+00> : tensor<f32>
  %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.add across dimensions = [0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// reduce_multiply: ij,->j i:mul
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<4xf32> {
  %cst = stablehlo.constant dense<1.000000e+00> : tensor<f32>
  %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.multiply across dimensions = [0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// reduce_maximum: ij,->j i:max
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<4xf32> {
  %cst = stablehlo.constant dense<0xFF800000> : tensor<f32>
  %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.maximum across dimensions = [0] : (tensor<8x4xf32>, tensor<f32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// reduce_minimum: ij,->j i:min
func.func public @main(%arg0: tensor<8x4xi32>) -> tensor<4xi32> {
  %c = stablehlo.constant dense<2147483647> : tensor<i32>
  %0 = stablehlo.reduce(%arg0 init: %c) applies stablehlo.minimum across dimensions = [0] : (tensor<8x4xi32>, tensor<i32>) -> tensor<4xi32>
  return %0 : tensor<4xi32>
}

// -----

// reduce_and: ij,->j i:and
func.func public @main(%arg0: tensor<8x4xi1>) -> tensor<4xi1> {
  %c = stablehlo.constant dense<true> : tensor<i1>
  %0 = stablehlo.reduce(%arg0 init: %c) applies stablehlo.and across dimensions = [0] : (tensor<8x4xi1>, tensor<i1>) -> tensor<4xi1>
  return %0 : tensor<4xi1>
}

// -----

// reduce_add_of_booleans: ij,->j i:or
func.func public @main(%arg0: tensor<8x4xi1>) -> tensor<4xi1> {
  %c = stablehlo.constant dense<false> : tensor<i1>
  %0 = stablehlo.reduce(%arg0 init: %c) applies stablehlo.add across dimensions = [0] : (tensor<8x4xi1>, tensor<i1>) -> tensor<4xi1>
  return %0 : tensor<4xi1>
}

// -----

// reduce_multiply_of_booleans: ij,->j i:and
func.func public @main(%arg0: tensor<8x4xi1>) -> tensor<4xi1> {
  %c = stablehlo.constant dense<true> : tensor<i1>
  %0 = stablehlo.reduce(%arg0 init: %c) applies stablehlo.multiply across dimensions = [0] : (tensor<8x4xi1>, tensor<i1>) -> tensor<4xi1>
  return %0 : tensor<4xi1>
}

// -----

// reduce_or: ij,->j i:or
func.func public @main(%arg0: tensor<8x4xi1>) -> tensor<4xi1> {
  %c = stablehlo.constant dense<false> : tensor<i1>
  %0 = stablehlo.reduce(%arg0 init: %c) applies stablehlo.or across dimensions = [0] : (tensor<8x4xi1>, tensor<i1>) -> tensor<4xi1>
  return %0 : tensor<4xi1>
}

// -----

// reduce_add_bf16: ij,->j i:add
func.func public @main(%arg0: tensor<8x4xbf16>) -> tensor<4xbf16> {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<bf16>
  %0 = stablehlo.reduce(%arg0 init: %cst) applies stablehlo.add across dimensions = [0] : (tensor<8x4xbf16>, tensor<bf16>) -> tensor<4xbf16>
  return %0 : tensor<4xbf16>
}

// -----

// reduce_two: ij,ij,,->i,i j:add
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xi32>) -> (tensor<8xf32>, tensor<8xi32>) {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
  %c = stablehlo.constant dense<0> : tensor<i32>
  %0:2 = stablehlo.reduce(%arg0 init: %cst), (%arg1 init: %c) across dimensions = [1] : (tensor<8x4xf32>, tensor<8x4xi32>, tensor<f32>, tensor<i32>) -> (tensor<8xf32>, tensor<8xi32>)
   reducer(%arg2: tensor<f32>, %arg4: tensor<f32>) (%arg3: tensor<i32>, %arg5: tensor<i32>)  {
    %1 = stablehlo.add %arg2, %arg4 : tensor<f32>
    %2 = stablehlo.add %arg3, %arg5 : tensor<i32>
    stablehlo.return %1, %2 : tensor<f32>, tensor<i32>
  }
  return %0#0, %0#1 : tensor<8xf32>, tensor<8xi32>
}

// -----

// reduce_argmax: i!,i!,,->i,i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xi32>) -> (tensor<8xf32>, tensor<8xi32>) {
  %cst = stablehlo.constant dense<-1.000000e+09> : tensor<f32>
  %c = stablehlo.constant dense<0> : tensor<i32>
  %0:2 = stablehlo.reduce(%arg0 init: %cst), (%arg1 init: %c) across dimensions = [1] : (tensor<8x4xf32>, tensor<8x4xi32>, tensor<f32>, tensor<i32>) -> (tensor<8xf32>, tensor<8xi32>)
   reducer(%arg2: tensor<f32>, %arg4: tensor<f32>) (%arg3: tensor<i32>, %arg5: tensor<i32>)  {
    %1 = stablehlo.compare GE, %arg2, %arg4 : (tensor<f32>, tensor<f32>) -> tensor<i1>
    %2 = stablehlo.select %1, %arg2, %arg4 : tensor<i1>, tensor<f32>
    %3 = stablehlo.select %1, %arg3, %arg5 : tensor<i1>, tensor<i32>
    stablehlo.return %2, %3 : tensor<f32>, tensor<i32>
  }
  return %0#0, %0#1 : tensor<8xf32>, tensor<8xi32>
}

// -----

// reduce_window_cumsum: !i,->!i
func.func public @main(%arg0: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
  %0 = "stablehlo.reduce_window"(%arg0, %cst) <{padding = dense<[[7, 0], [0, 0]]> : tensor<2x2xi64>, window_dimensions = array<i64: 8, 1>}> ({
  ^bb0(%arg1: tensor<f32>, %arg2: tensor<f32>):
    %1 = stablehlo.add %arg1, %arg2 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<f32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// reduce_window_pool: i!!j,->i!!j
func.func public @main(%arg0: tensor<4x8x8x2xf32>) -> tensor<4x4x4x2xf32> {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
  %0 = "stablehlo.reduce_window"(%arg0, %cst) <{window_dimensions = array<i64: 1, 2, 2, 1>, window_strides = array<i64: 1, 2, 2, 1>}> ({
  ^bb0(%arg1: tensor<f32>, %arg2: tensor<f32>):
    %1 = stablehlo.add %arg1, %arg2 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<4x8x8x2xf32>, tensor<f32>) -> tensor<4x4x4x2xf32>
  return %0 : tensor<4x4x4x2xf32>
}

// -----

// select_and_scatter: i!j,i!j,->i!j
func.func public @main(%arg0: tensor<4x8x2xf32>, %arg1: tensor<4x4x2xf32>) -> tensor<4x8x2xf32> {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
  %0 = "stablehlo.select_and_scatter"(%arg0, %arg1, %cst) <{window_dimensions = array<i64: 1, 2, 1>, window_strides = array<i64: 1, 2, 1>}> ({
  ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>):
    %1 = stablehlo.compare GE, %arg2, %arg3 : (tensor<f32>, tensor<f32>) -> tensor<i1>
    stablehlo.return %1 : tensor<i1>
  }, {
  ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>):
    %1 = stablehlo.add %arg2, %arg3 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<4x8x2xf32>, tensor<4x4x2xf32>, tensor<f32>) -> tensor<4x8x2xf32>
  return %0 : tensor<4x8x2xf32>
}

// -----

// dot_general: ij,jk->ik j:add
func.func public @main(%arg0: tensor<8x6xf32>, %arg1: tensor<6x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0] : (tensor<8x6xf32>, tensor<6x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// dot_general_batched: ijk,kil->ijl k:add
func.func public @main(%arg0: tensor<2x8x6xf32>, %arg1: tensor<6x2x4xf32>) -> tensor<2x8x4xf32> {
  %0 = stablehlo.dot_general %arg0, %arg1, batching_dims = [0] x [1], contracting_dims = [2] x [0] : (tensor<2x8x6xf32>, tensor<6x2x4xf32>) -> tensor<2x8x4xf32>
  return %0 : tensor<2x8x4xf32>
}

// -----

// dot_general_int: ij,jk->ik j:add
func.func public @main(%arg0: tensor<8x6xi32>, %arg1: tensor<6x4xi32>) -> tensor<8x4xi32> {
  %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0] : (tensor<8x6xi32>, tensor<6x4xi32>) -> tensor<8x4xi32>
  return %0 : tensor<8x4xi32>
}

// -----

// convolution: i!!j,11jk->i!!k j:add
func.func public @main(%arg0: tensor<4x8x8x6xf32>, %arg1: tensor<3x3x6x4xf32>) -> tensor<4x8x8x4xf32> {
  %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {pad = [[1, 1], [1, 1]]} {batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<4x8x8x6xf32>, tensor<3x3x6x4xf32>) -> tensor<4x8x8x4xf32>
  return %0 : tensor<4x8x8x4xf32>
}

// -----

// convolution_strided: i!!j,11jk->i!!k j:add
func.func public @main(%arg0: tensor<4x8x8x6xf32>, %arg1: tensor<1x1x6x4xf32>) -> tensor<4x4x4x4xf32> {
  %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {stride = [2, 2]} {batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<4x8x8x6xf32>, tensor<1x1x6x4xf32>) -> tensor<4x4x4x4xf32>
  return %0 : tensor<4x4x4x4xf32>
}

// -----

// convolution_depthwise: i!!j,111j->i!!j
func.func public @main(%arg0: tensor<4x8x8x6xf32>, %arg1: tensor<3x3x1x6xf32>) -> tensor<4x8x8x6xf32> {
  %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {pad = [[1, 1], [1, 1]]} {batch_group_count = 1 : i64, feature_group_count = 6 : i64} : (tensor<4x8x8x6xf32>, tensor<3x3x1x6xf32>) -> tensor<4x8x8x6xf32>
  return %0 : tensor<4x8x8x6xf32>
}

// -----

// convolution_grouped: i!!(jk),11k(jl)->i!!(jl) k:add
func.func public @main(%arg0: tensor<4x8x8x8xf32>, %arg1: tensor<3x3x2x8xf32>) -> tensor<4x8x8x8xf32> {
  %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {pad = [[1, 1], [1, 1]]} {batch_group_count = 1 : i64, feature_group_count = 4 : i64} : (tensor<4x8x8x8xf32>, tensor<3x3x2x8xf32>) -> tensor<4x8x8x8xf32>
  return %0 : tensor<4x8x8x8xf32>
}

// -----

// convolution_batch_groups: (ij)!!k,11k(il)->j!!(il) k:add
func.func public @main(%arg0: tensor<8x5x5x4xf32>, %arg1: tensor<3x3x4x8xf32>) -> tensor<2x5x5x8xf32> {
  %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], window = {pad = [[1, 1], [1, 1]]} {batch_group_count = 4 : i64, feature_group_count = 1 : i64} : (tensor<8x5x5x4xf32>, tensor<3x3x4x8xf32>) -> tensor<2x5x5x8xf32>
  return %0 : tensor<2x5x5x8xf32>
}

// -----

// convolution_kernel_gradient: i!!j,i!!k->11jk i:add
func.func public @main(%arg0: tensor<4x8x8x6xf32>, %arg1: tensor<4x8x8x4xf32>) -> tensor<3x3x6x4xf32> {
  %0 = stablehlo.convolution(%arg0, %arg1) dim_numbers = [f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f], window = {pad = [[1, 1], [1, 1]]} {batch_group_count = 1 : i64, feature_group_count = 1 : i64} : (tensor<4x8x8x6xf32>, tensor<4x8x8x4xf32>) -> tensor<3x3x6x4xf32>
  return %0 : tensor<3x3x6x4xf32>
}

// -----

// cholesky: i!!->i!!
func.func public @main(%arg0: tensor<4x4x4xf32>) -> tensor<4x4x4xf32> {
  %0 = stablehlo.dot_general %arg0, %arg0, batching_dims = [0] x [0], contracting_dims = [2] x [2] : (tensor<4x4x4xf32>, tensor<4x4x4xf32>) -> tensor<4x4x4xf32>
  %1 = stablehlo.iota dim = 1 : tensor<4x4x4xi32>
  %2 = stablehlo.iota dim = 2 : tensor<4x4x4xi32>
  %3 = stablehlo.compare EQ, %1, %2 : (tensor<4x4x4xi32>, tensor<4x4x4xi32>) -> tensor<4x4x4xi1>
  %4 = stablehlo.convert %3 : (tensor<4x4x4xi1>) -> tensor<4x4x4xf32>
  %5 = stablehlo.add %0, %4 : tensor<4x4x4xf32>
  %6 = stablehlo.cholesky %5, lower = true : tensor<4x4x4xf32>
  return %6 : tensor<4x4x4xf32>
}

// -----

// triangular_solve: i!!,i!!->i!!
func.func public @main(%arg0: tensor<4x4x4xf32>, %arg1: tensor<4x4x8xf32>) -> tensor<4x4x8xf32> {
  %0 = stablehlo.dot_general %arg0, %arg0, batching_dims = [0] x [0], contracting_dims = [2] x [2] : (tensor<4x4x4xf32>, tensor<4x4x4xf32>) -> tensor<4x4x4xf32>
  %1 = stablehlo.iota dim = 1 : tensor<4x4x4xi32>
  %2 = stablehlo.iota dim = 2 : tensor<4x4x4xi32>
  %3 = stablehlo.compare EQ, %1, %2 : (tensor<4x4x4xi32>, tensor<4x4x4xi32>) -> tensor<4x4x4xi1>
  %4 = stablehlo.convert %3 : (tensor<4x4x4xi1>) -> tensor<4x4x4xf32>
  %5 = stablehlo.add %0, %4 : tensor<4x4x4xf32>
  %6 = "stablehlo.triangular_solve"(%5, %arg1) <{left_side = true, lower = true, transpose_a = #stablehlo<transpose NO_TRANSPOSE>, unit_diagonal = true}> : (tensor<4x4x4xf32>, tensor<4x4x8xf32>) -> tensor<4x4x8xf32>
  return %6 : tensor<4x4x8xf32>
}

// -----

// fft: ij!->ij!
func.func public @main(%arg0: tensor<4x4x8xcomplex<f32>>) -> tensor<4x4x8xcomplex<f32>> {
  %0 = stablehlo.fft %arg0, type = FFT, length = [8] : (tensor<4x4x8xcomplex<f32>>) -> tensor<4x4x8xcomplex<f32>>
  return %0 : tensor<4x4x8xcomplex<f32>>
}

// -----

// rfft: ij!->ij!
func.func public @main(%arg0: tensor<4x4x8xf32>) -> tensor<4x4x5xcomplex<f32>> {
  %0 = stablehlo.fft %arg0, type = RFFT, length = [8] : (tensor<4x4x8xf32>) -> tensor<4x4x5xcomplex<f32>>
  return %0 : tensor<4x4x5xcomplex<f32>>
}

// -----

// batch_norm_inference: ij,j,j,j,j->ij
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.multiply %arg1, %arg1 : tensor<4xf32>
  %1 = "stablehlo.batch_norm_inference"(%arg0, %arg1, %arg1, %arg1, %0) <{epsilon = 1.000000e-01 : f32, feature_index = 1 : i64}> : (tensor<8x4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// batch_norm_training: !!,!,!->!!,!,!
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<4xf32>) -> (tensor<8x4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %output, %batch_mean, %batch_var = "stablehlo.batch_norm_training"(%arg0, %arg1, %arg1) <{epsilon = 1.000000e-01 : f32, feature_index = 1 : i64}> : (tensor<8x4xf32>, tensor<4xf32>, tensor<4xf32>) -> (tensor<8x4xf32>, tensor<4xf32>, tensor<4xf32>)
  return %output, %batch_mean, %batch_var : tensor<8x4xf32>, tensor<4xf32>, tensor<4xf32>
}

// -----

// gather_rows: !i,jk1->jki
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6x2x1xi32>) -> tensor<6x2x4xf32> {
  %0 = "stablehlo.gather"(%arg0, %arg1) <{dimension_numbers = #stablehlo.gather<offset_dims = [2], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 2>, slice_sizes = array<i64: 1, 4>}> : (tensor<8x4xf32>, tensor<6x2x1xi32>) -> tensor<6x2x4xf32>
  return %0 : tensor<6x2x4xf32>
}

// -----

// gather_windows: !i,j1->j!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6x1xi32>) -> tensor<6x2x4xf32> {
  %0 = "stablehlo.gather"(%arg0, %arg1) <{dimension_numbers = #stablehlo.gather<offset_dims = [1, 2], start_index_map = [0], index_vector_dim = 1>, slice_sizes = array<i64: 2, 4>}> : (tensor<8x4xf32>, tensor<6x1xi32>) -> tensor<6x2x4xf32>
  return %0 : tensor<6x2x4xf32>
}

// -----

// gather_batched: i!j,ik1->ikj
func.func public @main(%arg0: tensor<4x8x2xf32>, %arg1: tensor<4x6x1xi32>) -> tensor<4x6x2xf32> {
  %0 = "stablehlo.gather"(%arg0, %arg1) <{dimension_numbers = #stablehlo.gather<offset_dims = [2], collapsed_slice_dims = [1], operand_batching_dims = [0], start_indices_batching_dims = [0], start_index_map = [1], index_vector_dim = 2>, slice_sizes = array<i64: 1, 1, 2>}> : (tensor<4x8x2xf32>, tensor<4x6x1xi32>) -> tensor<4x6x2xf32>
  return %0 : tensor<4x6x2xf32>
}

// -----

// gather_two_indices: !!,i!->i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6x2xi32>) -> tensor<6xf32> {
  %c = stablehlo.constant dense<3> : tensor<6x2xi32>
  %0 = stablehlo.minimum %arg1, %c : tensor<6x2xi32>
  %1 = "stablehlo.gather"(%arg0, %0) <{dimension_numbers = #stablehlo.gather<collapsed_slice_dims = [0, 1], start_index_map = [0, 1], index_vector_dim = 1>, slice_sizes = array<i64: 1, 1>}> : (tensor<8x4xf32>, tensor<6x2xi32>) -> tensor<6xf32>
  return %1 : tensor<6xf32>
}

// -----

// scatter_add: !i,j1,ji->!i j:add
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6x1xi32>, %arg2: tensor<6x4xf32>) -> tensor<8x4xf32> {
  %0 = "stablehlo.scatter"(%arg0, %arg1, %arg2) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>}> ({
  ^bb0(%arg3: tensor<f32>, %arg4: tensor<f32>):
    %1 = stablehlo.add %arg3, %arg4 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<6x1xi32>, tensor<6x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// scatter_max: !i,j1,ji->!i j:max
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6x1xi32>, %arg2: tensor<6x4xf32>) -> tensor<8x4xf32> {
  %0 = "stablehlo.scatter"(%arg0, %arg1, %arg2) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>}> ({
  ^bb0(%arg3: tensor<f32>, %arg4: tensor<f32>):
    %1 = stablehlo.maximum %arg3, %arg4 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<6x1xi32>, tensor<6x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// scatter_multiply: !i,j1,ji->!i j:mul
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<6x1xi32>, %arg2: tensor<6x4xf32>) -> tensor<8x4xf32> {
  %0 = "stablehlo.scatter"(%arg0, %arg1, %arg2) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>}> ({
  ^bb0(%arg3: tensor<f32>, %arg4: tensor<f32>):
    %1 = stablehlo.multiply %arg3, %arg4 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<6x1xi32>, tensor<6x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// scatter_add_zero: !i,j1,ji->!i j:add
func.func public @main(%arg0: tensor<6x1xi32>, %arg1: tensor<6x4xf32>) -> tensor<8x4xf32> {
  %cst = stablehlo.constant dense<0.000000e+00> : tensor<8x4xf32>
  %0 = "stablehlo.scatter"(%cst, %arg0, %arg1) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>}> ({
  ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>):
    %1 = stablehlo.add %arg2, %arg3 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<6x1xi32>, tensor<6x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// scatter_set: !i,!1,!i->!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<4x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.iota dim = 0 : tensor<4x1xi32>
  %1 = "stablehlo.scatter"(%arg0, %0, %arg1) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = true}> ({
  ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>):
    stablehlo.return %arg3 : tensor<f32>
  }) : (tensor<8x4xf32>, tensor<4x1xi32>, tensor<4x4xf32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// scatter_batched: i!j,ik1,ikj->i!j k:add
func.func public @main(%arg0: tensor<4x8x2xf32>, %arg1: tensor<4x6x1xi32>, %arg2: tensor<4x6x2xf32>) -> tensor<4x8x2xf32> {
  %0 = "stablehlo.scatter"(%arg0, %arg1, %arg2) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [2], inserted_window_dims = [1], input_batching_dims = [0], scatter_indices_batching_dims = [0], scatter_dims_to_operand_dims = [1], index_vector_dim = 2>}> ({
  ^bb0(%arg3: tensor<f32>, %arg4: tensor<f32>):
    %1 = stablehlo.add %arg3, %arg4 : tensor<f32>
    stablehlo.return %1 : tensor<f32>
  }) : (tensor<4x8x2xf32>, tensor<4x6x1xi32>, tensor<4x6x2xf32>) -> tensor<4x8x2xf32>
  return %0 : tensor<4x8x2xf32>
}

// -----

// sort: !i,!i->!i,!i
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<8x4xi32>) -> (tensor<8x4xf32>, tensor<8x4xi32>) {
  %0:2 = "stablehlo.sort"(%arg0, %arg1) <{dimension = 0 : i64, is_stable = true}> ({
  ^bb0(%arg2: tensor<f32>, %arg3: tensor<f32>, %arg4: tensor<i32>, %arg5: tensor<i32>):
    %1 = stablehlo.compare LT, %arg2, %arg3 : (tensor<f32>, tensor<f32>) -> tensor<i1>
    stablehlo.return %1 : tensor<i1>
  }) : (tensor<8x4xf32>, tensor<8x4xi32>) -> (tensor<8x4xf32>, tensor<8x4xi32>)
  return %0#0, %0#1 : tensor<8x4xf32>, tensor<8x4xi32>
}

// -----

// top_k: i!->i!,i!
func.func public @main(%arg0: tensor<8x4xf32>) -> (tensor<8x2xf32>, tensor<8x2xi32>) {
  %0:2 = stablehlo.custom_call @mhlo.topk(%arg0) {mhlo.attributes = {k = 2 : i64, largest = true}, mhlo.version = 1 : i64} : (tensor<8x4xf32>) -> (tensor<8x2xf32>, tensor<8x2xi32>)
  return %0#0, %0#1 : tensor<8x2xf32>, tensor<8x2xi32>
}

// -----

// rng_bit_generator: !->!,!!
func.func public @main(%arg0: tensor<2x2xui32>) -> tensor<8x4xui32> {
  %0 = stablehlo.bitcast_convert %arg0 : (tensor<2x2xui32>) -> tensor<2xui64>
  %1:2 = stablehlo.rng_bit_generator %0, algorithm = THREE_FRY : (tensor<2xui64>) -> (tensor<2xui64>, tensor<8x4xui32>)
  return %1#1 : tensor<8x4xui32>
}

// -----

// while: !!,->!!,
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<i32>) -> (tensor<8x4xf32>, tensor<i32>) {
  %0:2 = stablehlo.while(%iterArg = %arg0, %iterArg_0 = %arg1) : tensor<8x4xf32>, tensor<i32>
  cond {
    %c = stablehlo.constant dense<9> : tensor<i32>
    %1 = stablehlo.compare LT, %iterArg_0, %c : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %1 : tensor<i1>
  } do {
    %c = stablehlo.constant dense<1> : tensor<i32>
    %1 = stablehlo.add %iterArg_0, %c : tensor<i32>
    %2 = stablehlo.cosine %iterArg : tensor<8x4xf32>
    stablehlo.return %2, %1 : tensor<8x4xf32>, tensor<i32>
  }
  return %0#0, %0#1 : tensor<8x4xf32>, tensor<i32>
}

// -----

// case: ->!!
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<i32>) -> tensor<8x4xf32> {
  %0 = "stablehlo.case"(%arg1) ({
    %1 = stablehlo.sine %arg0 : tensor<8x4xf32>
    stablehlo.return %1 : tensor<8x4xf32>
  }, {
    %1 = stablehlo.cosine %arg0 : tensor<8x4xf32>
    stablehlo.return %1 : tensor<8x4xf32>
  }) : (tensor<i32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// if: ->!!
func.func public @main(%arg0: tensor<8x4xf32>, %arg1: tensor<i1>) -> tensor<8x4xf32> {
  %0 = "stablehlo.if"(%arg1) ({
    %1 = stablehlo.sine %arg0 : tensor<8x4xf32>
    stablehlo.return %1 : tensor<8x4xf32>
  }, {
    %1 = stablehlo.cosine %arg0 : tensor<8x4xf32>
    stablehlo.return %1 : tensor<8x4xf32>
  }) : (tensor<i1>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}
