"""Loops over many layers become groups of layers, each one round of a loop of its own (`dialect/rounds.py`).

Strip-mining: `for n in 0 … N` is `for g in 0 … G: for k in 0 … N/G`. The outer loop is unrolled: groups can be split
over stages. The inner one becomes the ops of one round between marks, so that what it costs to plan a program does
not grow with its layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import rounds
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.passes.counting import evaluated, scalars
from alpa_mlir.passes.local.shrink import integer
from alpa_mlir.passes.splat import splat_of
from alpa_mlir.passes.stacked import slice_along

FEWEST = 4
GROUPS = 32
"""Into how many groups layers are put: at least, and at most unless the caller says otherwise."""

DYNAMIC_SLICE, UPDATE_SLICE = "stablehlo.dynamic_slice", "stablehlo.dynamic_update_slice"


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
    stacks: dict[int, tuple[ir.Operation, bool]] = field(default_factory=dict)
    """Of what each round writes its slice, with the op that does."""
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
    numbers, after = _numbers_of(loop, trips)
    passed_on = list(_ops(block)[-1].operands)
    for n, (argument, value, start) in enumerate(zip(block.arguments, passed_on, loop.operands, strict=True)):
        if value == argument:
            body.same[n] = start
        elif argument in numbers and (last := after[n]) is not None:
            body.counters[n] = [*numbers[argument], last]
        else:
            update = _update_of(argument, value)
            backwards = _direction(update, 2, numbers, trips) if update is not None else None
            if update is not None and backwards is not None:
                body.stacks[n] = update, backwards
            else:
                body.carried.append(n)
    same = {block.arguments[n] for n in body.same}
    for op in _ops(block):
        if op.name == DYNAMIC_SLICE and (op.operands[0] in same or _block_of(op.operands[0]) != block):
            backwards = _direction(op, 1, numbers, trips)
            if backwards is not None:
                body.reads.append((op, backwards))
    return body


def _ops(block: ir.Block) -> list[ir.Operation]:
    return [view.operation for view in block.operations]


def _block_of(value: ir.Value) -> ir.Block:
    return value.owner if isinstance(value.owner, ir.Block) else value.owner.operation.block


def _numbers_of(loop: ir.Operation, trips: int) -> tuple[dict[ir.Value, list[int]], list[int | None]]:
    """What the scalars in the body are in each round, where that is known of all; what the loop passes on at last."""
    block = loop.regions[1].blocks[0]
    advances = scalars(block)
    carried = [splat_of(v) for v in loop.operands]
    found: dict[ir.Value, list[int]] = {}
    for _ in range(trips):
        known, carried = evaluated(advances, block, carried)
        for value, number in known.items():
            found.setdefault(value, []).append(int(number.value))
    whole = {value: numbers for value, numbers in found.items() if len(numbers) == trips}
    return whole, [None if number is None else int(number.value) for number in carried]


def _update_of(argument: ir.Value, passed_on: ir.Value) -> ir.Operation | None:
    """The op that writes into a value which nothing else in the body reads or writes."""
    owner = passed_on.owner
    if isinstance(owner, ir.Block) or owner.operation.name != UPDATE_SLICE:
        return None
    op: ir.Operation = owner.operation
    alone = len(list(argument.uses)) == 1 and len(list(passed_on.uses)) == 1
    return op if alone and op.operands[0] == argument else None


def _direction(op: ir.Operation, first: int, numbers: dict[ir.Value, list[int]], trips: int) -> bool | None:
    """Whether an op, whose places begin at operand `first`, goes backwards along dimension 0; None: it does neither."""
    shape = shape_of(op.operands[0]) or ()
    piece = shape_of(op.operands[1] if op.name == UPDATE_SLICE else op.results[0]) or ()
    row, *others = list(op.operands)[first:] or [None]
    if row is None or piece != (1, *shape[1:]) or shape[0] != trips:
        return None
    if not all(_is_zero(v, numbers) for v in others):
        return None
    rows, forward = numbers.get(row), list(range(trips))
    return rows != forward if rows in (forward, forward[::-1]) else None


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
            for n, (op, backwards) in self.body.stacks.items():
                update = twin[op_id(op)]
                made[n].append(self._stacked(update.operands[1], backwards))
                update.operands[0] = self.loop.operands[n]
        copy.erase()

    def _counted(self, number: int, kind: ir.Type) -> ir.Value:
        """What the loop counts, from the number of the round in this group."""
        numbers = self.body.counters[number]
        first, step = numbers[self.number * self.length], numbers[1] - numbers[0]
        index = rounds.mark(rounds.INDEX, kind, [], self.length)
        return stablehlo.add(stablehlo.multiply(index, integer(step, kind)), integer(first, kind))

    def _take(self, op: ir.Operation, backwards: bool) -> None:
        """The round's slice of the group's part, in place of one of the whole."""
        shape = list(shape_of(op.operands[0]) or ())
        kind = ir.RankedTensorType(op.results[0].type)
        begin = self.number * self.length
        first = self.trips - begin - self.length if backwards else begin
        part = slice_along(op.operands[0], 0, first, self.length, op)
        with ir.InsertionPoint(op), op.location:
            one = ir.RankedTensorType.get(shape[1:], kind.element_type)
            row = rounds.mark(rounds.SLICE, one, [part], self.length, backwards)
            op.results[0].replace_all_uses_with(stablehlo.reshape(kind, row))
        op.erase()

    def _stacked(self, value: ir.Value, backwards: bool) -> ir.Value:
        kind = ir.RankedTensorType(value.type)
        one = ir.RankedTensorType.get(kind.shape[1:], kind.element_type)
        every = ir.RankedTensorType.get([self.length, *kind.shape[1:]], kind.element_type)
        return rounds.mark(rounds.STACK, every, [stablehlo.reshape(one, value)], self.length, backwards)
