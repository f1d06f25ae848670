// RUN: alpa-mlir-opt %s --alpa-localize | FileCheck %s
sdy.mesh @m = <["x"=2, "y"=4]>

// A contracted dimension split over y leaves addends: they end by one all-reduce over y's groups.
// CHECK-LABEL: func.func private @contraction_ends_by_all_reduce
// CHECK: sdy.manual_computation
// CHECK-SAME: manual_axes={"x", "y"}
// CHECK-SAME: tensor<4x2xf32>
// CHECK-NEXT: %[[D:.*]] = stablehlo.dot_general {{.*}} -> tensor<4x8xf32>
// CHECK-NEXT: "stablehlo.all_reduce"(%[[D]]) {{.*}}replica_groups = dense<{{\[\[}}0, 1, 2, 3], [4, 5, 6, 7]]>
// CHECK: sdy.return
func.func private @contraction_ends_by_all_reduce(
    %a: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}, {"y"}]>}, %b: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"y"}, {}]>})
    -> (tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}, {}]>}) {
  %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] {sdy.sharding = #sdy.sharding_per_value<[<@m, [{"x"}, {}]>]>}
    : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  return %0 : tensor<8x8xf32>
}

// The result is split over the reduced axis too: reduce-scatter.
// CHECK-LABEL: func.func private @contraction_ends_by_reduce_scatter
// CHECK: stablehlo.dot_general {{.*}} -> tensor<8x8xf32>
// CHECK-NEXT: "stablehlo.reduce_scatter"{{.*}} scatter_dimension = 1
// CHECK: -> tensor<8x2xf32>
// CHECK-NOT: stablehlo.all_
// CHECK: sdy.return
func.func private @contraction_ends_by_reduce_scatter(
    %a: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{}, {"y"}]>}, %b: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"y"}, {}]>})
    -> (tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{}, {"y"}]>}) {
  %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] {sdy.sharding = #sdy.sharding_per_value<[<@m, [{}, {"y"}]>]>}
    : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  return %0 : tensor<8x8xf32>
}

// An addend leaves the function stacked in a leading dimension.
// CHECK-LABEL: func.func private @addends_leave_stacked
// CHECK-SAME: -> (tensor<2x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}, {}]>})
// CHECK: stablehlo.reduce({{.*}} -> tensor<8xf32>
// CHECK-NEXT: stablehlo.reshape {{.*}} -> tensor<1x8xf32>
// CHECK-NEXT: sdy.return
func.func private @addends_leave_stacked(%a: tensor<4x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}, {}]>})
    -> (tensor<8xf32> {sdy.sharding = #sdy.sharding<@m, [{}], unreduced={"x"}>}) {
  %z = stablehlo.constant {sdy.sharding = #sdy.sharding_per_value<[<@m, []>]>} dense<0.0> : tensor<f32>
  %0 = stablehlo.reduce(%a init: %z) applies stablehlo.add across dimensions = [0]
    {sdy.sharding = #sdy.sharding_per_value<[<@m, [{}], unreduced={"x"}>]>} : (tensor<4x8xf32>, tensor<f32>) -> tensor<8xf32>
  return %0 : tensor<8xf32>
}

// Moving an axis to another dimension is one all-to-all, no gather.
// CHECK-LABEL: func.func private @moved_axis_is_all_to_all
// CHECK: "stablehlo.all_to_all"{{.*}} concat_dimension = 0 {{.*}} split_count = 4 {{.*}} split_dimension = 1 {{.*}} (tensor<2x8xf32>) -> tensor<8x2xf32>
// CHECK-NEXT: sdy.return
func.func private @moved_axis_is_all_to_all(%a: tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{"y"}, {}]>})
    -> (tensor<8x8xf32> {sdy.sharding = #sdy.sharding<@m, [{}, {"y"}]>}) {
  %0 = sdy.reshard %a <@m, [{}, {"y"}]> : tensor<8x8xf32>
  return %0 : tensor<8x8xf32>
}

// A split iota counts from the device's offset, computed from the partition's number.
// CHECK-LABEL: func.func private @iota_starts_at_the_offset
// CHECK: stablehlo.iota dim = 0 : tensor<2xi32>
// CHECK: stablehlo.partition_id
// CHECK: stablehlo.remainder
// CHECK: stablehlo.add {{.*}} : tensor<2xi32>
func.func private @iota_starts_at_the_offset() -> (tensor<8xi32> {sdy.sharding = #sdy.sharding<@m, [{"y"}]>}) {
  %0 = stablehlo.iota dim = 0 {sdy.sharding = #sdy.sharding_per_value<[<@m, [{"y"}]>]>} : tensor<8xi32>
  return %0 : tensor<8xi32>
}
