// RUN: alpa-mlir-opt %s --alpa-normalize --split-input-file -verify-diagnostics | filecheck %s

// An effect that no result depends on is left out.
// CHECK-LABEL: func.func public @main
// CHECK-NOT: custom_call
// CHECK: stablehlo.negate
func.func public @effect(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-warning@below {{@xla_ffi_python_cpu_callback is left out: a plan keeps results only}}
  stablehlo.custom_call @xla_ffi_python_cpu_callback(%a) {has_side_effect = true, mhlo.backend_config = {index = 0 : ui64}} : (tensor<4xf32>) -> ()
  %0 = stablehlo.negate %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

func.func public @callback(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-error@below {{@xla_ffi_python_cpu_callback calls into the Python that exported the program: its results cannot be had elsewhere}}
  %0 = stablehlo.custom_call @xla_ffi_python_cpu_callback(%a) {mhlo.backend_config = {index = 0 : ui64}} : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

func.func public @infeed(%token: !stablehlo.token) -> tensor<4xf32> {
  // expected-error@below {{stablehlo.infeed exchanges data with a host program, which a plan does not have}}
  %0:2 = "stablehlo.infeed"(%token) : (!stablehlo.token) -> (tensor<4xf32>, !stablehlo.token)
  return %0#0 : tensor<4xf32>
}

// -----

func.func public @collective(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-error@below {{stablehlo.all_reduce is part of a program that is spread over devices already}}
  %0 = "stablehlo.all_reduce"(%a) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
  ^bb0(%x: tensor<f32>, %y: tensor<f32>):
    %s = stablehlo.add %x, %y : tensor<f32>
    stablehlo.return %s : tensor<f32>
  }) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

sdy.mesh @mesh = <["x"=2]>
func.func public @manual(%a: tensor<4xf32>) -> tensor<4xf32> {
  // expected-error@below {{sdy.manual_computation is part of a program that is spread over devices already: give the whole step, without shard_map or collectives}}
  %0 = sdy.manual_computation(%a) in_shardings=[<@mesh, [{"x"}]>] out_shardings=[<@mesh, [{"x"}]>] manual_axes={"x"} (%b: tensor<2xf32>) {
    sdy.return %b : tensor<2xf32>
  } : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// What alpa-mlir-run will not find is said when the plan is made.
// CHECK: stablehlo.custom_call @row_wise
func.func public @nobodys(%a: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  // expected-warning@+2 {{neither XLA nor jaxlib brings @row_wise along: a plan with it runs only where its process registers it}}
  // expected-remark@below {{every device computes the whole stablehlo.custom_call}}
  %0 = stablehlo.custom_call @row_wise(%a) : (tensor<4xf32>) -> tensor<4xf32>
  // expected-remark@below {{every device computes the whole stablehlo.custom_call}}
  %1 = stablehlo.custom_call @lapack_spotrf_ffi(%a) : (tensor<4xf32>) -> tensor<4xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
