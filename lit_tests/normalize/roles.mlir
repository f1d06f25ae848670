// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file -verify-diagnostics | FileCheck %s

// @donated_arguments_are_state: by number where the frontend says it, else the first free result of the type.
// CHECK: @main(%arg0: tensor<4xf32> {alpa.role = "state", alpa.updates = 2 : i64},
// CHECK-SAME: %arg1: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64},
// CHECK-SAME: %arg2: tensor<8x4xf32> {alpa.role = "batch"}, %arg3: tensor<8xi32> {alpa.role = "batch"},
// CHECK-SAME: %arg4: tensor<2xui32> {alpa.role = "constant"}, %arg5: tensor<f32> {alpa.role = "constant"})
// CHECK-SAME: -> (tensor<4xf32> {jax.result_info = "m"}, tensor<4xf32>, tensor<4xf32>)
// expected-remark@below {{taken for batch: arguments 2, 3 (dimension 0 is 8)}}
func.func public @donated_arguments_are_state(%w: tensor<4xf32> {tf.aliasing_output = 2 : i32},
    %m: tensor<4xf32> {jax.buffer_donor = true}, %x: tensor<8x4xf32>, %y: tensor<8xi32>, %key: tensor<2xui32>, %s: tensor<f32>)
    -> (tensor<4xf32> {jax.result_info = "m", mhlo.layout_mode = "default"}, tensor<4xf32>, tensor<4xf32>) {
  return %w, %w, %m : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}

// -----

// expected-error@below {{alpa.updates = 1 on argument 0: @main has 1 results}}
func.func public @names_a_result(%w: tensor<4xf32> {alpa.role = "state", alpa.updates = 1 : i64}) -> tensor<4xf32> {
  return %w : tensor<4xf32>
}

// -----

// expected-error@below {{alpa.updates = 0 on argument 0: tensor<8xf32> cannot replace tensor<4xf32>}}
func.func public @names_a_result_of_its_type(%w: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %x: tensor<8xf32>) -> tensor<8xf32> {
  return %x : tensor<8xf32>
}

// -----

// expected-error@below {{alpa.updates = 0 on argument 1: the result already replaces argument 0}}
func.func public @one_result_each(%v: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64},
    %w: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}) -> tensor<4xf32> {
  return %w : tensor<4xf32>
}

// -----

// expected-remark@below {{2 annotations mhlo.sharding removed}}
func.func public @removes_gspmd(%w: tensor<4xf32> {mhlo.sharding = "{replicated}"}) -> tensor<4xf32> {
  %0 = stablehlo.custom_call @Sharding(%w) {mhlo.sharding = "{devices=[2]<=[2]}"} : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

sdy.mesh @mesh = <["x"=2]>
// CHECK: sdy.mesh @mesh
// CHECK: @main(%arg0: tensor<4xf32> {alpa.role = "constant", sdy.sharding = #sdy.sharding<@mesh, [{"x"}]>})
// CHECK-SAME: tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}]>}
// CHECK: sdy.sharding_constraint
func.func public @keeps_shardy(%w: tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}]>}) -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}]>}) {
  %0 = sdy.sharding_constraint %w <@mesh, [{"x"}]> : tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// A donated argument that no result can replace is merely used up.
// CHECK: @main(%arg0: tensor<4xf32> {alpa.role = "state", alpa.updates = 0 : i64}, %arg1: tensor<8x4xf32> {alpa.role = "batch"})
// expected-remark@+2 {{argument 1 is donated, but no result of type tensor<8x4xf32> is left to replace it: it is not state}}
// expected-remark@+1 {{taken for batch: argument 1 (dimension 0 is 8)}}
func.func public @batch_given_away(%w: tensor<4xf32> {jax.buffer_donor = true}, %x: tensor<8x4xf32> {jax.buffer_donor = true}) -> tensor<4xf32> {
  return %w : tensor<4xf32>
}

// -----

// expected-error@below {{argument 0 has alpa.updates, but alpa.role = "batch"}}
func.func public @batch_is_not_replaced(%w: tensor<4xf32> {alpa.role = "batch", alpa.updates = 0 : i64}) -> tensor<4xf32> {
  return %w : tensor<4xf32>
}
