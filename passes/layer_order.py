"""Ops of a layer stand together: what repeats layer by layer is found by the order of ops (`inter/units.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.rounds import read_by

Layer = tuple[int, int]
"""A layer: how many there are, which tells stacks of layers apart, and its number."""


def gather(block: ir.Block, layers: Mapping[int, Layer]) -> None:
    """Put ops of one layer behind one another, as far as what reads them allows.

    `layers`: by `op_id` the layers of ops that may move: towards the end, no farther than the first op of no layer, or
    of another one, that reads what they make.
    """
    *ops, terminator = (view.operation for view in block.operations)
    ordered: list[ir.Operation] = []
    waiting: dict[int, ir.Operation] = {}

    def release() -> None:
        ordered.extend(sorted(waiting.values(), key=lambda op: layers[op_id(op)]))
        waiting.clear()

    for op in ops:
        layer = layers.get(op_id(op))
        made_by = {op_id(v.owner) for v in read_by(op) if not isinstance(v.owner, ir.Block)}
        if any(layers[maker] != layer for maker in made_by & waiting.keys()):
            release()
        if layer is None:
            ordered.append(op)
        else:
            waiting[op_id(op)] = op
    release()
    for op in ordered:
        op.move_before(terminator)
