// RUN: alpa-mlir-opt %s -split-input-file --alpa-shard="mesh=4 cluster=cpu" --alpa-check-shardings | filecheck %s

// CHECK-LABEL: @splits_a_large_batch
module @splits_a_large_batch {
  // CHECK: sdy.mesh @stage_0 = <["x"=4]>
  // CHECK: func.func public @main(%arg0: tensor<4096x64xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>}
  func.func public @main(%x: tensor<4096x64xf32>, %w: tensor<64x64xf32>) -> tensor<4096x64xf32> {
    // CHECK: stablehlo.dot_general {{.*}} {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}, {}]>]>}
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<4096x64xf32>, tensor<64x64xf32>) -> tensor<4096x64xf32>
    // CHECK-NOT: sdy.reshard
    %1 = stablehlo.tanh %0 : tensor<4096x64xf32>
    return %1 : tensor<4096x64xf32>
  }
}

// -----

// CHECK-LABEL: @splits_a_wide_weight
module @splits_a_wide_weight {
  // CHECK: %arg1: tensor<512x4096xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}, {"x"}]>}
  func.func public @main(%x: tensor<3x512xf32>, %w: tensor<512x4096xf32>) -> tensor<3x4096xf32> {
    // CHECK: stablehlo.dot_general {{.*}} {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {"x"}]>]>}
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<3x512xf32>, tensor<512x4096xf32>) -> tensor<3x4096xf32>
    return %0 : tensor<3x4096xf32>
  }
}

// -----

// CHECK-LABEL: @keeps_a_given_sharding
module @keeps_a_given_sharding {
  sdy.mesh @mine = <["x"=4]>
  // CHECK: %arg0: tensor<4096x64xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}, {"x"}]>}
  func.func public @main(%x: tensor<4096x64xf32> {sdy.sharding = #sdy.sharding<@mine, [{}, {"x"}]>}) -> tensor<4096x64xf32> {
    // CHECK: stablehlo.tanh {{.*}} {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {"x"}]>]>}
    %0 = stablehlo.tanh %x : tensor<4096x64xf32>
    return %0 : tensor<4096x64xf32>
  }
}

// -----

// A state and the result that replaces it have one sharding; constants are made where they are wanted.
// CHECK-LABEL: @keeps_state_in_place
module @keeps_state_in_place {
  // CHECK: %arg0: tensor<64x64xf32> {alpa.role = "state", alpa.updates = 0 : i64, sdy.sharding = [[S:#sdy.sharding<@stage_0, .*>]]}) -> (tensor<64x64xf32> {sdy.sharding = [[S]]})
  func.func public @main(%w: tensor<64x64xf32> {alpa.role = "state", alpa.updates = 0 : i64}) -> tensor<64x64xf32> {
    // CHECK-NOT: sdy.reshard
    %0 = stablehlo.constant dense<2.000000e+00> : tensor<64x64xf32>
    %1 = stablehlo.multiply %w, %0 : tensor<64x64xf32>
    return %1 : tensor<64x64xf32>
  }
}
