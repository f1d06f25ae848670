// RUN: alpa-mlir-opt %s -split-input-file --alpa-shard="mesh=2x2 cluster=cpu" --alpa-check-shardings | filecheck %s

// A constraint inside the program is kept; the program's axes are those of the plan's mesh of the same shape.
// CHECK-LABEL: @keeps_constraints
module @keeps_constraints {
  sdy.mesh @mesh = <["data"=2, "model"=2]>
  func.func public @main(%x: tensor<64x64xf32>) -> tensor<64x64xf32> {
    // CHECK: stablehlo.tanh {{.*}} {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"y"}, {"x"}]>]>}
    %0 = stablehlo.tanh %x : tensor<64x64xf32>
    // CHECK: sdy.sharding_constraint {{.*}} <@stage_0, [{"y"}, {"x"}]>
    %1 = sdy.sharding_constraint %0 <@mesh, [{"model"}, {"data"}]> : tensor<64x64xf32>
    %2 = stablehlo.abs %1 : tensor<64x64xf32>
    return %2 : tensor<64x64xf32>
  }
}

// -----

// Axes of one dimension keep their order.
// CHECK-LABEL: @keeps_the_order_of_axes
module @keeps_the_order_of_axes {
  sdy.mesh @mesh = <["x"=2, "y"=2]>
  func.func public @main(%x: tensor<64x3xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"y", "x"}, {}]>}) -> tensor<64x3xf32> {
    // CHECK: stablehlo.tanh {{.*}} {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"y", "x"}, {}]>]>}
    %0 = stablehlo.tanh %x {sdy.sharding = #sdy.sharding_per_value<[<@mesh, [{"y", "x"}, {}]>]>} : tensor<64x3xf32>
    return %0 : tensor<64x3xf32>
  }
}

// -----

// Open dimensions may be split further, closed ones not.
// CHECK-LABEL: @splits_open_dimensions
module @splits_open_dimensions {
  sdy.mesh @mesh = <["x"=2, "y"=2]>
  // CHECK: %arg0: tensor<4096x4096xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x", "y"}, {}]>}
  // CHECK-SAME: %arg1: tensor<4096x4096xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>}
  func.func public @main(%x: tensor<4096x4096xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x", ?}, {}]>}, %y: tensor<4096x4096xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>}) -> tensor<4096x4096xf32> {
    %0 = stablehlo.exponential %x : tensor<4096x4096xf32>
    %1 = stablehlo.add %0, %0 : tensor<4096x4096xf32>
    %2 = stablehlo.multiply %1, %y : tensor<4096x4096xf32>
    return %2 : tensor<4096x4096xf32>
  }
}

// -----

// A sharding of a result is a place of its own; what the program says of nothing else decides nothing else.
// CHECK-LABEL: @gives_results_as_asked
module @gives_results_as_asked {
  sdy.mesh @mesh = <["x"=2, "y"=2]>
  // CHECK: -> (tensor<4096x64xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}, {"y"}]>})
  func.func public @main(%x: tensor<4096x64xf32>) -> (tensor<4096x64xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}, {"y"}]>}) {
    %0 = stablehlo.tanh %x : tensor<4096x64xf32>
    return %0 : tensor<4096x64xf32>
  }
}
