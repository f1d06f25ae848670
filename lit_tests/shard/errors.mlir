// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --alpa-shard="mesh=4 cluster=cpu memory=1KB"

module @refuses_memory_that_no_plan_keeps {
  func.func public @main(%x: tensor<64x64xf32>, %y: tensor<64x64xf32>) -> tensor<64x64xf32> {
    // expected-note@-1 {{alive at the peak: arg:0 f32[64, 64], 0.004096 MB}}
    // expected-note@-2 {{alive at the peak: arg:1 f32[64, 64], 0.004096 MB}}
    // expected-error@+2 {{stage 0 does not fit in 0.001 MB per device on mesh 4: it needs at least 0.012288 MB}}
    // expected-note@+1 {{alive at the peak: result of stablehlo.dot_general, f32[64, 64], 0.004096 MB}}
    %0 = stablehlo.dot_general %x, %y, contracting_dims = [1] x [0] : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
    return %0 : tensor<64x64xf32>
  }
}

// -----

module @remarks_on_what_cannot_be_split {
  func.func public @main(%x: tensor<2xui64>) -> tensor<2xui64> {
    // expected-remark@+1 {{stablehlo.rng_bit_generator runs replicated on all devices: random bits depend on the whole shape}}
    %0, %1 = stablehlo.rng_bit_generator %x, algorithm = DEFAULT : (tensor<2xui64>) -> (tensor<2xui64>, tensor<8xf32>)
    return %0 : tensor<2xui64>
  }
}
