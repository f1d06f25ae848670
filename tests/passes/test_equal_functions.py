"""Keys of functions: equal for those that are equal but for their names and those of their meshes."""

from __future__ import annotations

import pytest

from alpa_mlir.dialect.context import functions, make_context, parse_module
from alpa_mlir.passes.local.equal_functions import Anonymous

FUNCTION = """
  func.func private @NAME(%x: tensor<8xf32> {sdy.sharding = #sdy.sharding<@MESH, [{"x"}]>}, %y: tensor<8xf32>)
      -> tensor<f32> {
    %z = stablehlo.subtract %x, %y {sdy.sharding = #sdy.sharding_per_value<[<@MESH, [{"x"}]>]>} : tensor<8xf32>
    %c = stablehlo.constant dense<0.0> : tensor<f32>
    %s = stablehlo.reduce(%z init: %c) applies stablehlo.add across dimensions = [0]
      : (tensor<8xf32>, tensor<f32>) -> tensor<f32>
    return %s : tensor<f32>
  }"""
MESHES = """
  sdy.mesh @stage_0 = <["x"=2, "y"=2]>
  sdy.mesh @stage_1 = <["x"=2, "y"=2]>"""


def alike(change: tuple[str, str]) -> bool:
    """Whether a function has the key of a changed one on another mesh."""
    first = FUNCTION.replace("NAME", "a").replace("MESH", "stage_0")
    second = FUNCTION.replace(*change).replace("NAME", "b").replace("MESH", "stage_1")
    module = parse_module(f"module {{{MESHES}{first}{second}\n}}", make_context())
    found, anonymous = functions(module), Anonymous()
    keys = [anonymous.key(found["a"], "stage_0"), anonymous.key(found["b"], "stage_1")]
    return keys[0] == keys[1] and hash(keys[0]) == hash(keys[1])


def test_names_of_functions_and_meshes_do_not_count() -> None:
    assert alike(("", ""))


@pytest.mark.parametrize(
    "change",
    [
        ("%x, %y {", "%y, %x {"),
        ("stablehlo.subtract", "stablehlo.add"),
        (
            '%z = stablehlo.subtract %x, %y {sdy.sharding = #sdy.sharding_per_value<[<@MESH, [{"x"}]>]>}',
            "%z = stablehlo.subtract %x, %y",
        ),
        ('{sdy.sharding = #sdy.sharding<@MESH, [{"x"}]>}', '{sdy.sharding = #sdy.sharding<@MESH, [{"y"}]>}'),
        ("dense<0.0>", "dense<1.0>"),
        ("applies stablehlo.add", "applies stablehlo.multiply"),
    ],
)
def test_all_else_does(change: tuple[str, str]) -> None:
    assert change[0] in FUNCTION and not alike(change)
