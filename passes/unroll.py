"""Loops that run a known number of times become that many copies of their body.

A `stablehlo.while` is one unit for the passes after this one: every device would compute all of it. What jax's `scan`
and `fori_loop` make counts up by numbers in the program, so the number of rounds can be computed here; the copies
are ops like any others, which can be split over devices, made into layers and spread over stages. Their counters
are constants that `simplify` then folds into slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.diagnostics import Remark, location_text
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes import splat
from alpa_mlir.passes.splat import Splat, splat_of

LOOP = "stablehlo.while"
UNROLL = 10_000
"""Most ops that a loop becomes unless the user says otherwise."""
LAYERS = 10
"""Loops over layers may become so many times as many: kept, they lie on one stage, and every device computes them."""


def unroll_loops(main: ir.Operation, limit: int, remarks: list[Remark]) -> bool:
    """Unroll, inner ones first, the loops whose rounds are known and make at most `limit` ops; whether there were any.

    A loop over layers reads a slice of an argument that is no batch in each round; it may make LAYERS times as many. A
    remark tells of each loop that is unrolled, and of each whose copies would be too many.
    """
    found = False
    batches = {
        n
        for n, entry in enumerate(argument_attributes(main))
        if alpa.ROLE in entry and ir.StringAttr(entry[alpa.ROLE]).value == "batch"
    }
    for loop in [op for op in walk(main) if op.name == LOOP][::-1]:
        size = sum(1 for op in loop.regions[1].blocks[0].operations for _ in (op, *walk(op.operation)))
        if limit <= 0 or size == 0:
            continue
        most = limit * LAYERS if _is_over_layers(loop, main, batches) else limit
        rounds = _rounds(loop, most // size)
        if rounds is None:
            continue
        where = location_text(loop.location)
        if rounds * size > most:
            times = f"{LAYERS} times " if most > limit else ""
            remarks.append(Remark(f"not unrolled: more than {times}unroll={limit} ops would come of it", where))
            continue
        remarks.append(Remark(f"unrolled: {rounds} round{'s' if rounds != 1 else ''} of {size} ops", where))
        _unroll(loop, rounds)
        found = True
    return found


def _is_over_layers(loop: ir.Operation, main: ir.Operation, batches: Set[int]) -> bool:
    """Whether each round reads a slice of what is made, op by op, of an argument of the program that is no batch."""
    body = loop.regions[1].blocks[0]
    *ops, terminator = (op.operation for op in body.operations)
    carried = zip(body.arguments, terminator.operands, loop.operands, strict=True)
    outside = {inside: given for inside, passed_on, given in carried if passed_on == inside}
    for op in ops:
        if op.name == "stablehlo.dynamic_slice":
            value = outside.get(op.operands[0], op.operands[0])
            while not isinstance(value.owner, ir.Block) and len(value.owner.operation.operands) == 1:
                value = value.owner.operation.operands[0]
            own = isinstance(value.owner, ir.Block) and value.owner == main.regions[0].blocks[0]
            if own and ir.BlockArgument(value).arg_number not in batches:
                return True
    return False


def _rounds(loop: ir.Operation, most: int) -> int | None:
    """How often the body runs, counted up to `most` + 1; None if that depends on more than constants."""
    condition, body = (region.blocks[0] for region in loop.regions)
    decides, advances = _scalars(condition), _scalars(body)
    carried = [splat_of(value) for value in loop.operands]
    for rounds in range(most + 2):
        decided = _evaluated(decides, condition, carried)
        if decided[0] is None:
            return None
        if not decided[0].value:
            return rounds
        carried = _evaluated(advances, body, carried)
    return most + 1


def _scalars(block: ir.Block) -> list[ir.Operation]:
    """The ops of a block that compute one integer or truth value, and the terminator."""
    *ops, terminator = (op.operation for op in block.operations)
    return [op for op in ops if len(op.results) == 1 and _is_count(op.results[0].type)] + [terminator]


def _is_count(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType) and kind.rank == 0 and isinstance(kind.element_type, ir.IntegerType)


def _evaluated(ops: list[ir.Operation], block: ir.Block, carried: list[Splat | None]) -> list[Splat | None]:
    """What the terminator (last of `ops`) returns where the block's arguments are `carried`; None: not known."""
    known = {
        argument: number
        for argument, number in zip(block.arguments, carried, strict=True)
        if number is not None and _is_count(argument.type)
    }
    for op in ops[:-1]:
        number = _number(op, [known.get(v) or splat_of(v) for v in op.operands])
        if number is not None:
            known[op.results[0]] = number
    return [known.get(v) or splat_of(v) for v in ops[-1].operands]


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
    elif what == "convert":
        value = splat.convert(numbers[0], kind)
    elif what == "select":
        value = numbers[1 if numbers[0].value else 2].value
    element = splat.element_attribute(value, kind) if value is not None else None
    return Splat(element.value, str(kind)) if element is not None else None


def _unroll(loop: ir.Operation, rounds: int) -> None:
    values: Iterable[ir.Value] = list(loop.operands)
    for _ in range(rounds):
        copy = loop.clone(ip=ir.InsertionPoint(loop))
        body = copy.regions[1].blocks[0]
        for argument, value in zip(body.arguments, values, strict=True):
            argument.replace_all_uses_with(value)
        *ops, terminator = (op.operation for op in body.operations)
        for op in ops:
            op.move_before(loop)
        values = list(terminator.operands)
        copy.erase()
    for result, value in zip(loop.results, values, strict=True):
        result.replace_all_uses_with(value)
    loop.erase()
