"""Loops over many layers become groups of layers, each one round of a loop of its own (`dialect/rounds.py`).

Strip-mining: `for n in 0 … N` is `for g in 0 … G: for k in 0 … N/G`. The outer loop is unrolled: groups can be split
over stages. The inner one becomes the ops of one round between marks, so that what it costs to plan a program does
not grow with its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import rounds
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.passes.counting import DYNAMIC_SLICE, UPDATE_SLICE, numbers_of
from alpa_mlir.passes.local.shrink import integer
from alpa_mlir.passes.splat import splat_element, splat_of
from alpa_mlir.passes.stacked import slice_along

FEWEST = 4
GROUPS = 32
"""Into how many groups layers are put: at least, and at most unless the caller says otherwise."""


def groups_of(layers: int, most: int = GROUPS) -> int:
    """Into how many equal groups so many layers are put, at most `most`; 0: none fits."""
    return max((g for g in range(FEWEST, most + 1) if layers % g == 0 and g < layers), default=0)


@dataclass
class _Body:
    """What a loop's body does with what it is passed, by number of the argument or by op.

    Slices are those along dimension 0, one in each round, from the first or (True) from the last.
    """

    block: ir.Block
    same: dict[int, ir.Value] = field(default_factory=dict)
    """What stays as it was before the loop."""
    counters: dict[int, list[int]] = field(default_factory=dict)
    """What is known in each round, and after the last."""
    stacks: dict[int, tuple[list[ir.Operation], bool]] = field(default_factory=dict)
    """Of what each round reads and writes its slice alone, with the ops that do, in program order."""
    carried: list[int] = field(default_factory=list)
    reads: list[tuple[ir.Operation, bool]] = field(default_factory=list)


def strip_mine(loop: ir.Operation, trips: int, groups: int) -> bool:
    """Put the ops of one round, with its marks, once for each of `groups` in place of a loop of `trips` rounds.

    False, and nothing is changed, where the loop counts by other than equal steps. What counted, and computed places,
    is left where nothing reads it any more.
    """
    body = _read(loop, trips)
    if any(len({b - a for a, b in pairwise(n)}) != 1 for n in body.counters.values()):
        return False
    passed = {n: loop.operands[n] for n in body.carried}
    made: dict[int, list[ir.Value]] = {n: [] for n in body.stacks}
    with loop.location:
        for group in range(groups):
            _Group(loop, body, group, trips // groups, trips).write(passed, made)
        with ir.InsertionPoint(loop):
            for n, result in enumerate(loop.results):
                result.replace_all_uses_with(_after(n, body, passed, made, result.type))
    loop.erase()
    return True


def _after(
    number: int, body: _Body, passed: dict[int, ir.Value], made: dict[int, list[ir.Value]], kind: ir.Type
) -> ir.Value:
    """What the loop returns."""
    if number in made:
        parts = made[number][::-1] if body.stacks[number][1] else made[number]
        return stablehlo.concatenate(parts, ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 0))
    if number in body.counters:
        return integer(body.counters[number][-1], kind)
    return passed[number] if number in passed else body.same[number]


def _read(loop: ir.Operation, trips: int) -> _Body:
    block = loop.regions[1].blocks[0]
    body = _Body(block)
    numbers, after = numbers_of(loop, trips)
    passed_on = list(_ops(block)[-1].operands)
    for n, (argument, value, start) in enumerate(zip(block.arguments, passed_on, loop.operands, strict=True)):
        if value == argument:
            body.same[n] = start
        elif argument in numbers and (last := after[n]) is not None:
            body.counters[n] = [*numbers[argument], last]
        else:
            rows = _rows_of(n, argument, value, numbers, trips)
            if rows is not None:
                body.stacks[n] = rows
            else:
                body.carried.append(n)
    same = {block.arguments[n] for n in body.same}
    for op in _ops(block):
        if op.name == DYNAMIC_SLICE and (op.operands[0] in same or _block_of(op.operands[0]) != block):
            backwards = _direction(op, numbers, trips)
            if backwards is not None:
                body.reads.append((op, backwards))
    return body


def _ops(block: ir.Block) -> list[ir.Operation]:
    return [view.operation for view in block.operations]


def _block_of(value: ir.Value) -> ir.Block:
    return value.owner if isinstance(value.owner, ir.Block) else value.owner.operation.block


def _rows_of(
    number: int, argument: ir.Value, passed_on: ir.Value, numbers: dict[ir.Value, list[int]], trips: int
) -> tuple[list[ir.Operation], bool] | None:
    """The ops that read and write an argument, and whether backwards, where each round does so in its slice alone."""
    block = _block_of(argument)
    *ops, terminator = _ops(block)
    place = {op_id(op): n for n, op in enumerate(ops)}
    found: dict[int, bool] = {}
    pending = [argument]
    while pending:
        value = pending.pop()
        for use in value.uses:
            op = use.owner.operation
            if op == terminator and use.operand_number == number:
                continue
            way = _way(op, numbers, trips) if op_id(op) in place and use.operand_number == 0 else None
            if way is None:
                return None
            found[place[op_id(op)]] = way
            pending += [op.results[0]] if op.name == UPDATE_SLICE else []
    maker = None if isinstance(passed_on.owner, ir.Block) else passed_on.owner.operation
    written = maker is not None and maker.name == UPDATE_SLICE and place.get(op_id(maker)) in found
    if not written or len({*found.values()}) != 1:
        return None
    return [ops[n] for n in sorted(found)], next(iter(found.values()))


def _direction(op: ir.Operation, numbers: dict[ir.Value, list[int]], trips: int) -> bool | None:
    """Whether an op reads whole slices along dimension 0 backwards; None: it does not read each in its round."""
    shape, piece = shape_of(op.operands[0]) or (), shape_of(op.results[0]) or ()
    whole = piece[1:] == shape[1:] and all(_is_zero(v, numbers) for v in list(op.operands)[2:])
    return _way(op, numbers, trips) if whole else None


def _way(op: ir.Operation, numbers: dict[ir.Value, list[int]], trips: int) -> bool | None:
    """Whether an op reads or writes in each round in one slice along dimension 0, backwards; None: it does neither."""
    first = {DYNAMIC_SLICE: 1, UPDATE_SLICE: 2}.get(op.name)
    if first is None or len(op.operands) == first:
        return None
    shape = shape_of(op.operands[0]) or ()
    piece = shape_of(op.operands[1] if op.name == UPDATE_SLICE else op.results[0]) or ()
    rows, forward = numbers.get(op.operands[first]), list(range(trips))
    if (shape[0], piece[0]) != (trips, 1) or rows not in (forward, forward[::-1]):
        return None
    return rows != forward


def _is_zero(value: ir.Value, numbers: dict[ir.Value, list[int]]) -> bool:
    """Whether an integer is zero in every round."""
    constant = splat_of(value)
    return constant.value == 0 if constant is not None else set(numbers.get(value, ())) == {0}


@dataclass
class _Group:
    """One group of the rounds of a loop, written before it."""

    loop: ir.Operation
    body: _Body
    number: int
    length: int
    trips: int

    def write(self, passed: dict[int, ir.Value], made: dict[int, list[ir.Value]]) -> None:
        """`passed`: by number what this group takes from the one before and leaves to the next; `made`: its stacks."""
        copy = self.loop.clone(ip=ir.InsertionPoint(self.loop)).operation
        block = copy.regions[1].blocks[0]
        twin = {op_id(old): new for old, new in zip(_ops(self.body.block), _ops(block), strict=True)}
        with ir.InsertionPoint(copy):
            entered = {n: rounds.mark(rounds.ENTER, v.type, [v], self.length) for n, v in passed.items()}
            counted = {n: self._counted(n, block.arguments[n].type) for n in self.body.counters}
        starts = {**self.body.same, **entered, **counted}
        for n, argument in enumerate(block.arguments):
            if n in starts:
                argument.replace_all_uses_with(starts[n])
        for op, backwards in self.body.reads:
            self._take(twin[op_id(op)], backwards)
        *ops, terminator = _ops(block)
        leaving = list(terminator.operands)
        terminator.erase()
        for op in ops:
            op.move_before(copy)
        with ir.InsertionPoint(copy):
            for n, start in entered.items():
                passed[n] = rounds.mark(rounds.LEAVE, start.type, [start, leaving[n]], self.length)
        for n, (rows, backwards) in self.body.stacks.items():
            last = self._write_rows(
                block.arguments[n], self.loop.operands[n], [twin[op_id(op)] for op in rows], backwards
            )
            with ir.InsertionPoint(copy):
                made[n].append(self._stacked(last[leaving[n]], backwards))
            for op in reversed(rows):
                twin[op_id(op)].erase()
        copy.erase()

    def _write_rows(
        self, argument: ir.Value, start: ir.Value, ops: Sequence[ir.Operation], backwards: bool
    ) -> dict[ir.Value, ir.Value]:
        """Let ops that read and write one slice of an argument do so with that alone; by value what it then is."""
        kind = ir.RankedTensorType(argument.type)
        row = ir.RankedTensorType.get([1, *list(kind.shape)[1:]], kind.element_type)
        now = {argument: self._row(start, row, backwards, ops[0])}
        for op in ops:
            source, updates = now[op.operands[0]], list(op.operands)[1:2] if op.name == UPDATE_SLICE else []
            first, *others = list(op.operands)[1 + len(updates) :]
            with ir.InsertionPoint(op), op.location:
                places = [integer(0, first.type), *others]
                if updates:
                    now[op.results[0]] = stablehlo.dynamic_update_slice(source, updates[0], places)
                else:
                    sizes = shape_of(op.results[0]) or ()
                    op.results[0].replace_all_uses_with(stablehlo.dynamic_slice(source, places, sizes))
        return now

    def _counted(self, number: int, kind: ir.Type) -> ir.Value:
        """What the loop counts, from the number of the round in this group."""
        numbers = self.body.counters[number]
        first, step = numbers[self.number * self.length], numbers[1] - numbers[0]
        index = rounds.mark(rounds.INDEX, kind, [], self.length)
        return stablehlo.add(stablehlo.multiply(index, integer(step, kind)), integer(first, kind))

    def _take(self, op: ir.Operation, backwards: bool) -> None:
        """The round's slice of the group's part, in place of one of the whole."""
        op.results[0].replace_all_uses_with(self._row(op.operands[0], op.results[0].type, backwards, op))
        op.erase()

    def _row(self, stack: ir.Value, kind: ir.Type, backwards: bool, op: ir.Operation) -> ir.Value:
        """The round's slice of a stack, before an op."""
        element = splat_element(stack)
        with ir.InsertionPoint(op), op.location:
            if element is not None:
                return stablehlo.constant(ir.DenseElementsAttr.get_splat(kind, element))
        begin = self.number * self.length
        first = self.trips - begin - self.length if backwards else begin
        part = slice_along(stack, 0, first, self.length, op)
        with ir.InsertionPoint(op), op.location:
            shape = shape_of(stack) or ()
            one = ir.RankedTensorType.get(shape[1:], ir.RankedTensorType(kind).element_type)
            row = rounds.mark(rounds.SLICE, one, [part], self.length, backwards)
            return stablehlo.reshape(kind, row)

    def _stacked(self, value: ir.Value, backwards: bool) -> ir.Value:
        kind = ir.RankedTensorType(value.type)
        one = ir.RankedTensorType.get(kind.shape[1:], kind.element_type)
        every = ir.RankedTensorType.get([self.length, *kind.shape[1:]], kind.element_type)
        return rounds.mark(rounds.STACK, every, [stablehlo.reshape(one, value)], self.length, backwards)
