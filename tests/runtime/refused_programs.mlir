// tuple_of_a_call: only tensors can be planned
func.func public @main(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %t = stablehlo.custom_call @foo(%a) : (tensor<8x4xf32>) -> tuple<tensor<8x4xf32>, tensor<8x4xf32>>
  %0 = stablehlo.get_tuple_element %t[1] : (tuple<tensor<8x4xf32>, tensor<8x4xf32>>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}

// -----

// resource_that_is_missing: the file has no resource blob1
module {
func.func public @main(%a: tensor<2x4xf32>) -> (tensor<2x4xf32>) {
  %c = stablehlo.constant dense_resource<blob1> : tensor<4xf32>
  %b = stablehlo.broadcast_in_dim %c, dims = [1] : (tensor<4xf32>) -> tensor<2x4xf32>
  %0 = stablehlo.add %a, %b : tensor<2x4xf32>
  return %0 : tensor<2x4xf32>
}
}

// -----

// resource_too_short: the resource blob1 has 12 bytes: not those of tensor<4xf32>
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
      blob1: "0x040000000000803F0000004000004040"
    }
  }
#-}

// -----

// op_of_no_dialect: foo.bar is not StableHLO
func.func public @main(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %2 = "foo.bar"(%a) : (tensor<8x4xf32>) -> tensor<8x4xf32>
  return %2 : tensor<8x4xf32>
}

// -----

// hidden_random_state: use stablehlo.rng_bit_generator
func.func public @main(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %l = stablehlo.constant dense<0.0> : tensor<f32>
  %h = stablehlo.constant dense<1.0> : tensor<f32>
  %sh = stablehlo.constant dense<[8,4]> : tensor<2xi64>
  %0 = stablehlo.rng %l, %h, %sh, distribution = UNIFORM : (tensor<f32>, tensor<f32>, tensor<2xi64>) -> tensor<8x4xf32>
  %3 = stablehlo.multiply %0, %a : tensor<8x4xf32>
  return %3 : tensor<8x4xf32>
}

// -----

// recursion: recursive calls cannot be compiled: @f → @g → @f
func.func private @f(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %1 = func.call @g(%a) : (tensor<8x4xf32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}
func.func private @g(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %1 = func.call @f(%a) : (tensor<8x4xf32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}
func.func public @main(%a: tensor<8x4xf32>) -> (tensor<8x4xf32>) {
  %1 = func.call @f(%a) : (tensor<8x4xf32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}

// -----

// dynamic_shape: every shape must be known
func.func public @main(%a: tensor<8x4xf32>, %n: tensor<2xi32>) -> (tensor<8x4xf32>) {
  %0 = stablehlo.dynamic_reshape %a, %n : (tensor<8x4xf32>, tensor<2xi32>) -> tensor<?x?xf32>
  %s = stablehlo.constant dense<[8,4]> : tensor<2xi32>
  %1 = stablehlo.dynamic_reshape %0, %s : (tensor<?x?xf32>, tensor<2xi32>) -> tensor<8x4xf32>
  return %1 : tensor<8x4xf32>
}
