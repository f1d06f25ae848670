// The program that mlp_plan.py distributes, for one device.
module {
  func.func public @main(%x: tensor<8x16xf32>, %y: tensor<8x4xf32>, %w1: tensor<16x32xf32>, %w2: tensor<32x4xf32>)
      -> (tensor<16x32xf32>, tensor<32x4xf32>, tensor<f32>, tensor<8x4xf32>, tensor<i32>) {
    %a = stablehlo.dot_general %x, %w1, contracting_dims = [1] x [0] : (tensor<8x16xf32>, tensor<16x32xf32>) -> tensor<8x32xf32>
    %h = stablehlo.tanh %a : tensor<8x32xf32>
    %p = stablehlo.dot_general %h, %w2, contracting_dims = [1] x [0] : (tensor<8x32xf32>, tensor<32x4xf32>) -> tensor<8x4xf32>
    %d = stablehlo.subtract %p, %y : tensor<8x4xf32>
    %s = stablehlo.multiply %d, %d : tensor<8x4xf32>
    %z = stablehlo.constant dense<0.0> : tensor<f32>
    %l = stablehlo.reduce(%s init: %z) applies stablehlo.add across dimensions = [0, 1] : (tensor<8x4xf32>, tensor<f32>) -> tensor<f32>
    %e = stablehlo.add %d, %d : tensor<8x4xf32>
    %g2 = stablehlo.dot_general %h, %e, contracting_dims = [0] x [0] : (tensor<8x32xf32>, tensor<8x4xf32>) -> tensor<32x4xf32>
    %b = stablehlo.dot_general %e, %w2, contracting_dims = [1] x [1] : (tensor<8x4xf32>, tensor<32x4xf32>) -> tensor<8x32xf32>
    %one = stablehlo.constant dense<1.0> : tensor<8x32xf32>
    %hh = stablehlo.multiply %h, %h : tensor<8x32xf32>
    %t = stablehlo.subtract %one, %hh : tensor<8x32xf32>
    %u = stablehlo.multiply %b, %t : tensor<8x32xf32>
    %g1 = stablehlo.dot_general %x, %u, contracting_dims = [0] x [0] : (tensor<8x16xf32>, tensor<8x32xf32>) -> tensor<16x32xf32>
    %r1 = stablehlo.constant dense<1.0e-01> : tensor<16x32xf32>
    %r2 = stablehlo.constant dense<1.0e-01> : tensor<32x4xf32>
    %s1 = stablehlo.multiply %r1, %g1 : tensor<16x32xf32>
    %s2 = stablehlo.multiply %r2, %g2 : tensor<32x4xf32>
    %n1 = stablehlo.subtract %w1, %s1 : tensor<16x32xf32>
    %n2 = stablehlo.subtract %w2, %s2 : tensor<32x4xf32>
    %count = stablehlo.constant dense<1> : tensor<i32>
    return %n1, %n2, %l, %p, %count : tensor<16x32xf32>, tensor<32x4xf32>, tensor<f32>, tensor<8x4xf32>, tensor<i32>
  }
}
