"""The order of the update: everything that leads to one result before anything that only leads to the next.

Frontends apply an optimizer leaf by leaf for each of its terms: all first moments, all second moments, all steps, all
weights. Read in that order, a step and a scaled gradient of every weight are alive at once. In this order those of one
weight are, as in the loops that XLA fuses them into.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.passes.local.time_analysis import inputs


def order_by_results(function: ir.Operation) -> None:
    """Move the ops of a function of one block: those that result 0 needs first, operands before users, then result 1, …

    What no result needs comes first, in its order.
    """
    *ops, terminator = (op.operation for op in function.regions[0].blocks[0].operations)
    own = {op_id(op) for op in ops}
    placed: set[int] = set()
    order: list[ir.Operation] = []
    for value in terminator.operands:
        pending = [value.owner]
        while pending:
            owner = pending[-1]
            op = None if isinstance(owner, ir.Block) else owner.operation
            if op is None or op_id(op) not in own or op_id(op) in placed:
                pending.pop()
                continue
            waiting = [
                v.owner
                for v in inputs(op)
                if not isinstance(v.owner, ir.Block)
                and op_id(v.owner.operation) in own
                and op_id(v.owner.operation) not in placed
            ]
            if waiting:
                pending.extend(reversed(waiting))
                continue
            pending.pop()
            placed.add(op_id(op))
            order.append(op)
    for op in order:
        op.move_before(terminator)
