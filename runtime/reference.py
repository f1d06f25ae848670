"""The oracle of a run: the original program on one device, and how far the plan's results are from its.

The difference of a result is the largest absolute one, and that divided by the largest magnitude in the
reference's result.  NaN equals NaN and an infinity itself: a plan has to reproduce these too, and their number is
told.  A result that is NaN throughout tells nothing about the plan: it is not compared, and that is no success.  The
default tolerance is 1e-4.

Where a program computes with floats of 16 bits (or fewer), two correct runs differ by what their sums, made in another
order, are rounded to, and one device is not the nearer to the truth: it adds up the whole batch in short floats, a plan
with microbatches only parts of it.  So there the same program in f32 (`widened`) is asked too.  A result is right where
it is within the type's epsilon (bf16: 7.8e-3; at most 2e-2) of one device's; or at most twice as far from f32's as
that, or within epsilon of it; where one device's is infinite or NaN and f32's is not, within epsilon of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

import jax
import ml_dtypes
import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import clone_module, functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import set_argument_attributes, set_result_attributes
from alpa_mlir.dialect.signature import Signature
from alpa_mlir.dialect.staged import Argument
from alpa_mlir.runtime.compiled import Store
from alpa_mlir.runtime.executable import Compiler, dtype_of, jax_mesh
from alpa_mlir.runtime.stage_function import StageFunction, extract
from alpa_mlir.runtime.transport.base import Array
from alpa_mlir.runtime.widened import short_floats, widened

TOLERANCE, TOLERANCE_16_BITS = 1e-4, 2e-2
"""The second: of programs in short floats that cannot be said in f32."""
TIMES_FARTHER = 2.0
"""A result may be so many times as far from f32 as one device's is."""
SHOWN = 20
"""Of how many results that are right, those farthest off, a report has a line."""


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference; `strange` counts elements that are not finite in both.

    `silent`: all elements are NaN in both.
    """

    absolute: float
    relative: float
    strange: int
    silent: bool = False


def original(model: ir.Module, planned: Signature, location: str) -> StageFunction:
    """The program of one device that a plan was made from; CompileError where the two do not belong together."""
    plain = clone_module(model)
    if "main" not in functions(plain):
        raise CompileError("the reference has no function @main", location)
    function = functions(plain)["main"]
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    set_argument_attributes(function, [{} for _ in kind.inputs])
    set_result_attributes(function, [{} for _ in kind.results])
    found = extract(plain, "main")
    takes, gives = [a.type for a in planned.arguments], [r.type for r in planned.results]
    for what, here, there in (("argument", found.arguments, takes), ("result", found.results, gives)):
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
    program: StageFunction | None = None,
) -> list[Array]:
    """The results after these steps on one device; `value(number, step)` is None where an argument stays.

    `program` is what computes, if not the function itself: the same in f32.  Between steps state is kept in the
    function's own types.
    """
    device = jax.local_devices()[0]
    mesh = jax_mesh(Mesh("one", (("x", 1),)), [device])
    program = program or function
    run = Compiler(store).compile(program, mesh)
    taken, kept = ([dtype_of(t.element) for t in side] for side in (program.arguments, function.results))
    current: list[Array] = [np.empty(0)] * len(arguments)
    results: list[Array] = []
    for step in steps:
        for number, argument in enumerate(arguments):
            fresh = value(number, step) if step == steps.start or argument.updates is None else None
            if fresh is not None:
                current[number] = fresh
        given = [a.astype(t) for a, t in zip(map(np.asarray, current), taken, strict=True)]
        with jax.enable_x64(True):
            results = [np.asarray(r) for r in run(*given)]
        for number, argument in enumerate(arguments):
            if argument.updates is not None:
                current[number] = results[argument.updates].astype(kept[argument.updates])
    return results


def compare(found: Array, expected: Array) -> Difference:
    """The difference of two arrays of one shape."""
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    a, b = np.asarray(found).astype(wide), np.asarray(expected).astype(wide)
    finite = np.isfinite(a) & np.isfinite(b)
    neither = np.isnan(a) & np.isnan(b)
    same = neither | (a == b)
    strange = int((~finite & same).sum())
    if (~finite & ~same).any():
        return Difference(inf, inf, strange)
    if a.size and neither.all():
        return Difference(0.0, 0.0, strange, silent=True)
    with np.errstate(invalid="ignore"):  # of infinities, which are left out
        absolute = float(np.max(np.abs(a - b), where=finite, initial=0.0)) if a.size else 0.0
    scale = float(np.max(np.abs(b), where=finite, initial=0.0)) if a.size else 0.0
    relative = absolute / scale if scale > 0 else (0.0 if absolute == 0 else inf)
    return Difference(absolute, relative, strange)


@dataclass(frozen=True)
class Bound:
    """How far results may be from one device's: `tolerance`, or where there is `wide`, what the program gives in f32,
    at most `TIMES_FARTHER` as far from that as one device's are, or `tolerance`."""

    tolerance: float
    wide: Sequence[Array] | None = None

    def holds(self, number: int, found: Array, expected: Array) -> tuple[bool, str]:
        """Whether it holds for a result, and what was found out about it."""
        relative = compare(found, expected).relative
        if isfinite(relative) and relative <= self.tolerance:
            return True, ""
        if self.wide is None:
            return False, ""
        ours, theirs = (compare(a, self.wide[number]).relative for a in (found, expected))
        near = isfinite(ours) and ours <= max(TIMES_FARTHER * theirs if isfinite(theirs) else 0.0, self.tolerance)
        return near, f", from f32 {ours:.3g} where one device is {theirs:.3g} off"

    def __str__(self) -> str:
        if self.wide is None:
            return f"tolerance {self.tolerance:g}"
        return f"tolerance {self.tolerance:g} or {TIMES_FARTHER:g} times one device's distance from f32"


