// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --alpa-check-shardings

module @refuses_values_without_sharding {
  sdy.mesh @stage_0 = <["x"=2]>
  func.func public @main(%x: tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) {
    // expected-error@+1 {{stablehlo.tanh has no sharding (V40)}}
    %0 = stablehlo.tanh %x : tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}

// -----

module @refuses_sizes_that_do_not_divide {
  sdy.mesh @stage_0 = <["x"=2]>
  // expected-error@+1 {{dimension 0 of argument 0 of @main has size 3, which 2 devices along x do not divide (V41)}}
  func.func public @main(%x: tensor<3xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) -> (tensor<3xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) {
    return %x : tensor<3xf32>
  }
}

// -----

module @refuses_silent_transfers {
  sdy.mesh @stage_0 = <["x"=2]>
  sdy.mesh @stage_1 = <["x"=2]>
  func.func public @main(%x: tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_1, [{"x"}]>}) {
    // expected-error@+1 {{operand 0 of stablehlo.tanh lies on @stage_0, its result on @stage_1: a transfer (sdy.reshard) is missing (V42)}}
    %0 = stablehlo.tanh %x {sdy.sharding = #sdy.sharding_per_value<[<@stage_1, [{"x"}]>]>} : tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}

// -----

module @refuses_operands_that_disagree {
  sdy.mesh @stage_0 = <["x"=2]>
  func.func public @main(%x: tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}, %y: tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}]>}) -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) {
    // expected-error@+1 {{(V43)}}
    %0 = stablehlo.add %x, %y {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{"x"}]>]>} : tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}

// -----

module @refuses_state_that_moves {
  sdy.mesh @stage_0 = <["x"=2]>
  // expected-error@+1 {{arg:0 is <@stage_0, [{"x"}]> in one place and <@stage_0, [{}]> in another (V44)}}
  func.func public @main(%x: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64, sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}]>}) {
    %0 = sdy.reshard %x <@stage_0, [{}]> : tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}

// -----

module @refuses_results_that_are_something_else {
  sdy.mesh @stage_0 = <["x"=2]>
  // expected-error@+1 {{result 0 of @main is said to be <@stage_0, [{}]>, the value returned is <@stage_0, [{"x"}]> (V45)}}
  func.func public @main(%x: tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}]>}) -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}]>}) {
    return %x : tensor<4xf32>
  }
}
