"""The order of the update: everything that leads to one result before anything that only leads to the next.

Frontends apply an optimizer leaf by leaf for each of its terms: all first moments, all second moments, all steps, all
weights. Read in that order, a step and a scaled gradient of every weight are alive at once. In this order those of one
weight are, as in the loops that XLA fuses them into.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.rounds import leaves_by_end
from alpa_mlir.passes.local.time_analysis import inputs


def order_by_results(function: ir.Operation) -> None:
    """Move the ops of a function of one block: those that result 0 needs first, operands before users, then result 1, …

    What no result needs comes first, in its order. What the rounds of a loop pass on comes with the first of its ends.
    """
    *ops, terminator = (op.operation for op in function.regions[0].blocks[0].operations)
    own = {op_id(op) for op in ops}
    passed_on = {op_id(ops[n]): [ops[k] for k in leaves] for n, leaves in leaves_by_end(ops).items()}
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
            leaves = passed_on.get(op_id(op), [])
            waiting = [
                v.owner
                for v in (*inputs(op), *(v for leave in leaves for v in leave.operands))
                if not isinstance(v.owner, ir.Block)
                and op_id(v.owner.operation) in own
                and op_id(v.owner.operation) not in placed
            ]
            if waiting:
                pending.extend(reversed(waiting))
                continue
            pending.pop()
            ends = [op, *(leave for leave in leaves if leave != op and op_id(leave) not in placed)]
            placed.update(map(op_id, ends))
            order += ends
    for op in order:
        op.move_before(terminator)
