"""The oracle of a run: the original program on one device, and how far the plan's results are from its.

The difference of a result is the largest absolute one, and that divided by the largest magnitude in the
reference's result.  NaN equals NaN and an infinity itself: a plan has to reproduce these too, and their number is
told.  The default tolerance is 1e-4, or 2e-2 where the program computes with floats of 16 bits (or fewer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import clone_module, functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import set_argument_attributes, set_result_attributes
from alpa_mlir.dialect.staged import Argument, PlanMain
from alpa_mlir.runtime.compiled import Store
from alpa_mlir.runtime.executable import Compiler, jax_mesh
from alpa_mlir.runtime.stage_function import StageFunction, extract
from alpa_mlir.runtime.transport.base import Array

TOLERANCE, TOLERANCE_16_BITS = 1e-4, 2e-2
_SHORT_FLOATS = re.compile(r"tensor<(?:\d+x)*(?:bf16|f16|f[864]E\w+)>")


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference; `strange` counts elements that are not finite in both."""

    absolute: float
    relative: float
    strange: int


def original(model: ir.Module, main: PlanMain, location: str) -> StageFunction:
    """The program of one device that a plan was made from; CompileError where the two do not belong together."""
    plain = clone_module(model)
    if "main" not in functions(plain):
        raise CompileError("the reference has no function @main", location)
    function = functions(plain)["main"]
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    set_argument_attributes(function, [{} for _ in kind.inputs])
    set_result_attributes(function, [{} for _ in kind.results])
    found = extract(plain, "main")
    planned = ([a.type for a in main.arguments], [main.type_of(r) for r in main.results])
    for what, here, there in (("argument", found.arguments, planned[0]), ("result", found.results, planned[1])):
        if len(here) != len(there):
            raise CompileError(f"the reference has {len(here)} {what}s, the plan {len(there)}", location)
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            if (a.shape, a.element) != (b.shape, b.element):
                raise CompileError(f"{what} {i} of the reference is {a}, that of the plan {b.tensor_text}", location)
    return replace(found, name="reference")


def run_original(
    function: StageFunction,
    arguments: Sequence[Argument],
    value: Callable[[int, int], Array | None],
    steps: range,
    store: Store | None = None,
) -> list[Array]:
    """The results after these steps on one device; `value(number, step)` is None where an argument stays."""
    device = jax.local_devices()[0]
    mesh = jax_mesh(Mesh("one", (("x", 1),)), [device])
    run = Compiler(store).compile(function, mesh)
    current: list[Array] = [np.empty(0)] * len(arguments)
    results: list[Array] = []
    for step in steps:
        for number, argument in enumerate(arguments):
            fresh = value(number, step) if step == steps.start or argument.updates is None else None
            if fresh is not None:
                current[number] = fresh
        with jax.enable_x64(True):
            results = [np.asarray(r) for r in run(*current)]
        for number, argument in enumerate(arguments):
            if argument.updates is not None:
                current[number] = results[argument.updates]
    return results


def compare(found: Array, expected: Array) -> Difference:
    """The difference of two arrays of one shape."""
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    a, b = np.asarray(found).astype(wide), np.asarray(expected).astype(wide)
    finite = np.isfinite(a) & np.isfinite(b)
    same = (np.isnan(a) & np.isnan(b)) | (a == b)
    strange = int((~finite & same).sum())
    if (~finite & ~same).any():
        return Difference(float("inf"), float("inf"), strange)
    absolute = float(np.max(np.abs(a - b), where=finite, initial=0.0)) if a.size else 0.0
    scale = float(np.max(np.abs(b), where=finite, initial=0.0)) if a.size else 0.0
    relative = absolute / scale if scale > 0 else (0.0 if absolute == 0 else float("inf"))
    return Difference(absolute, relative, strange)


def tolerance_for(function: StageFunction) -> float:
    """The default tolerance for a program's results."""
    return TOLERANCE_16_BITS if _SHORT_FLOATS.search(function.text) else TOLERANCE


def report(
    names: Sequence[str], found: Sequence[Array], expected: Sequence[Array], tolerance: float
) -> tuple[list[str], bool]:
    """One line per result and a summary, and whether all are within the tolerance."""
    lines, worst = [], (0.0, "")
    for name, a, b in zip(names, found, expected, strict=True):
        d = compare(a, b)
        strange = f", {d.strange} elements are NaN or infinite in both" if d.strange else ""
        verdict = "" if d.relative <= tolerance else "  ABOVE THE TOLERANCE"
        lines.append(f"{name}: largest difference {d.absolute:.3g}, relative {d.relative:.3g}{strange}{verdict}")
        worst = max(worst, (d.relative, name))
    equal = worst[0] <= tolerance
    where = f" ({worst[1]})" if worst[1] else ""
    lines.append(
        f"reference: {len(found)} results, largest relative difference {worst[0]:.3g}{where},"
        f" tolerance {tolerance:g}: {'equal' if equal else 'DIFFERENT'}"
    )
    return lines, equal
