"""`alpa-roll`: the marked ops of one round become the loop that they stand for (`dialect/rounds.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import alpa, rounds
from alpa_mlir.dialect.context import functions, op_id
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.passes.local.counted_loop import counted_loop
from alpa_mlir.passes.local.shrink import integer
from alpa_mlir.passes.local.splats import splat
from alpa_mlir.passes.registry import Pass, register

_SPREADS = frozenset(f"stablehlo.{name}" for name in ("broadcast_in_dim", "reshape", "convert", "iota", "constant"))
"""What is made anew in each round, where it is made of nothing but itself: kept, it would lie in memory."""


@register
@dataclass(frozen=True)
class Roll(Pass):
    """Loops that stand as one round between marks (`alpa.loop_*`) become `stablehlo.while`.

    Before: any level. After: the same without marks; `alpa-localize` and `alpa-export-to-shardy` end with it.
    Errors: a value of one round that is used behind the loop; marks that say nothing, or are unknown.
    """

    name: ClassVar[str] = "alpa-roll"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""
        roll_loops(module)


def roll_loops(module: ir.Module) -> None:
    """Turn the marked ops of all functions into loops; CompileError where a round is used outside of its loop."""
    for function in functions(module).values():
        for block in list(_blocks(function)):
            _roll(block)


def _blocks(op: ir.Operation) -> Iterable[ir.Block]:
    """The blocks of a function that hold marks: its own, or that of its program of one device."""
    for region in op.regions:
        for block in region.blocks:
            ops = [view.operation for view in block.operations]
            if any(o.name.startswith(rounds.PREFIX) for o in ops):
                yield block
            for o in ops:
                if o.name == "sdy.manual_computation":
                    yield from _blocks(o)


def _roll(block: ir.Block) -> None:
    ops = [view.operation for view in block.operations]
    for op in ops:
        if op.name.startswith(rounds.PREFIX):
            rounds.check_mark(op)
    found = rounds.find_rounds(ops)
    inside = {n for one in found for n in one.ops}
    for n, op in enumerate(ops):
        if op.name == rounds.LEAVE and n not in inside:
            raise CompileError(f"{op.name} passes on what has entered no loop", op.location)
    same = [op for n, op in enumerate(ops) if op.name == rounds.STACK and n not in inside]
    for one in found:
        _Loop(block, [ops[n] for n in one.ops], one.trips).write(one.ops[-1] - one.ops[0] == len(one.ops) - 1)
    for op in same:
        _spread(op)


def _spread(op: ir.Operation) -> None:
    """A stack of what is the same in every round."""
    kind = ir.RankedTensorType(op.results[0].type)
    dims = ir.DenseI64ArrayAttr.get(list(range(1, kind.rank)), op.context)
    with ir.InsertionPoint(op), op.location:
        op.results[0].replace_all_uses_with(stablehlo.broadcast_in_dim(kind, op.operands[0], dims))
    op.erase()


@dataclass
class _Loop:
    """The ops of one round, in a block."""

    block: ir.Block
    ops: list[ir.Operation]
    trips: int
    local: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Values as the loop's body sees them."""

    def __post_init__(self) -> None:
        self.made = {v for op in self.ops for v in op.results}

    def write(self, together: bool) -> None:
        """Put the loop in place of the ops, which stand `together` or among others."""
        self._check()
        if not together:
            self._gather()
        enters, stacks = self._named(rounds.ENTER), self._named(rounds.STACK)
        left = {op.operands[0]: op for op in self._named(rounds.LEAVE)}
        last = self.ops[-1]
        if len(self._named(rounds.LEAVE)) > len(left):
            raise CompileError("a value that a loop passes on leaves it twice", last.location)
        if left.keys() != {op.results[0] for op in enters}:
            raise CompileError(
                "what a loop passes on must leave it as it comes in: each loop_enter needs a loop_leave of its result",
                last.location,
            )
        with ir.InsertionPoint(last), last.location:
            captured = self._captured()
            empty = [splat(op.results[0].type, 0) for op in stacks]
            starts = [*(op.operands[0] for op in enters), *empty, *captured]
            loop, body = counted_loop(starts, self.trips, last.location)
        number, *rest = list(body.arguments)
        entered, filled, kept = rest[: len(enters)], rest[len(enters) :][: len(stacks)], rest[len(enters + stacks) :]
        self.local |= dict(zip((op.results[0] for op in enters), entered, strict=True))
        self.local |= dict(zip(captured, kept, strict=True))
        with ir.InsertionPoint(body), last.location:
            self._write_body(body, number)
            passed = [self._see(left[op.results[0]].operands[1]) for op in enters]
            written = [self._stacked(op, whole, number) for op, whole in zip(stacks, filled, strict=True)]
            stablehlo.return_([stablehlo.add(number, _integer(1)), *passed, *written, *kept])
        ends = [*(left[op.results[0]] for op in enters), *stacks]
        for op, result in zip(ends, list(loop.results)[1:], strict=False):
            op.results[0].replace_all_uses_with(result)
        for op in reversed(self.ops):
            if op.name in rounds.MARKS:
                op.erase()

    def _named(self, name: str) -> list[ir.Operation]:
        return [op for op in self.ops if op.name == name]

    def _check(self) -> None:
        """A round's values must not be used behind the loop."""
        members = {op_id(op) for op in self.ops}
        for op in self.ops:
            for use in (use for v in op.results if op.name not in rounds.ENDS for use in v.uses):
                user = alpa.outermost(use.owner.operation, self.block)
                if op_id(user) not in members:
                    raise CompileError(
                        f"{op.name} belongs to one round of a loop: {user.name} is behind it",
                        user.location,
                    )

    def _gather(self) -> None:
        """Move what stands among the ops and reads what the loop makes behind the last of them."""
        members, last = {op_id(op) for op in self.ops}, op_id(self.ops[-1])
        made = {v for op in self.ops if op.name in rounds.ENDS for v in op.results}
        behind: list[ir.Operation] = []
        for view in self.block.operations:
            op = view.operation
            if op_id(op) == last:
                break
            if op_id(op) not in members and not made.isdisjoint(rounds.read_by(op)):
                behind.append(op)
                made.update(op.results)
        for op in reversed(behind):
            op.move_after(self.ops[-1])

    def _captured(self) -> list[ir.Value]:
        """What the rounds read of what is made outside, and is not made anew in each."""
        found: dict[ir.Value, None] = {}
        for op in self.ops:
            if op.name != rounds.ENTER:
                for value in rounds.read_by(op):
                    if self._is_outside(value) and not _is_spread(value):
                        found[value] = None
        return list(found)

    def _is_outside(self, value: ir.Value) -> bool:
        owner = value.owner
        block = owner if isinstance(owner, ir.Block) else owner.operation.block
        return block == self.block and value not in self.made

    def _see(self, value: ir.Value) -> ir.Value:
        """A value as the body sees it, at the current insertion point."""
        if value in self.local or not self._is_outside(value):
            return self.local.get(value, value)
        maker = value.owner.operation
        operands = [self._see(v) for v in maker.operands]
        copy = maker.clone().operation
        for n, operand in enumerate(operands):
            copy.operands[n] = operand
        self.local[value] = copy.results[0]
        return self.local[value]

    def _write_body(self, body: ir.Block, number: ir.Value) -> None:
        for op in self.ops:
            if op.name == rounds.SLICE:
                self.local[op.results[0]] = self._slice(op, number)
            elif op.name == rounds.INDEX:
                self.local[op.results[0]] = stablehlo.convert(op.results[0].type, number)
            elif op.name not in rounds.MARKS:
                for inner in (op, *alpa.walk(op)):
                    for n, value in enumerate(inner.operands):
                        seen = self._see(value)
                        if seen != value:
                            inner.operands[n] = seen
                body.append(op)

    def _row(self, op: ir.Operation, number: ir.Value) -> list[ir.Value]:
        """Where a round's slice of a stack begins."""
        row = stablehlo.subtract(_integer(self.trips - 1), number) if alpa.REVERSED in op.attributes else number
        rank = max(len(shape_of(v) or ()) for v in (op.operands[0], op.results[0]))
        return [row, *(_integer(0) for _ in range(rank - 1))]

    def _slice(self, op: ir.Operation, number: ir.Value) -> ir.Value:
        sizes = ir.DenseI64ArrayAttr.get([1, *(shape_of(op.results[0]) or ())])
        row = stablehlo.dynamic_slice(self._see(op.operands[0]), self._row(op, number), sizes)
        return stablehlo.reshape(op.results[0].type, row)

    def _stacked(self, op: ir.Operation, whole: ir.Value, number: ir.Value) -> ir.Value:
        value = self._see(op.operands[0])
        kind = ir.RankedTensorType(value.type)
        row = stablehlo.reshape(ir.RankedTensorType.get([1, *kind.shape], kind.element_type), value)
        return stablehlo.dynamic_update_slice(whole, row, self._row(op, number))


def _is_spread(value: ir.Value) -> bool:
    """Whether a value is made of nothing but constants, and so is made anew in each round rather than kept."""
    if isinstance(value.owner, ir.Block):
        return False
    op = value.owner.operation
    return op.name in _SPREADS and all(_is_spread(v) for v in op.operands)


def _integer(number: int) -> ir.Value:
    return integer(number, ir.RankedTensorType.get([], ir.IntegerType.get_signless(32)))
