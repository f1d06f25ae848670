"""How often a loop runs, and what it counts: numbers that are known in every round.

What jax's `scan` and `fori_loop` make counts up by numbers in the program.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.passes import splat
from alpa_mlir.passes.splat import Splat, splat_of


def rounds_of(loop: ir.Operation, most: int) -> int | None:
    """How often the body runs, counted up to `most` + 1; None if that depends on more than constants."""
    condition, body = (region.blocks[0] for region in loop.regions)
    decides, advances = scalars(condition), scalars(body)
    carried = [splat_of(value) for value in loop.operands]
    for rounds in range(most + 2):
        decided = evaluated(decides, condition, carried)[1][0]
        if decided is None:
            return None
        if not decided.value:
            return rounds
        carried = evaluated(advances, body, carried)[1]
    return most + 1


def scalars(block: ir.Block) -> list[ir.Operation]:
    """The ops of a block that compute one integer or truth value, and the terminator."""
    *ops, terminator = (op.operation for op in block.operations)
    return [op for op in ops if len(op.results) == 1 and _is_count(op.results[0].type)] + [terminator]


def _is_count(kind: ir.Type) -> bool:
    return isinstance(kind, ir.RankedTensorType) and kind.rank == 0 and isinstance(kind.element_type, ir.IntegerType)


def evaluated(
    ops: list[ir.Operation], block: ir.Block, carried: list[Splat | None]
) -> tuple[dict[ir.Value, Splat], list[Splat | None]]:
    """What is known where the block's arguments are `carried`, and what the terminator (last of `ops`) returns; None:
    not known."""
    known = {
        argument: number
        for argument, number in zip(block.arguments, carried, strict=True)
        if number is not None and _is_count(argument.type)
    }
    for op in ops[:-1]:
        number = _number(op, [known.get(v) or splat_of(v) for v in op.operands])
        if number is not None:
            known[op.results[0]] = number
    return known, [known.get(v) or splat_of(v) for v in ops[-1].operands]


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
