// arguments_as_results: --batch-args 0
func.func public @main(%a: tensor<8x4xf32>, %b: tensor<3xi32>) -> (tensor<3xi32>, tensor<8x4xf32>) {
  return %b, %a : tensor<3xi32>, tensor<8x4xf32>
}

// -----

// no_arguments:
func.func public @main() -> tensor<8x4xf32> {
  %0 = stablehlo.iota dim = 0 : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// constant_result:
func.func public @main(%a: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.constant dense<3.0> : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// no_results:
func.func public @main(%a: tensor<8x4xf32>, %b: tensor<3xi32>) {
  return
}

// -----

// sums_of_booleans: --batch-args 0
func.func public @main(%a: tensor<8x6xf32>) -> (tensor<6xi1>, tensor<6xi1>, tensor<6xi1>) {
  %f = stablehlo.constant dense<false> : tensor<i1>
  %t = stablehlo.constant dense<true> : tensor<i1>
  %zz = stablehlo.constant dense<0.03> : tensor<8x6xf32>
  %c = stablehlo.compare GT, %a, %zz : (tensor<8x6xf32>, tensor<8x6xf32>) -> tensor<8x6xi1>
  %0 = stablehlo.reduce(%c init: %f) applies stablehlo.xor across dimensions = [0] : (tensor<8x6xi1>, tensor<i1>) -> tensor<6xi1>
  %1 = stablehlo.reduce(%c init: %f) applies stablehlo.add across dimensions = [0] : (tensor<8x6xi1>, tensor<i1>) -> tensor<6xi1>
  %2 = stablehlo.reduce(%c init: %t) applies stablehlo.multiply across dimensions = [0] : (tensor<8x6xi1>, tensor<i1>) -> tensor<6xi1>
  return %0, %1, %2 : tensor<6xi1>, tensor<6xi1>, tensor<6xi1>
}

// -----

// four_bit_integers: --batch-args 0
func.func public @main(%a: tensor<8x4xi4>, %b: tensor<8x4xui4>, %w: tensor<4x4xf32>) -> (tensor<8x4xf32>, tensor<8x4xi4>) {
  %0 = stablehlo.convert %a : (tensor<8x4xi4>) -> tensor<8x4xf32>
  %b1 = stablehlo.convert %b : (tensor<8x4xui4>) -> tensor<8x4xf32>
  %00 = stablehlo.add %0, %b1 : tensor<8x4xf32>
  %1 = stablehlo.dot_general %00, %w, contracting_dims = [1] x [0] : (tensor<8x4xf32>, tensor<4x4xf32>) -> tensor<8x4xf32>
  %2 = stablehlo.add %a, %a : tensor<8x4xi4>
  return %1, %2 : tensor<8x4xf32>, tensor<8x4xi4>
}

// -----

// two_bit_integers: --batch-args 0
func.func public @main(%a: tensor<8x4xi2>) -> (tensor<8x4xi2>) {
  %2 = stablehlo.add %a, %a : tensor<8x4xi2>
  return %2 : tensor<8x4xi2>
}

// -----

// four_bit_floats: --batch-args 0
func.func public @main(%a: tensor<8x4xf4E2M1FN>) -> (tensor<8x4xf32>) {
  %0 = stablehlo.convert %a : (tensor<8x4xf4E2M1FN>) -> tensor<8x4xf32>
  %1 = stablehlo.tanh %0 : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// state_without_elements: --batch-args 2 --state-args 0-1
func.func public @main(%w: tensor<4x4xf32>, %e: tensor<0x4xf32>, %x: tensor<8x4xf32>) -> (tensor<4x4xf32>, tensor<0x4xf32>, tensor<f32>) {
  %z = stablehlo.constant dense<0.0> : tensor<f32>
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<8x4xf32>, tensor<4x4xf32>) -> tensor<8x4xf32>
  %t = stablehlo.tanh %0 : tensor<8x4xf32>
  %g = stablehlo.dot_general %x, %t, contracting_dims = [0] x [0] : (tensor<8x4xf32>, tensor<8x4xf32>) -> tensor<4x4xf32>
  %n = stablehlo.subtract %w, %g : tensor<4x4xf32>
  %e2 = stablehlo.add %e, %e : tensor<0x4xf32>
  %l = stablehlo.reduce(%t init: %z) applies stablehlo.add across dimensions = [0, 1] : (tensor<8x4xf32>, tensor<f32>) -> tensor<f32>
  %l2 = stablehlo.reduce(%e2 init: %l) applies stablehlo.add across dimensions = [0, 1] : (tensor<0x4xf32>, tensor<f32>) -> tensor<f32>
  return %n, %e2, %l2 : tensor<4x4xf32>, tensor<0x4xf32>, tensor<f32>
}

// -----

// nothing_has_elements: --batch-args 0
func.func public @main(%a: tensor<8x0xf32>, %w: tensor<0x4xf32>) -> (tensor<8x4xf32>, tensor<8x0xf32>) {
  %0 = stablehlo.dot_general %a, %w, contracting_dims = [1] x [0] : (tensor<8x0xf32>, tensor<0x4xf32>) -> tensor<8x4xf32>
  %1 = stablehlo.tanh %a : tensor<8x0xf32>
  return %0, %1 : tensor<8x4xf32>, tensor<8x0xf32>
}

// -----

// empty_of_all_types:
func.func public @main(%e: tensor<0x4xcomplex<f32>>, %f: tensor<0xi1>, %g: tensor<3x0xf8E5M2>) -> (tensor<0x4xcomplex<f32>>, tensor<0xi1>, tensor<3x0xf8E5M2>, tensor<f32>) {
  %e2 = stablehlo.add %e, %e : tensor<0x4xcomplex<f32>>
  %f2 = stablehlo.not %f : tensor<0xi1>
  %c = stablehlo.convert %g : (tensor<3x0xf8E5M2>) -> tensor<3x0xf32>
  %z = stablehlo.constant dense<7.0> : tensor<f32>
  %l2 = stablehlo.reduce(%c init: %z) applies stablehlo.add across dimensions = [0, 1] : (tensor<3x0xf32>, tensor<f32>) -> tensor<f32>
  return %e2, %f2, %g, %l2 : tensor<0x4xcomplex<f32>>, tensor<0xi1>, tensor<3x0xf8E5M2>, tensor<f32>
}

// -----

// composite: --batch-args 0
func.func private @gelu.impl(%a: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = stablehlo.tanh %a : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}
func.func public @main(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %0 = stablehlo.composite "my.gelu" %a {composite_attributes = {approx = true}, decomposition = @gelu.impl, version = 1 : i32} : (tensor<8x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// tuple_put_together: --batch-args 0
func.func public @main(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %t = stablehlo.tuple %a, %a : tuple<tensor<8x4xf32>, tensor<8x4xf32>>
  %0 = stablehlo.get_tuple_element %t[1] : (tuple<tensor<8x4xf32>, tensor<8x4xf32>>) -> tensor<8x4xf32>
  %1 = stablehlo.add %0, %a : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// entry_with_another_name:
func.func public @forward(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %1 = stablehlo.tanh %a : tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// constant_from_a_resource: --batch-args 0
module {
func.func public @main(%a: tensor<2x4xf32>) -> (tensor<2x4xf32>) {
  %c = stablehlo.constant dense_resource<blob1> : tensor<4xf32>
  %b = stablehlo.broadcast_in_dim %c, dims = [1] : (tensor<4xf32>) -> tensor<2x4xf32>
  %0 = stablehlo.add %a, %b : tensor<2x4xf32>
  return %0 : tensor<2x4xf32>
}
}
{-#
  dialect_resources: {
    builtin: {
      blob1: "0x040000000000803F000000400000404000008040"
    }
  }
#-}

// -----

// chlo: --batch-args 0
func.func public @main(%a: tensor<8x4xf32>, %w: tensor<4xf32>) -> (tensor<8x4xf32>, tensor<8x4xf32>, tensor<8x4xf32>) {
  %2 = chlo.erf %a : tensor<8x4xf32> -> tensor<8x4xf32>
  %3 = chlo.broadcast_add %2, %w : (tensor<8x4xf32>, tensor<4xf32>) -> tensor<8x4xf32>
  %4 = chlo.lgamma %3 : tensor<8x4xf32> -> tensor<8x4xf32>
  %5 = chlo.bessel_i1e %a : tensor<8x4xf32> -> tensor<8x4xf32>
  return %3, %4, %5 : tensor<8x4xf32>, tensor<8x4xf32>, tensor<8x4xf32>
}

// -----

// branches: --batch-args 1
func.func public @main(%i: tensor<i1>, %a: tensor<8x4xf32>) -> (tensor<8x4xf32>, tensor<8xf32>) {
  %c = stablehlo.constant dense<0.0> : tensor<f32>
  %0:2 = "stablehlo.if"(%i) ({
    %1 = stablehlo.add %a, %a : tensor<8x4xf32>
    %2 = stablehlo.reduce(%1 init: %c) applies stablehlo.add across dimensions = [1] : (tensor<8x4xf32>, tensor<f32>) -> tensor<8xf32>
    stablehlo.return %1, %2 : tensor<8x4xf32>, tensor<8xf32>
  }, {
    %1 = stablehlo.exponential %a : tensor<8x4xf32>
    %2 = stablehlo.reduce(%1 init: %c) applies stablehlo.maximum across dimensions = [1] : (tensor<8x4xf32>, tensor<f32>) -> tensor<8xf32>
    stablehlo.return %1, %2 : tensor<8x4xf32>, tensor<8xf32>
  }) : (tensor<i1>) -> (tensor<8x4xf32>, tensor<8xf32>)
  return %0#0, %0#1 : tensor<8x4xf32>, tensor<8xf32>
}

// -----

// loop_with_four_values: --batch-args 0
func.func public @main(%a: tensor<8x4xf32>, %w: tensor<4x4xf32>, %n: tensor<i32>) -> (tensor<8x4xf32>, tensor<8xf32>, tensor<i32>) {
  %c0 = stablehlo.constant dense<0> : tensor<i32>
  %z = stablehlo.constant dense<0.0> : tensor<f32>
  %z8 = stablehlo.constant dense<0.0> : tensor<8xf32>
  %0:4 = stablehlo.while(%i = %c0, %x = %a, %y = %z8, %m = %n) : tensor<i32>, tensor<8x4xf32>, tensor<8xf32>, tensor<i32>
   cond {
    %5 = stablehlo.compare LT, %i, %m : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %5 : tensor<i1>
   } do {
    %one = stablehlo.constant dense<1> : tensor<i32>
    %i2 = stablehlo.add %i, %one : tensor<i32>
    %x2 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<8x4xf32>, tensor<4x4xf32>) -> tensor<8x4xf32>
    %r = stablehlo.reduce(%x2 init: %z) applies stablehlo.add across dimensions = [1] : (tensor<8x4xf32>, tensor<f32>) -> tensor<8xf32>
    %y2 = stablehlo.add %y, %r : tensor<8xf32>
    stablehlo.return %i2, %x2, %y2, %m : tensor<i32>, tensor<8x4xf32>, tensor<8xf32>, tensor<i32>
   }
  return %0#1, %0#2, %0#0 : tensor<8x4xf32>, tensor<8xf32>, tensor<i32>
}

// -----

// scatter_of_two: --batch-args 2-4
func.func public @main(%a: tensor<8x6xf32>, %b: tensor<8x6xi32>, %i: tensor<4x1xi32>, %u: tensor<4x6xf32>, %v: tensor<4x6xi32>) -> (tensor<8x6xf32>, tensor<8x6xi32>) {
  %0:2 = "stablehlo.scatter"(%a, %b, %i, %u, %v) <{scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>}> ({
  ^bb0(%x: tensor<f32>, %xi: tensor<i32>, %y: tensor<f32>, %yi: tensor<i32>):
    %s = stablehlo.add %x, %y : tensor<f32>
    %si = stablehlo.add %xi, %yi : tensor<i32>
    stablehlo.return %s, %si : tensor<f32>, tensor<i32>
  }) : (tensor<8x6xf32>, tensor<8x6xi32>, tensor<4x1xi32>, tensor<4x6xf32>, tensor<4x6xi32>) -> (tensor<8x6xf32>, tensor<8x6xi32>)
  return %0#0, %0#1 : tensor<8x6xf32>, tensor<8x6xi32>
}

// -----

// greatest_and_where: --batch-args 0,1
func.func public @main(%a: tensor<8x6xf32>, %b: tensor<8x6xi32>) -> (tensor<8xf32>, tensor<8xi32>) {
  %z = stablehlo.constant dense<0xFF800000> : tensor<f32>
  %zi = stablehlo.constant dense<0> : tensor<i32>
  %0:2 = stablehlo.reduce(%a init: %z), (%b init: %zi) across dimensions = [1] : (tensor<8x6xf32>, tensor<8x6xi32>, tensor<f32>, tensor<i32>) -> (tensor<8xf32>, tensor<8xi32>)
   reducer(%x: tensor<f32>, %y: tensor<f32>) (%p: tensor<i32>, %q: tensor<i32>) {
    %c = stablehlo.compare GE, %x, %y : (tensor<f32>, tensor<f32>) -> tensor<i1>
    %m = stablehlo.select %c, %x, %y : tensor<i1>, tensor<f32>
    %n = stablehlo.select %c, %p, %q : tensor<i1>, tensor<i32>
    stablehlo.return %m, %n : tensor<f32>, tensor<i32>
   }
  return %0#0, %0#1 : tensor<8xf32>, tensor<8xi32>
}

// -----

// gather_with_batching_dimensions: --batch-args 0,1
func.func public @main(%a: tensor<8x6x4xf32>, %i: tensor<8x3x1xi32>) -> (tensor<8x3x4xf32>) {
  %0 = "stablehlo.gather"(%a, %i) <{dimension_numbers = #stablehlo.gather<offset_dims = [2], collapsed_slice_dims = [1], operand_batching_dims = [0], start_indices_batching_dims = [0], start_index_map = [1], index_vector_dim = 2>, slice_sizes = array<i64: 1, 1, 4>}> : (tensor<8x6x4xf32>, tensor<8x3x1xi32>) -> tensor<8x3x4xf32>
  return %0 : tensor<8x3x4xf32>
}

// -----

// complex_numbers: --batch-args 0
func.func public @main(%a: tensor<8x4xcomplex<f32>>, %w: tensor<4x4xcomplex<f32>>) -> (tensor<8x4xcomplex<f32>>, tensor<8x4xf32>, tensor<4xcomplex<f32>>) {
  %z = stablehlo.constant dense<(0.0,0.0)> : tensor<complex<f32>>
  %0 = stablehlo.dot_general %a, %w, contracting_dims = [1] x [0] : (tensor<8x4xcomplex<f32>>, tensor<4x4xcomplex<f32>>) -> tensor<8x4xcomplex<f32>>
  %1 = stablehlo.abs %0 : (tensor<8x4xcomplex<f32>>) -> tensor<8x4xf32>
  %2 = stablehlo.reduce(%a init: %z) applies stablehlo.add across dimensions = [0] : (tensor<8x4xcomplex<f32>>, tensor<complex<f32>>) -> tensor<4xcomplex<f32>>
  return %0, %1, %2 : tensor<8x4xcomplex<f32>>, tensor<8x4xf32>, tensor<4xcomplex<f32>>
}
