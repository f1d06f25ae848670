"""How often a loop runs, and what it counts: numbers that are known in every round.

What jax's `scan` and `fori_loop` make counts up by numbers in the program.
"""

from __future__ import annotations

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.passes import splat
from alpa_mlir.passes.splat import Splat, dense_value, splat_of

DYNAMIC_SLICE, UPDATE_SLICE = "stablehlo.dynamic_slice", "stablehlo.dynamic_update_slice"
LONGEST = 1 << 16
"""The longest list of numbers that is looked into."""


def rounds_of(loop: ir.Operation, most: int) -> int | None:
    """How often the body runs, counted up to `most` + 1; None if that depends on more than constants."""
    condition, body = (region.blocks[0] for region in loop.regions)
    decides, advances, tables = scalars(condition), scalars(body), _tables(loop)
    carried = [splat_of(value) for value in loop.operands]
    for rounds in range(most + 2):
        decided = evaluated(decides, condition, carried, tables)[1][0]
        if decided is None:
            return None
        if not decided.value:
            return rounds
        carried = evaluated(advances, body, carried, tables)[1]
    return most + 1


def numbers_of(loop: ir.Operation, trips: int) -> tuple[dict[ir.Value, list[int]], list[int | None]]:
    """What the numbers in the body are in each round, where that is known of all; what the loop passes on at last."""
    block = loop.regions[1].blocks[0]
    advances, tables = scalars(block), _tables(loop)
    carried = [splat_of(v) for v in loop.operands]
    found: dict[ir.Value, list[int]] = {}
    for _ in range(trips):
        known, carried = evaluated(advances, block, carried, tables)
        for value, number in known.items():
            found.setdefault(value, []).append(int(number.value))
    whole = {value: numbers for value, numbers in found.items() if len(numbers) == trips}
    return whole, [None if number is None else int(number.value) for number in carried]


def _tables(loop: ir.Operation) -> dict[ir.Value, list[int]]:
    """The lists of numbers that a loop is given, as its body (and what is around it) sees them."""
    body = loop.regions[1].blocks[0]
    *ops, terminator = (op.operation for op in body.operations)
    carried = zip(body.arguments, terminator.operands, loop.operands, strict=True)
    outside = {argument: start for argument, value, start in carried if value == argument}
    read = dict.fromkeys(op.operands[0] for op in ops if op.name == DYNAMIC_SLICE)
    listed = {value: _listed(outside.get(value, value)) for value in read}
    return {value: numbers for value, numbers in listed.items() if numbers is not None}


def count_beforehand(loop: ir.Operation, most: int) -> None:
    """Put constants in place of what a loop of at most so many rounds returns where these only write down numbers that
    are known, each in its place."""
    body = loop.regions[1].blocks[0]
    passed_on = list(list(body.operations)[-1].operation.operands)
    updates = {
        n: value.owner.operation
        for n, value in enumerate(passed_on)
        if _is_list(value.type) and not isinstance(value.owner, ir.Block)
    }
    updates = {n: op for n, op in updates.items() if op.name == UPDATE_SLICE and op.operands[0] == body.arguments[n]}
    trips = rounds_of(loop, most) if updates else None
    if trips is None or trips > most:
        return
    numbers = numbers_of(loop, trips)[0]
    for n, update in updates.items():
        written, places = numbers.get(update.operands[1]), numbers.get(update.operands[2])
        kind = ir.RankedTensorType(loop.results[n].type)
        if written is not None and places is not None and sorted(places) == list(range(kind.shape[0])):
            listed = [number for _, number in sorted(zip(places, written, strict=True))]
            with ir.InsertionPoint(loop), loop.location:
                elements = [ir.IntegerAttr.get(kind.element_type, number) for number in listed]
                made = stablehlo.constant(ir.DenseElementsAttr.get(elements, kind))
            loop.results[n].replace_all_uses_with(made)


def _is_list(kind: ir.Type) -> bool:
    """Whether a type is one of a list of integers."""
    if not isinstance(kind, ir.RankedTensorType) or kind.rank != 1:
        return False
    return isinstance(kind.element_type, ir.IntegerType) and kind.element_type.width > 1


def _listed(value: ir.Value) -> list[int] | None:
    """The numbers in a constant or iota of one dimension, perhaps turned round."""
    kind = value.type
    if isinstance(value.owner, ir.Block) or not _is_list(kind) or kind.shape[0] > LONGEST:
        return None
    maker = value.owner.operation
    if maker.name == "stablehlo.reverse":
        turned = _listed(maker.operands[0])
        return turned and turned[::-1]
    if maker.name == "stablehlo.iota":
        return list(range(kind.shape[0]))
    elements = dense_value(value)
    return None if elements is None else [int(n) for n in ir.DenseIntElementsAttr(elements)]


def scalars(block: ir.Block) -> list[ir.Operation]:
    """The ops of a block that compute one integer or truth value, and the terminator."""
    *ops, terminator = (op.operation for op in block.operations)
    return [op for op in ops if len(op.results) == 1 and _is_count(op.results[0].type)] + [terminator]


def _is_count(kind: ir.Type) -> bool:
    if not isinstance(kind, ir.RankedTensorType) or not isinstance(kind.element_type, ir.IntegerType):
        return False
    return all(size == 1 for size in kind.shape)


def evaluated(
    ops: list[ir.Operation], block: ir.Block, carried: list[Splat | None], tables: dict[ir.Value, list[int]]
) -> tuple[dict[ir.Value, Splat], list[Splat | None]]:
    """What is known where the block's arguments are `carried`, and what the terminator (last of `ops`) returns; None:
    not known."""
    known = {
        argument: number
        for argument, number in zip(block.arguments, carried, strict=True)
        if number is not None and _is_count(argument.type)
    }
    for op in ops[:-1]:
        operands = [known.get(v) or splat_of(v) for v in op.operands]
        table = tables.get(op.operands[0]) if op.name == DYNAMIC_SLICE else None
        number = _number(op, operands) if table is None else _looked_up(table, operands[1], op)
        if number is not None:
            known[op.results[0]] = number
    return known, [known.get(v) or splat_of(v) for v in ops[-1].operands]


def _looked_up(table: list[int], place: Splat | None, op: ir.Operation) -> Splat | None:
    """The number at a place of a list, which is clamped as the specification says."""
    if place is None:
        return None
    kind = ir.RankedTensorType(op.results[0].type).element_type
    return Splat(table[min(max(int(place.value), 0), len(table) - 1)], str(kind))


def _number(op: ir.Operation, operands: list[Splat | None]) -> Splat | None:
    """The result of an op on scalars; None where it cannot be computed here."""
    numbers = [n for n in operands if n is not None]
    if len(numbers) < len(operands) or not numbers:
        return None
    kind = ir.RankedTensorType(op.results[0].type).element_type
    what = op.name.removeprefix("stablehlo.")
    value: splat.Number | None = None
    if what in splat.ARITHMETIC:
        value = splat.arithmetic(what, *numbers)
    elif what == "compare":
        value = splat.compare(splat.direction(op), *numbers)
    elif what in ("reshape", "broadcast_in_dim"):
        value = numbers[0].value
    elif what == "convert":
        value = splat.convert(numbers[0], kind)
    elif what == "select":
        value = numbers[1 if numbers[0].value else 2].value
    element = splat.element_attribute(value, kind) if value is not None else None
    return Splat(element.value, str(kind)) if element is not None else None
