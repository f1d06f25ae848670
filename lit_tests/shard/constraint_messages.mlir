// RUN: alpa-mlir-opt %s -split-input-file -verify-diagnostics --alpa-shard="mesh=2x2 cluster=cpu"

module @warns_of_another_mesh {
  sdy.mesh @mesh = <["a"=4]>
  func.func public @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
    // expected-warning@+1 {{sdy.sharding_constraint is ignored: its mesh is a=4, the plan's x=2, y=2}}
    %0 = sdy.sharding_constraint %x <@mesh, [{"a"}, {}]> : tensor<8x8xf32>
    return %0 : tensor<8x8xf32>
  }
}

// -----

module @warns_of_what_cannot_be {
  sdy.mesh @mesh = <["x"=2, "y"=2]>
  func.func public @main(%x: tensor<8x3xf32>) -> tensor<8x3xf32> {
    // expected-warning@+1 {{sdy.sharding_constraint [{},{y}] cannot be kept: dimension 1 has size 3, which 2 devices along y do not divide}}
    %0 = sdy.sharding_constraint %x <@mesh, [{}, {"y"}]> : tensor<8x3xf32>
    return %0 : tensor<8x3xf32>
  }
}

// -----

module @remarks_on_priorities {
  sdy.mesh @mesh = <["x"=2, "y"=2]>
  func.func public @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
    // expected-remark@+1 {{sdy.sharding_constraint is kept, its priorities are ignored}}
    %0 = sdy.sharding_constraint %x <@mesh, [{"x"}p1, {}]> : tensor<8x8xf32>
    return %0 : tensor<8x8xf32>
  }
}

// -----

module @warns_of_parts_of_axes {
  sdy.mesh @mesh = <["x"=4]>
  func.func public @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
    // expected-warning@+1 {{sdy.sharding_constraint is ignored: it splits axes into parts}}
    %0 = sdy.sharding_constraint %x <@mesh, [{"x":(1)2}, {}]> : tensor<8x8xf32>
    return %0 : tensor<8x8xf32>
  }
}
