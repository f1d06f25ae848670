"""What a run is compared with: the tolerance fits the floats that the program computes with."""

from __future__ import annotations

import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.runtime.reference import TOLERANCE, TOLERANCE_16_BITS, tolerance_for
from alpa_mlir.runtime.stage_function import extract


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ("f32", TOLERANCE),
        ("f64", TOLERANCE),
        ("i16", TOLERANCE),
        ("bf16", TOLERANCE_16_BITS),
        ("f16", TOLERANCE_16_BITS),
        ("f8E4M3FN", TOLERANCE_16_BITS),
    ],
)
@pytest.mark.parametrize("shape", ["", "4x8x"])
def test_tolerance_is_that_of_the_shortest_float_inside(element: str, expected: float, shape: str) -> None:
    """The boundary is f32, as in mixed precision."""
    wide, narrow = f"tensor<{shape}f32>", f"tensor<{shape}{element}>"
    text = f"""func.func public @main(%arg0: {wide}) -> {wide} {{
      %0 = stablehlo.convert %arg0 : ({wide}) -> {narrow}
      %1 = stablehlo.convert %0 : ({narrow}) -> {wide}
      return %1 : {wide}
    }}"""
    assert tolerance_for(extract(parse_module(text, make_context()), "main")) == expected
