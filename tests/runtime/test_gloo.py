"""A reduce-scatter written as an all-to-all gives the same numbers."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.runtime.executable import Compiler, jax_mesh
from alpa_mlir.runtime.gloo import without_reduce_scatter
from alpa_mlir.runtime.stage_function import StageFunction, Tensor

BODY = """^bb0(%a: tensor<f32>, %b: tensor<f32>):
          {body}
          stablehlo.return %c : tensor<f32>"""
MODULE = """
module {{
  sdy.mesh @mesh = <["x"=2, "y"=4]>
  func.func public @main(%arg0: tensor<16x12xf32>) -> tensor<{rows}x{columns}xf32> {{
    %0 = sdy.manual_computation(%arg0) in_shardings=[<@mesh, [{{"x", "y"}}, {{}}]>] out_shardings=[<@mesh, {out}>]
        manual_axes={{"x", "y"}} (%arg1: tensor<2x12xf32>) {{
      %1 = "stablehlo.reduce_scatter"(%arg1) <{{channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>,
          replica_groups = dense<{groups}> : tensor<{shape}xi64>, scatter_dimension = {dim} : i64,
          use_global_device_ids}}> ({{
        {body}
      }}) : (tensor<2x12xf32>) -> tensor<{local}xf32>
      sdy.return %1 : tensor<{local}xf32>
    }} : (tensor<16x12xf32>) -> tensor<{rows}x{columns}xf32>
    return %0 : tensor<{rows}x{columns}xf32>
  }}
}}
"""
X, Y = "[[0, 4], [1, 5], [2, 6], [3, 7]]", "[[0, 1, 2, 3], [4, 5, 6, 7]]"
CASES = {
    "rows over x": (X, "4x2", 0, "1x12", (8, 12), (("y", "x"), ())),
    "columns over y": (Y, "2x4", 1, "2x3", (4, 12), (("x",), ("y",))),
}


def text(case: str, body: str = "%c = stablehlo.add %a, %b : tensor<f32>") -> str:
    groups, shape, dim, local, (rows, columns), dims = CASES[case]
    out = "[" + ", ".join("{" + ", ".join(f'"{a}"' for a in axes) + "}" for axes in dims) + "]"
    return MODULE.format(groups=groups, shape=shape, dim=dim, local=local, rows=rows, columns=columns, out=out,
                         body=BODY.format(body=body))  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_numbers(case: str) -> None:
    *_, shape, dims = CASES[case]
    mesh = jax_mesh(Mesh("mesh", (("x", 2), ("y", 4))), jax.devices()[:8])
    given = np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)
    tensors = (Tensor((16, 12), "f32", Sharding((("x", "y"), ()))),), (Tensor(shape, "f32", Sharding(dims)),)
    results = []
    for program in (text(case), without_reduce_scatter(text(case))):
        run = Compiler().compile(StageFunction("f", partial(str, program), *tensors, ()), mesh)
        results.append(np.asarray(run(given)[0]))
    assert "reduce_scatter" not in program and "all_to_all" in program
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


def test_a_reduction_of_two_operations_is_refused() -> None:
    body = "%d = stablehlo.add %a, %b : tensor<f32>\n%c = stablehlo.tanh %d : tensor<f32>"
    with pytest.raises(CompileError, match="must combine by one operation"):
        without_reduce_scatter(text("rows over x", body))
