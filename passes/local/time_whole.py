"""Emission of the programs that run once per step on whole values: the prologue and the update.

Given the values to return and a rule that says which values come in as arguments, everything in between
is cloned as it was, in program order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect.rounds import leaves_by_end
from alpa_mlir.passes.local.time_analysis import captures, inputs
from alpa_mlir.passes.local.time_demand import BARRIER
from alpa_mlir.passes.local.time_emit import barrier, replace_inside

Given = Callable[[ir.Value], bool]


class WholeProgram:
    """What computing `targets` from given values takes: `arguments` (in program order) and ops."""

    def __init__(self, block: ir.Block, targets: Sequence[ir.Value], given: Given) -> None:
        self.targets = list(targets)
        needed: dict[ir.Value, None] = dict.fromkeys(targets)
        ops = [view.operation for view in block.operations][:-1]
        passed_on = leaves_by_end(ops)
        kept: dict[int, list[int]] = {}
        following = len(ops) - 1
        while following >= 0:
            position, following = following, following - 1
            op = ops[position]
            made = [i for i, r in enumerate(op.results) if r in needed and not given(r)]
            if not made:
                continue
            kept[position] = made
            needed.update(dict.fromkeys([op.operands[i] for i in made] if op.name == BARRIER else inputs(op)))
            for place in passed_on.get(position, ()):
                if ops[place].results[0] not in needed:
                    needed[ops[place].results[0]] = None
                    following = max(following, place)
        self.ops = [ops[position] for position in sorted(kept)]
        self.kept = [kept[position] for position in sorted(kept)]
        results = (r for op in ops for r in op.results)
        self.arguments = [
            v for v in (*block.arguments, *results) if v in needed and (isinstance(v.owner, ir.Block) or given(v))
        ]

    def emit(self, env: dict[ir.Value, ir.Value], ip: ir.InsertionPoint) -> list[ir.Value]:
        """Clone the ops at `ip`; `env` holds the new values of `arguments`. Returns the targets' new values."""
        for op, kept in zip(self.ops, self.kept, strict=True):
            if op.name == BARRIER:
                values = barrier(op, [env[op.operands[i]] for i in kept], ip)
                env.update(zip([op.results[i] for i in kept], values, strict=True))
                continue
            clone = op.clone(ip).operation
            for i, value in enumerate(op.operands):
                clone.operands[i] = env[value]
            if len(op.regions):
                outer = captures(op)
                replace_inside(clone, {v: env[v] for v in outer})
            for old, new in zip(op.results, clone.results, strict=True):
                env.setdefault(old, new)
        return [env[v] for v in self.targets]
