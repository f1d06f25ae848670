"""Forward analysis: every value's state along the time axis, from the factors of the ops alone.

The batch arguments start split, everything else invariant; each op's factors say what becomes of its results.
Three things can end a partial sum early:

* a nonlinear use: the value is *finished*, that op belongs to the update;
* a finished value meets examples again.  If it depends on no state (a mask's token count) it is computed
  beforehand on the full batch (`whole`); else, with `per_microbatch`, each microbatch uses its own estimate
  (`statistics`: the local sum times M); else the program mixes examples, an error;
* an op that cannot be split along the batch (a sort over it): likewise whole or an error.

With one microbatch every sum is complete, so an estimate is exact and nothing mixes.
Marking a statistic changes the states of values already seen: the walk then goes back to the mark and revisits only
what depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text
from alpa_mlir.dialect.factors import FIXED, PASS, OpFactors, added_once, read_factors
from alpa_mlir.dialect.rounds import ENTER, LEAVE, SLICE, needed_with
from alpa_mlir.passes.local import time_regions
from alpa_mlir.passes.local.time_linear import unsplit_result
from alpa_mlir.passes.local.time_states import (
    FINISHED,
    INVARIANT,
    STATISTIC,
    ZERO,
    Place,
    State,
    join,
    locate,
    partial,
    standing,
)

OPTION = "allow-per-microbatch-statistics"


class Mixes(CompileError):
    """The program combines examples of different microbatches in a way that time cannot be split over."""


class Rewind(Exception):
    """Values became statistics: go back to the first of them."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class DetachBase(Exception):
    """A sum starts from a value that must not be added once per microbatch: take it out of `op` first."""

    def __init__(self, op: ir.Operation) -> None:
        super().__init__(op.name)
        self.op = op


