"""Cheap ops are made again in every layer that needs them, rather than transferred.

A value that is used in several stages is transferred.  Two kinds are worth more than one copy:

* what depends on no argument (masks, constants, iota);
* in `@update`, what depends on arguments of `@main` alone and is small (bias corrections from the
  step count: otherwise each stage's update would wait for the first one's), and what only enlarges a value
  (the broadcast of a clipping factor: the factor travels, not the broadcast).

A loop that stands as one round (`dialect/rounds.py`) is made once: an op of it says nothing without the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.passes.inter.dataflow import Dataflow

SMALL = 1024
"""Bytes up to which a result of @update that needs no sum is computed again."""


def repeat_cheap_ops(flow: Dataflow) -> None:
    """Give every layer that uses a cheap op of a layered function its own copy.

    Last ops first, so that copies of users count as users.
    """
    cheap = cheap_ops(flow)
    block = flow.function.regions[0].blocks[0]
    for o in range(len(flow.ops) - 1, -1, -1):
        if cheap[o]:
            _repeat(flow.ops[o], block)


def cheap_ops(flow: Dataflow) -> list[bool]:
    """Whether each op is cheap."""
    is_update = any(b.kind == "out" for b in flow.yields)
    return _cheap_in_update(flow) if is_update else _without_arguments(flow)


def _without_arguments(flow: Dataflow) -> list[bool]:
    bound = [d < 0 for d in flow.definition]
    for o in range(len(flow.ops)):
        for v in flow.results[o]:
            bound[v] = o in flow.loop_of or any(bound[i] for i in flow.operands[o])
    return [all(not bound[v] for v in flow.results[o]) for o in range(len(flow.ops))]


def _cheap_in_update(flow: Dataflow) -> list[bool]:
    early = [b.kind == "arg" for b in flow.arguments]
    early += [False] * (len(flow.definition) - len(early))
    cheap = []
    for o, op in enumerate(flow.ops):
        made = sum(flow.nbytes[v] for v in flow.results[o])
        read = sum(flow.nbytes[v] for v in flow.operands[o])
        looped = o in flow.loop_of
        alone = not looped and all(early[v] for v in flow.operands[o])
        for v in flow.results[o]:
            early[v] = alone
        cheap.append(not looped and ((alone and made <= SMALL and read <= SMALL) or (made > read and not op.regions)))
    return cheap


def _repeat(op: ir.Operation, block: ir.Block) -> None:
    wanted: dict[int, list[tuple[ir.Operation, ir.OpOperand]]] = {}
    returned = False
    for result in op.results:
        for use in result.uses:
            user = alpa.outermost(use.owner.operation, block)
            layer = alpa.get_int(user, alpa.LAYER)
            if layer is None:
                returned = True
            else:
                wanted.setdefault(layer, []).append((user, use))
    own = alpa.get_int(op, alpa.LAYER)
    if wanted and not returned and own not in wanted:
        own = min(wanted)
        _settle(op, own, [user for user, _ in wanted[own]])
    for layer in sorted(wanted):
        if layer != own:
            _copy_into(op, layer, wanted[layer])


def _copy_into(op: ir.Operation, layer: int, users: Sequence[tuple[ir.Operation, ir.OpOperand]]) -> None:
    copy = op.clone(ip=ir.InsertionPoint(op)).operation
    numbers = [(_result_of(use), use) for _, use in users]
    _settle(copy, layer, [user for user, _ in users])
    for number, use in numbers:
        use.owner.operation.operands[use.operand_number] = copy.results[number]


def _result_of(use: ir.OpOperand) -> int:
    value = use.owner.operation.operands[use.operand_number]
    return int(ir.OpResult(value).result_number)


def _settle(op: ir.Operation, layer: int, users: Sequence[ir.Operation]) -> None:
    """Put an op into a layer, and into the backward pass where it has no other users there."""
    alpa.set_int(op, alpa.LAYER, layer)
    if {alpa.get_string(u, alpa.PHASE) for u in users} == {"backward"}:
        alpa.set_string(op, alpa.PHASE, "backward")
