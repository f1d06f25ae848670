"""Loop fission: what a loop's rounds make of finished sums becomes a loop of its own, which runs once per step.

A loop over layers (`dialect/rounds.py`) runs once per microbatch. Where its rounds also need a sum over all examples
(add a constant to it, square it, add it to what started from a number), that belongs to the update. What the rounds
sum up is then stacked, and a second loop takes it from the stack:

    for n: h = f(h); p = sum(h); t = t + p + c        for n: h = f(h); s[n] = sum(h)
                                                      for n: t = t + s[n] + c

What both need and no example changes (weights, the number of the round) is made in both.  What the rounds need of all
examples beforehand (a mask's sum) is made in a loop before, and stacked likewise.  Theory: Kennedy and Allen,
Optimizing Compilers for Modern Architectures, 2001, §5.2, loop distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import rounds
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.local.time_analysis import TimeAnalysis, captures
from alpa_mlir.passes.local.time_demand import BARRIER
from alpa_mlir.passes.local.time_emit import barrier, replace_inside
from alpa_mlir.passes.local.time_states import FINISHED, STATISTIC


@dataclass(frozen=True, eq=False)
class TwoLoops:
    """The ops of a loop some of which run once per microbatch, and what belongs before or behind all of them."""

    ops: Sequence[ir.Operation]
    early: Sequence[ir.Value]
    """What its rounds make beforehand, of all examples."""
    late: Sequence[ir.Operation]
    """The ops that need what all microbatches make."""


class MustSplit(Exception):
    """Loops must become two each: then analyse again."""

    def __init__(self, loops: Sequence[TwoLoops]) -> None:
        super().__init__(len(loops))
        self.loops = loops


def split_loops(loops: Sequence[TwoLoops], analysis: TimeAnalysis) -> None:
    """Make two loops of each, in place; CompileError where a microbatch needs what the second one makes."""
    early = any(loop.early for loop in loops)
    for loop in loops:
        fission = _Fission(loop, analysis)
        if early:
            fission.put_before(loop.early)
        else:
            fission.put_behind()


class _Fission:
    def __init__(self, loop: TwoLoops, analysis: TimeAnalysis) -> None:
        self.analysis = analysis
        self.ops = {op_id(op): op for op in loop.ops}
        self.late = {op_id(op) for op in loop.late}
        self.copies: dict[ir.Value, ir.Value] = {}
        """Values of the one loop as the other has them."""
        self.trips = next(rounds.trips_of(op) for op in loop.ops if op.name in rounds.MARKS)

    def put_before(self, values: Sequence[ir.Value]) -> None:
        """Make values of the rounds, and all that they are made of, in a loop before."""
        rows = [self._through_a_stack(self._again(value)) for value in values]
        for value, row in zip(values, rows, strict=True):
            value.replace_all_uses_with(row)

    def put_behind(self) -> None:
        """Let all that is late be made in a loop behind."""
        self._close()
        for op in list(self.ops.values()):
            if op_id(op) in self.late and op.name == BARRIER:
                self._split_barrier(op)
        for op in list(self.ops.values()):
            if op_id(op) in self.late:
                self._separate(op)

    def _made_by(self, value: ir.Value) -> ir.Operation | None:
        """The op that makes a value in each round; None for what is made outside."""
        if isinstance(value.owner, ir.Block) or value.owner.operation.name in rounds.ENDS:
            return None
        return self.ops.get(op_id(value.owner.operation))

    def _is_late(self, value: ir.Value) -> bool:
        maker = self._made_by(value)
        if maker is None or op_id(maker) not in self.late:
            return False
        return maker.name != BARRIER or self._is_finished(value)

    def _close(self) -> None:
        """Let all be late that reads what is late, in this round or the next."""
        before = -1
        while before != len(self.late):
            before = len(self.late)
            for number, op in self.ops.items():
                following = [leave.owner.operation.operands[1] for leave in rounds.needed_with(op)]
                if any(self._is_late(v) for v in (*rounds.read_by(op), *following)):
                    self.late.add(number)
        for number in self.late & {*self.analysis.places, *self.analysis.entered}:
            raise self._error(self.ops[number])

    def _split_barrier(self, op: ir.Operation) -> None:
        """A barrier for what is late, and one for the other values."""
        pairs = list(zip(op.operands, op.results, strict=True))
        del self.ops[op_id(op)]
        for late in (False, True):
            mine = [(value, result) for value, result in pairs if self._is_finished(result) == late]
            if not mine:
                continue
            new = barrier(op, [value for value, _ in mine], ir.InsertionPoint(op))
            made = new[0].owner.operation
            self.ops[op_id(made)] = made
            self.late.update([op_id(made)] if late else [])
            for (_, old), value in zip(mine, new, strict=True):
                self.analysis.states[value] = self.analysis.state(old)
                old.replace_all_uses_with(value)
        op.erase()

    def _is_finished(self, value: ir.Value) -> bool:
        return self.analysis.state(value) == FINISHED

    def _separate(self, op: ir.Operation) -> None:
        """Let a late op read nothing of the first loop."""
        for i, value in enumerate(op.operands):
            op.operands[i] = self._late(value)
        if len(op.regions):
            replace_inside(op, {v: self._late(v) for v in captures(op)})

    def _late(self, value: ir.Value) -> ir.Value:
        """A value as the loop behind has it."""
        maker = self._made_by(value)
        if maker is None or self._is_late(value):
            return value
        if value not in self.copies:
            state = self.analysis.state(value)
            if state.is_fixed:
                self._copy(maker, value, self._late)
            elif state.is_partial or state == STATISTIC:
                self.copies[value] = self._through_a_stack(value)
            else:
                raise self._error(maker)
        return self.copies[value]

    def _again(self, value: ir.Value) -> ir.Value:
        """A value as the loop before has it."""
        maker = self._made_by(value)
        if maker is None:
            return value
        if value not in self.copies:
            self._copy(maker, value, self._again)
        return self.copies[value]

    def _through_a_stack(self, value: ir.Value) -> ir.Value:
        """A value of each round of a loop in those of another."""
        kind = ir.RankedTensorType(value.type)
        every = ir.RankedTensorType.get([self.trips, *kind.shape], kind.element_type)
        maker = value.owner.operation
        with ir.InsertionPoint.after(maker), maker.location:
            stack = rounds.mark(rounds.STACK, every, [value], self.trips)
            return rounds.mark(rounds.SLICE, kind, [stack], self.trips)

    def _copy(self, op: ir.Operation, value: ir.Value, see: Callable[[ir.Value], ir.Value]) -> None:
        """Make what an op makes, or a value alone of a barrier, for the other loop, which sees operands so."""
        if op.name == BARRIER:
            operand = see(op.operands[list(op.results).index(value)])
            (self.copies[value],) = barrier(op, [operand], ir.InsertionPoint.after(op))
            return
        operands = [see(v) for v in op.operands]
        inside = {v: see(v) for v in captures(op)} if len(op.regions) else {}
        copy = op.clone(ip=ir.InsertionPoint.after(op)).operation
        for i, operand in enumerate(operands):
            copy.operands[i] = operand
        replace_inside(copy, inside)
        self.copies.update(zip(op.results, copy.results, strict=True))
        for left in rounds.needed_with(op):
            leave = left.owner.operation
            following = see(leave.operands[1])
            with ir.InsertionPoint.after(leave), leave.location:
                rounds.mark(rounds.LEAVE, left.type, [copy.results[0], following], self.trips)

    def _error(self, op: ir.Operation) -> CompileError:
        return CompileError(
            f"{op.name} of a loop over layers needs what all microbatches make in it: use one microbatch, or "
            "unroll-layers=0",
            op.location,
        )
