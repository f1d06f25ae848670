"""Loops and branches along the time axis: states of carried values by fixpoint.

A loop whose inputs hold no examples stays one op.  Otherwise its body is analysed like any block: carried
values start in the state of their initial value (a zero accumulator may turn out to be a partial sum, an invariant
start state becomes split when the body gives examples back) until nothing changes.  Conditions and
branch indices must not depend on examples: microbatches would take different ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.passes.local.time_states import FINISHED, INVARIANT, STATISTIC, State, join


class Analysis(Protocol):
    """What regions need of the analysis around them (`time_analysis.TimeAnalysis`)."""

    parts: int
    depth: int
    stateful: dict[ir.Value, bool]
    entered: dict[int, None]

    def state(self, value: ir.Value) -> State:
        """The state of a value."""

    def read(self, value: ir.Value) -> State:
        """The state in which a microbatch sees a value."""

    def set(self, value: ir.Value, state: State, stateful: bool) -> None:
        """Record a state."""

    def visit(self, op: ir.Operation) -> None:
        """Set the states of an op's results."""

    def resolve(self, value: ir.Value, op: ir.Operation) -> None:
        """Make a finished or partial value available to the microbatch that runs `op`."""

    def mix(self, op: ir.Operation, values: Sequence[ir.Value], reason: str) -> list[State]:
        """An op that needs all examples at once."""


def visit(analysis: Analysis, op: ir.Operation, values: Sequence[ir.Value], states: Sequence[State]) -> list[State]:
    """The states of the results of a loop or branch."""
    analysis.entered.pop(op_id(op), None)
    count = len(op.results)
    if not any(s.is_split for s in states):
        if all(s.is_fixed for s in states):
            return [INVARIANT] * count
        if STATISTIC not in states and not analysis.depth:
            return [FINISHED] * count
        for value in values:
            analysis.resolve(value, op)
        return [STATISTIC if STATISTIC in states else INVARIANT] * count
    analysis.entered[op_id(op)] = None
    stateful = any(analysis.stateful.get(v, False) for v in values)
    analysis.depth += 1
    results = REGIONS[op.name](analysis, op, stateful)
    analysis.depth -= 1
    return results


def _while(analysis: Analysis, op: ir.Operation, stateful: bool) -> list[State]:
    for value in op.operands:
        if analysis.state(value) == FINISHED:
            analysis.resolve(value, op)
    starts = [analysis.read(v) for v in op.operands]
    carries = list(starts)
    condition, body = (region.blocks[0] for region in op.regions)
    for _ in range(2 * len(carries) + 2):
        ends = _block(analysis, body, carries, stateful)
        joined = [_join(analysis, op, s, v) for s, v in zip(starts, ends, strict=True)]
        if joined == carries:
            break
        carries = joined
    else:
        return analysis.mix(op, list(op.operands), "the loop's carried values do not settle")
    (go,) = _block(analysis, condition, carries, stateful)
    _fixed(analysis, op, go, "the loop's condition")
    return carries


def _case(analysis: Analysis, op: ir.Operation, stateful: bool) -> list[State]:
    _fixed(analysis, op, op.operands[0], "the choice of the branch")
    results: list[State] = []
    for region in op.regions:
        ends = _block(analysis, region.blocks[0], [], stateful)
        if not results:
            results = [analysis.read(v) for v in ends]
        else:
            results = [_join(analysis, op, s, v) for s, v in zip(results, ends, strict=True)]
    return results


def _block(analysis: Analysis, block: ir.Block, states: Sequence[State], stateful: bool) -> list[ir.Value]:
    """Analyse a block with given states of its arguments; returns the operands of its terminator."""
    for argument, state in zip(block.arguments, states, strict=True):
        analysis.set(argument, state, stateful)
    *inner, end = (o.operation for o in block.operations)
    for op in inner:
        analysis.visit(op)
    return list(end.operands)


def _join(analysis: Analysis, op: ir.Operation, start: State, end: ir.Value) -> State:
    state = join(start, analysis.read(end))
    if state is None:
        analysis.resolve(end, op)
        state = join(start, analysis.read(end))
    if state is None:
        return analysis.mix(op, [end], "a value it carries is per example in one place and summed in another")[0]
    return state


def _fixed(analysis: Analysis, op: ir.Operation, value: ir.Value, what: str) -> None:
    analysis.resolve(value, op)
    if analysis.parts > 1 and not analysis.read(value).is_fixed:
        analysis.mix(op, [value], f"{what} depends on the examples")


REGIONS: dict[str, Callable[[Analysis, ir.Operation, bool], list[State]]] = {
    "stablehlo.while": _while,
    "stablehlo.case": _case,
    "stablehlo.if": _case,
}