def bound_for(
    function: StageFunction,
    found: Sequence[Array],
    expected: Sequence[Array],
    in_f32: Callable[[StageFunction], Sequence[Array]],
) -> Bound:
    """The default bound for a program's results; `in_f32` runs the program's wide form, where that is needed."""
    short = short_floats(function)
    if not short:
        return Bound(TOLERANCE)
    epsilons = [float(ml_dtypes.finfo(dtype_of(e)).eps) for e in short]  # type: ignore[no-untyped-call]
    epsilon = min(TOLERANCE_16_BITS, max(epsilons))
    if all(compare(a, b).relative <= epsilon for a, b in zip(found, expected, strict=True)):
        return Bound(epsilon)
    wide = widened(function)
    return Bound(TOLERANCE_16_BITS) if wide is None else Bound(epsilon, in_f32(wide))


def report(
    names: Sequence[str], found: Sequence[Array], expected: Sequence[Array], bound: Bound
) -> tuple[list[str], bool]:
    """Lines and a summary, and whether all were compared and the bound holds for all.

    There is a line for each result that is not right, or not compared, and for the SHOWN others that are farthest off.
    """
    lines: list[tuple[float, str]] = []
    worst, strange, silent, equal = (0.0, ""), 0, 0, True
    for number, (name, a, b) in enumerate(zip(names, found, expected, strict=True)):
        d = compare(a, b)
        holds, said = bound.holds(number, a, b)
        if d.strange and not d.silent:
            said += f", {d.strange} elements are NaN or infinite in both"
        verdict = "  NOT COMPARED: NaN throughout, in both" if d.silent else "" if holds else "  ABOVE THE TOLERANCE"
        line = f"{name}: largest difference {d.absolute:.3g}, relative {d.relative:.3g}{said}{verdict}"
        lines.append((inf if verdict else d.relative, line))
        worst, equal = max(worst, (d.relative, name)), equal and holds
        strange, silent = strange + d.strange, silent + d.silent
    where = f" ({worst[1]})" if worst[1] else ""
    also = f", {strange} elements NaN or infinite in both" if strange else ""
    verdict = "equal" if equal else "DIFFERENT"
    if equal and silent:
        verdict = f"{silent} NOT COMPARED, being NaN throughout: give --inputs from which they become numbers"
    told = _farthest(lines)
    if len(told) < len(lines):
        told.append(f"… and {len(lines) - len(told)} results that differ less")
    told.append(
        f"reference: {len(found)} results, largest relative difference {worst[0]:.3g}{where}, {bound}{also}: {verdict}"
    )
    return told, equal and not silent


def _farthest(lines: Sequence[tuple[float, str]]) -> list[str]:
    """The lines of infinite weight, and the SHOWN others of the greatest, in the order of the results."""
    ranked = sorted(range(len(lines)), key=lambda n: -lines[n][0])
    shown = sorted(ranked[: SHOWN + sum(weight == inf for weight, _ in lines)])
    return [lines[n][1] for n in shown]