class TimeAnalysis:
    """States of all values of a function whose arguments `seeds` are given; `run` fills the tables.

    states:     per value its `State` (values inside loops that need no splitting are absent: invariant);
    places:     per op split over the axis, by `op_id`, where the axis lies;
    whole:      finished or partial values wanted in every microbatch, independent of state (ordered);
    statistics: partial values whose estimate (M times the part) the microbatch uses, with their partial state;
    entered:    loops and branches that are rewritten inside, by `op_id`.
    """

    def __init__(self, function: ir.Operation, parts: int, per_microbatch: bool) -> None:
        self.parts = parts
        self.estimate = per_microbatch or parts == 1
        self.block = function.regions[0].blocks[0]
        self.factors: dict[int, OpFactors] = read_factors(function)
        self.ops = [op.operation for op in self.block.operations]
        self.states: dict[ir.Value, State] = {}
        self.stateful: dict[ir.Value, bool] = {}
        self.position: dict[ir.Value, int] = {}
        self.nested: dict[ir.Value, None] = {}
        self.places: dict[int, Place] = {}
        self.whole: dict[ir.Value, None] = {}
        self.statistics: dict[ir.Value, State] = {}
        self.entered: dict[int, None] = {}
        self.changed: dict[ir.Value, None] = {}
        self.passed_on: dict[ir.Value, State] = {}
        """By what comes into the rounds of a loop (`dialect/rounds.py`): what it is because of the rounds before."""
        self.depth = 0
        self.at = -1

    def run(self, seeds: Sequence[State], stateful: Sequence[bool]) -> None:
        """Visit all ops; raises `CompileError` where the program mixes examples, `DetachBase` (see there)."""
        for argument, state, depends in zip(self.block.arguments, seeds, stateful, strict=True):
            self.set(argument, state, depends)
        position = seen = 0
        while position < len(self.ops) - 1:
            op, self.at = self.ops[position], position
            if position >= seen:
                self.changed.clear()
            try:
                if position >= seen or any(v in self.changed for v in inputs(op)):
                    self.visit(op)
                position += 1
                seen = max(seen, position)
            except Rewind as back:
                self.depth = 0
                position = back.position

    def state(self, value: ir.Value) -> State:
        """The state of a value; invariant where nothing is known of it."""
        return self.states.get(value, INVARIANT)

    def read(self, value: ir.Value) -> State:
        """The state in which a microbatch sees a value: one computed beforehand is invariant."""
        state = self.state(value)
        return INVARIANT if value in self.whole and state.kind in ("finished", "partial") else state

    def set(self, value: ir.Value, state: State, stateful: bool) -> None:
        """Record a state (again); a partial value marked as statistic becomes one."""
        if value in self.statistics:
            if state.is_partial:
                state = STATISTIC
            else:
                del self.statistics[value]
        if self.states.get(value) != state:
            self.changed[value] = None
        self.states[value] = state
        self.stateful[value] = stateful
        self.position[value] = self.at
        if self.depth:
            self.nested[value] = None

    def visit(self, op: ir.Operation) -> None:
        """Set the states of an op's results from those of its inputs."""
        values = inputs(op)
        stateful = any(self.stateful.get(v, False) for v in values)
        if op.name == "stablehlo.optimization_barrier":
            for value, result in zip(op.operands, op.results, strict=True):
                self.set(result, self.state(value), self.stateful.get(value, False))
            return
        states = [self.state(v) for v in values]
        if op.name == SLICE and states[0].kind in ("finished", "partial") and self._beforehand(values[0]):
            # What is made beforehand is the stack: a round's slice says nothing outside of its loop.
            self.whole[values[0]] = None
            self.set(op.results[0], INVARIANT, stateful)
            return
        if op.name == LEAVE:
            self._pass_on(op)
            states[0] = self.state(values[0])
        if op.name == ENTER and op.results[0] in self.passed_on:
            self._take(op, self.passed_on[op.results[0]])
            results = [self.passed_on[op.results[0]]]
        elif op.name in time_regions.REGIONS:
            results = time_regions.visit(self, op, values, states)
        elif any(s.is_split for s in states):
            results = self._split(op, values, states)
        else:
            self.places.pop(op_id(op), None)
            results = [self._unsplit(op, values, states)] * len(op.results)
        for result, state in zip(op.results, results, strict=True):
            self.set(result, state, stateful)

    def _pass_on(self, op: ir.Operation) -> None:
        """Let a value that a loop's rounds pass on come into them as it leaves them, and look at the loop again."""
        enters, following = op.operands
        states = self.state(enters), self.state(following)
        joined = join(*states) or (None if any(s.is_split for s in states) else FINISHED)
        if joined is None:
            raise Mixes(
                "what this loop over layers passes on mixes examples of different microbatches: use one microbatch, or "
                "unroll-layers=0",
                op.location,
            )
        if joined != self.state(enters):
            self.passed_on[enters] = joined
            self.at = self.position[enters]
            self.set(enters, joined, self.stateful[enters] or self.stateful[following])
            self._take(self.ops[self.at], joined)
            raise Rewind(self.at + 1)

    def _take(self, op: ir.Operation, state: State) -> None:
        """Record where the axis lies in a `loop_enter` whose later rounds make it `state`."""
        self.places.pop(op_id(op), None)
        if state.is_split:
            factors = self.factors[op_id(op)]
            place = locate(factors.results[0][state.dim], factors.sizes, state.outer, self.parts)
            if place is not None:
                self.places[op_id(op)] = place

    def _unsplit(self, op: ir.Operation, values: Sequence[ir.Value], states: Sequence[State]) -> State:
        """No operand is split: linear ops keep sums partial, others finish them."""
        if STATISTIC not in states and FINISHED not in states:
            result = unsplit_result(op, states)
            if result is not None:
                return result
        awaits = any(s == FINISHED and v not in self.whole for v, s in zip(values, states, strict=True))
        if not self.depth and (awaits or STATISTIC not in states):
            return FINISHED
        for value in values:
            self.resolve(value, op)
        seen = [self.read(v) for v in values]
        return STATISTIC if STATISTIC in seen else INVARIANT

    def _split(self, op: ir.Operation, values: Sequence[ir.Value], states: Sequence[State]) -> list[State]:
        """Some operand is split: find the factor, then pass or reduce."""
        factors = self.factors[op_id(op)]
        self.places.pop(op_id(op), None)
        place = self._place(op, factors, states)
        if isinstance(place, str):
            return self.mix(op, values, place)
        kind = _combine(factors.kinds[place.factor], op)
        if kind is None:
            return self.mix(op, values, "the dimension of the batch cannot be divided in this op")
        base = added_once(op) if kind != PASS else ()
        for i, value in enumerate(values):
            if i in base:
                self._check_base(op, value, kind)
            else:
                self.resolve(value, op)
        if kind != PASS:
            self.places[op_id(op)] = place
            return [partial(kind)] * len(op.results)
        results = [standing(m, factors.sizes, place) for m in factors.results]
        if any(r is None for r in results):
            return self.mix(op, values, "a result of this op does not have the dimension of the batch")
        self.places[op_id(op)] = place
        return [r for r in results if r is not None]

    def _place(self, op: ir.Operation, factors: OpFactors, states: Sequence[State]) -> Place | str:
        """The one factor on which all split operands agree, or why there is none."""
        found: Place | None = None
        for mapping, state in zip(factors.operands, states[: len(op.operands)], strict=True):
            if not state.is_split:
                continue
            dim = mapping[state.dim]
            place = locate(dim, factors.sizes, state.outer, self.parts)
            if place is None:
                sizes = "×".join(str(factors.sizes[f]) for f in dim)
                return f"{self.parts} microbatches do not divide the batch in the dimension it makes here ({sizes})"
            if found is not None and place != found:
                return "examples meet other examples: two operands have the batch in different dimensions"
            found = place
        if found is None:
            return "an examples' value is used inside this op"
        if factors.kinds[found.factor] == FIXED:
            return factors.reason or "it works across the dimension of the batch"
        return found

    def _check_base(self, op: ir.Operation, value: ir.Value, kind: str) -> None:
        state = self.state(value)
        neutral = state == ZERO if kind == "add" else state.is_fixed
        if not neutral and state != partial(kind):
            raise DetachBase(op)

    def resolve(self, value: ir.Value, op: ir.Operation) -> None:
        """Make a finished or partial value available to the microbatch that runs `op`."""
        state = self.state(value)
        if state.kind not in ("finished", "partial") or value in self.whole:
            return
        if self._beforehand(value):
            self.whole[value] = None
        elif self.estimate:
            self._to_statistics(value, op)
        else:
            places = dict.fromkeys(location_text(v.owner.location) for v in self._sources(value))
            raise Mixes(
                f"{op.name} mixes examples of different microbatches: per example it needs a value combined over the "
                f"whole batch; with {OPTION} that is combined over each microbatch instead",
                op.location,
                [Remark("this value is combined", place, "note") for place in places],
            )

    def _beforehand(self, value: ir.Value) -> bool:
        return self.parts > 1 and not self.stateful[value] and value not in self.nested

    def _sources(self, value: ir.Value) -> list[ir.Value]:
        """The partial values that finish on the way to `value`."""
        found: dict[ir.Value, None] = {}
        seen: dict[ir.Value, None] = {}
        stack = [value]
        while stack:
            v = stack.pop()
            state = self.state(v)
            if v in seen or v in self.whole:
                continue
            seen[v] = None
            if state.is_partial:
                found[v] = None
            elif state == FINISHED and not isinstance(v.owner, ir.Block):
                stack.extend(reversed(self._read_for(v)))
        return list(found)

    def _read_for(self, value: ir.Value) -> list[ir.Value]:
        """What a value is made of, in this round of a loop or the one before."""
        op = value.owner.operation
        return inputs(op) + [leave.owner.operation.operands[1] for leave in needed_with(op)]

    def _to_statistics(self, value: ir.Value, op: ir.Operation) -> None:
        marks = 0
        first = self.at
        for source in self._sources(value):
            marks += 1
            if self._beforehand(source):
                self.whole[source] = None
            else:
                self.statistics[source] = self.states[source]
                self.states[source] = STATISTIC
            self.changed[source] = None
            first = min(first, self.position[source])
        if not marks:
            raise Mixes(f"{op.name} mixes examples of different microbatches", op.location)
        for enters in [v for v, state in self.passed_on.items() if state == FINISHED]:
            del self.passed_on[enters]
            self.changed[enters.owner.operation.operands[0]] = None
            first = min(first, self.position[enters])
        raise Rewind(first)

    def mix(self, op: ir.Operation, values: Sequence[ir.Value], reason: str) -> list[State]:
        """An op that needs all examples at once."""
        if self.parts == 1:
            for value in values:
                self.resolve(value, op)
            return [STATISTIC] * len(op.results)
        if not self.depth and not any(self.stateful[v] for v in values):
            for result in op.results:
                self.whole[result] = None
            return [FINISHED] * len(op.results)
        raise Mixes(f"{op.name} mixes examples of different microbatches: {reason}", op.location)


