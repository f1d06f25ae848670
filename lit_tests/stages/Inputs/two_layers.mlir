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
