"""Loops that run a known number of times become that many copies of their body.

A `stablehlo.while` is one unit for the passes after this one: every device would compute all of it. What jax's `scan`
and `fori_loop` make counts up by numbers in the program, so the number of rounds can be computed here; the copies
are ops like any others, which can be split over devices, made into layers and spread over stages. Their counters
are constants that `simplify` then folds into slices. A loop over many layers becomes several (`strip_mine.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import Remark, location_text
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.counting import DYNAMIC_SLICE, UPDATE_SLICE, count_beforehand, rounds_of
from alpa_mlir.passes.strip_mine import groups_of, strip_mine

LOOP = "stablehlo.while"
UNROLL = 10_000
"""Most ops that a loop becomes unless the user says otherwise."""
UNROLL_LAYERS = 128
"""Most layers that a loop is unrolled into."""
MOST_LAYERS = 1 << 14
"""Most layers that are put into groups."""
LAYERS = 10
"""Loops over layers may become so many times as many: kept, they lie on one stage, and every device computes them."""


def unroll_loops(main: ir.Operation, limit: int, layers: int, most_groups: int, remarks: list[Remark]) -> bool:
    """Unroll, inner ones first, the loops whose rounds are known and make at most `limit` ops; whether there were any.

    A loop over layers reads a slice of an argument that is no batch in each round; it may make LAYERS times as many.
    One over more than `layers` (0: no number), in no region, becomes at most `most_groups`, each of a group
    (`strip_mine.py`). A remark tells of each loop that is unrolled, and of each whose copies would be too many.
    """
    found = False
    batches = {
        n
        for n, entry in enumerate(argument_attributes(main))
        if alpa.ROLE in entry and ir.StringAttr(entry[alpa.ROLE]).value == "batch"
    }
    loops = [op for op in walk(main) if op.name == LOOP]
    for loop in loops:
        count_beforehand(loop, MOST_LAYERS)
    layered: set[int] = set()
    for loop in loops:
        if _is_over_layers(loop, main, batches, layered):
            layered.add(op_id(loop))
    for loop in loops[::-1]:
        size = sum(1 for op in loop.regions[1].blocks[0].operations for _ in (op, *walk(op.operation)))
        if limit <= 0 or size == 0:
            continue
        # Loops in its body may have been unrolled since.
        over_layers = op_id(loop) in layered or _is_over_layers(loop, main, batches, layered)
        most = limit * LAYERS if over_layers else limit
        rounds = rounds_of(loop, max(most // size, MOST_LAYERS if over_layers else 0))
        if rounds is None:
            continue
        where = location_text(loop.location)
        own = loop.parent.operation == main
        many = over_layers and own and MOST_LAYERS >= rounds > layers > 0
        groups = groups_of(rounds, most_groups) if many else 0
        if groups and strip_mine(loop, rounds, groups):
            remarks.append(Remark(f"kept as {groups} loops of {rounds // groups} rounds of {size} ops", where))
            found = True
            continue
        if rounds * size > most:
            times = f"{LAYERS} times " if most > limit else ""
            remarks.append(Remark(f"not unrolled: more than {times}unroll={limit} ops would come of it", where))
            continue
        remarks.append(Remark(f"unrolled: {rounds} round{'s' if rounds != 1 else ''} of {size} ops", where))
        _unroll(loop, rounds)
        found = True
    return found


def _is_over_layers(loop: ir.Operation, main: ir.Operation, batches: Set[int], layered: Set[int]) -> bool:
    """Whether each round reads a slice of what is made, op by op, of an argument of the program that is no batch.

    Or of what another such loop (`layered`, by `op_id`) kept for it, slice by slice.
    """
    body = loop.regions[1].blocks[0]
    *ops, terminator = (op.operation for op in body.operations)
    carried = zip(body.arguments, terminator.operands, loop.operands, strict=True)
    outside = {inside: given for inside, passed_on, given in carried if passed_on == inside}
    for op in ops:
        if op.name == DYNAMIC_SLICE:
            value = outside.get(op.operands[0], op.operands[0])
            while not isinstance(value.owner, ir.Block) and len(value.owner.operation.operands) == 1:
                value = value.owner.operation.operands[0]
            if isinstance(value.owner, ir.Block):
                own = value.owner == main.regions[0].blocks[0]
                if own and ir.BlockArgument(value).arg_number not in batches:
                    return True
            elif op_id(value.owner.operation) in layered and _is_stack(ir.OpResult(value)):
                return True
    return False


def _is_stack(result: ir.OpResult) -> bool:
    """Whether the rounds of a loop write a result slice by slice."""
    last = list(result.owner.operation.regions[1].blocks[0].operations)[-1].operation
    maker = last.operands[result.result_number].owner
    return not isinstance(maker, ir.Block) and maker.operation.name == UPDATE_SLICE


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
