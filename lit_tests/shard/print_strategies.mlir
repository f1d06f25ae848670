// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --alpa-print-strategies="mesh=2x4 cluster=cpu"

module @prints_strategies_and_exclusions {
  func.func public @main(%x: tensor<4x3xf32>, %y: tensor<3x1xf32>) -> tensor<4x1xf32> {
    // expected-remark@+8 {{stablehlo.dot_general [i,k],[k,j]->[i,j] i=4 j=1 k=3 (add): 3 strategies}}
    // expected-note@+7 {{all devices alike: [{},{}] [{},{}] -> [{},{}]: compute}}
    // expected-note@+6 {{y on i: [{y},{}] [{},{}] -> [{y},{}]: compute}}
    // expected-note@+5 {{x on i: [{x},{}] [{},{}] -> [{x},{}]: compute}}
    // expected-note@+4 {{not split on j: its size is one}}
    // expected-note@+3 {{not x on k: 2 does not divide 3}}
    // expected-note@+2 {{not y on k: 4 does not divide 3}}
    // (x and y together do not divide 4)
    %0 = stablehlo.dot_general %x, %y, contracting_dims = [1] x [0] : (tensor<4x3xf32>, tensor<3x1xf32>) -> tensor<4x1xf32>
    return %0 : tensor<4x1xf32>
  }
}

// -----

module @says_why_a_sort_stays_whole {
  func.func public @main(%x: tensor<8xf32>) -> tensor<8xf32> {
    // expected-remark@+3 {{stablehlo.sort [i]->[i] i=8: 1 strategy}}
    // expected-note@+2 {{all devices alike}}
    // expected-note@+1 {{not split on i: the op needs it whole}}
    %0 = "stablehlo.sort"(%x) <{dimension = 0 : i64}> ({
    ^bb0(%a: tensor<f32>, %b: tensor<f32>):
      %1 = stablehlo.compare LT, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %1 : tensor<i1>
    }) : (tensor<8xf32>) -> tensor<8xf32>
    return %0 : tensor<8xf32>
  }
}

// -----

module @says_why_a_call_stays_whole {
  func.func public @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
    // expected-remark@+3 {{stablehlo.custom_call [i,j]->[k,l] i=8 j=8 k=8 l=8: 1 strategy}}
    // expected-note@+2 {{all devices alike}}
    // expected-note@+1 {{not split on i, j, k, l: stablehlo.custom_call has no sharding rule}}
    %0 = stablehlo.custom_call @unknown(%x) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    return %0 : tensor<8x8xf32>
  }
}