def _combine(kind: str, op: ir.Operation) -> str | None:
    """How microbatches combine what a factor of `kind` leaves; None where nothing in the IR says it."""
    if kind in (PASS, "add", "max", "min"):
        return kind
    element = ir.RankedTensorType(op.results[0].type).element_type
    if isinstance(element, ir.IntegerType) and element.width == 1:
        return {"and": "min", "or": "max"}.get(kind)
    return None


def inputs(op: ir.Operation) -> list[ir.Value]:
    """Operands, then values of enclosing blocks that the op's regions use, in order, once each."""
    values = list(op.operands)
    if len(op.regions):
        values.extend(captures(op))
    return values


def captures(op: ir.Operation) -> list[ir.Value]:
    """Values from outside that the regions of an op use."""
    blocks: list[ir.Block] = []
    used: dict[ir.Value, None] = {}
    for inner in _inside(op, blocks):
        for value in inner.operands:
            used[value] = None
    return [v for v in used if (v.owner if isinstance(v.owner, ir.Block) else v.owner.operation.block) not in blocks]


def _inside(op: ir.Operation, blocks: list[ir.Block]) -> Iterator[ir.Operation]:
    for region in op.regions:
        for block in region.blocks:
            blocks.append(block)
            for inner in block.operations:
                yield inner.operation
                yield from _inside(inner.operation, blocks)
