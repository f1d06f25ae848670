"""What a run is compared with: the bound fits the floats of the program, and tells rounding from mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import ml_dtypes
import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.runtime.executable import Compiler, jax_mesh
from alpa_mlir.runtime.reference import TOLERANCE, TOLERANCE_16_BITS, Bound, bound_for, report
from alpa_mlir.runtime.stage_function import StageFunction, extract
from alpa_mlir.runtime.widened import short_floats, widened


def function(text: str) -> StageFunction:
    return extract(parse_module(text, make_context()), "main")


@pytest.mark.parametrize("element", ["f32", "f64", "i16", "bf16", "f16", "f8E4M3FN"])
@pytest.mark.parametrize("shape", ["", "4x8x"])
def test_short_floats_are_found_inside(element: str, shape: str) -> None:
    """The boundary is f32, as in mixed precision."""
    wide, narrow = f"tensor<{shape}f32>", f"tensor<{shape}{element}>"
    found = function(f"""func.func public @main(%arg0: {wide}) -> {wide} {{
      %0 = stablehlo.convert %arg0 : ({wide}) -> {narrow}
      %1 = stablehlo.convert %0 : ({narrow}) -> {wide}
      return %1 : {wide}
    }}""")
    assert short_floats(found) == ({element} if element in ("bf16", "f16", "f8E4M3FN") else set())


def chain(ones: int) -> StageFunction:
    """Adds up `ones` rows one after the other in bf16: a sum above 256 stands still."""
    lines = "\n".join(
        f"""%s{i} = stablehlo.slice %arg0 [{i}:{i + 1}, 0:4] : (tensor<{ones}x4xbf16>) -> tensor<1x4xbf16>
        %a{i + 1} = stablehlo.add %a{i}, %s{i} : tensor<1x4xbf16>"""
        for i in range(ones)
    )
    return function(f"""func.func public @main(%arg0: tensor<{ones}x4xbf16>) -> tensor<1x4xbf16> {{
      %a0 = stablehlo.constant dense<0.0> : tensor<1x4xbf16>
      {lines}
      return %a{ones} : tensor<1x4xbf16>
    }}""")


def run(program: StageFunction, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """On one device."""
    mesh = jax_mesh(Mesh("one", (("x", 1),)), jax.devices()[:1])
    return [np.asarray(r) for r in Compiler().compile(program, mesh)(*arguments)]


def test_a_widened_program_computes_in_f32() -> None:
    program, rows = chain(40), np.full((40, 4), 33.0, ml_dtypes.bfloat16)
    wide = widened(program)
    assert wide is not None and {t.element for t in (*wide.arguments, *wide.results)} == {"f32"}
    (found,) = run(wide, [rows.astype(np.float32)])
    np.testing.assert_array_equal(found, np.full((1, 4), 40 * 33.0, np.float32))


def verdict(program: StageFunction, found: np.ndarray, one: np.ndarray, rows: np.ndarray) -> tuple[bool, str]:
    bound = bound_for(program, [found], [one], lambda wide: run(wide, [rows.astype(np.float32)]))
    lines, equal = report(["sum"], [found], [one], bound)
    return equal, lines[0]


def test_what_is_nearer_to_f32_than_one_device_is_right_and_what_is_not_is_wrong() -> None:
    """One device is 5 % off here, as its sum stands still: being as far from it says nothing."""
    program, rows = chain(40), np.full((40, 4), 33.0, ml_dtypes.bfloat16)
    truth = np.full((1, 4), 40 * 33.0)
    one = (truth * 0.95).astype(ml_dtypes.bfloat16)
    exact = truth.astype(ml_dtypes.bfloat16)
    assert verdict(program, exact, one, rows) == (
        True, "sum: largest difference 64, relative 0.051, from f32 0 where one device is 0.0485 off"
    )  # fmt: skip
    assert verdict(program, one, one, rows)[0]
    assert not verdict(program, (truth * 0.85).astype(ml_dtypes.bfloat16), one, rows)[0]
    # A mistake of 2 % is seen where one device is near the truth: it was within the tolerance of 2e-2.
    assert not verdict(program, (truth * 1.019).astype(ml_dtypes.bfloat16), exact, rows)[0]
    assert Bound(TOLERANCE_16_BITS).holds(0, (truth * 1.019).astype(ml_dtypes.bfloat16), exact)[0]


def test_a_program_without_short_floats_is_compared_with_one_device_alone() -> None:
    program = function("func.func public @main(%a: tensor<4xf32>) -> tensor<4xf32> { return %a : tensor<4xf32> }")

    def never(_: StageFunction) -> Sequence[np.ndarray]:
        raise AssertionError

    assert bound_for(program, [np.ones(4)], [np.zeros(4)], never) == Bound(TOLERANCE)


def half(*numbers: float) -> np.ndarray:
    return np.asarray([numbers], ml_dtypes.bfloat16)


@pytest.mark.parametrize("found", [np.inf, -np.inf, np.nan, 4096.0])
def test_what_differs_from_an_overflow_of_one_device_must_be_near_f32(found: float) -> None:
    """One device overflows, f32 does not: that far from f32, anything would be near enough."""
    wide = [np.asarray([[1.0, 1024.0]], np.float32)]
    overflow = half(1.0, np.inf if found != np.inf else -np.inf)
    assert not report(["r"], [half(1.0, found)], [overflow], Bound(1e-2, wide))[1]
    assert report(["r"], [half(1.0, 1024.0)], [overflow], Bound(1e-2, wide))[1]


def test_what_is_not_a_number_in_both_is_told_and_does_not_count_as_compared() -> None:
    nothing, some = np.full(3, np.nan, np.float16), np.asarray([1.0, np.nan, np.inf], np.float16)
    lines, equal = report(["a", "b"], [nothing, some], [nothing, some], Bound(1e-4))
    assert not equal
    assert lines[0].endswith("NOT COMPARED: NaN throughout, in both")
    assert "5 elements NaN or infinite in both: 1 NOT COMPARED" in lines[2]
    lines, equal = report(["b"], [some], [some], Bound(1e-4))
    assert equal and lines[-1].endswith("2 elements NaN or infinite in both: equal")
    assert not report(["b"], [some], [np.zeros(3)], Bound(np.inf))[1]


def test_a_program_that_reads_bits_has_no_wide_form() -> None:
    program = function("""func.func public @main(%a: tensor<4xbf16>) -> tensor<4xui16> {
      %0 = stablehlo.bitcast_convert %a : (tensor<4xbf16>) -> tensor<4xui16>
      return %0 : tensor<4xui16>
    }""")
    assert widened(program) is None
    found = bound_for(program, [np.ones(4)], [np.zeros(4)], lambda _: [])
    assert found == Bound(TOLERANCE_16_BITS)


def test_of_many_results_those_farthest_off_are_told() -> None:
    expected = [np.ones(3) for _ in range(100)]
    found = [one + n * 1e-9 for n, one in enumerate(expected)]
    names = [f"r{n}" for n in range(100)]
    lines, equal = report(names, found, expected, Bound(1e-4))
    assert equal and [line.split(":")[0] for line in lines[:-2]] == names[80:]
    assert lines[-2] == "… and 80 results that differ less"
    lines, equal = report(names, found, [*expected[:5], expected[5] * 2, *expected[6:]], Bound(1e-4))
    assert not equal and "ABOVE" in lines[0] and lines[0].startswith("r5:") and len(lines) == 23
