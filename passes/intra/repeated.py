"""Which forward values a backward function computes again rather than keeps, as `alpa-split` will decide.

Its rule (`split_parts.py`): an op that only moves or maps elements is repeated where its *leaves*, what must be kept
to repeat it, are smaller than its result. Arguments of the program are there anyway and count nothing, nor does what
is made from constants alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alpa_mlir.dialect.rounds import MARKS
from alpa_mlir.passes.costs.compute import is_fusable
from alpa_mlir.passes.intra.program import OpKind, OpRecord, Slot, Source


def repeated_ops(ops: Sequence[OpRecord], slots: Mapping[str, Slot]) -> frozenset[int]:
    """The numbers of the ops of a program that are repeated in other phases that need their results."""
    made: set[int] = set()
    """Ops whose results are made from constants alone."""
    leaves: dict[int, frozenset[Source]] = {}
    cheap: dict[OpKind, bool] = {}
    for op in ops:
        if op.kind not in cheap:
            cheap[op.kind] = _is_cheap(op)
        if not cheap[op.kind]:
            continue
        if all(s.op in made for s in op.operands):
            made.add(op.number)
            continue
        found = frozenset(leaf for s in op.operands for leaf in leaves.get(s.op, (s,)))
        kept = [s for s in found if s.op not in made and not s.slot.startswith("arg")]
        if sum(_bytes(s, ops, slots) for s in kept) < op.result_types[0].bytes:
            leaves[op.number] = found
    return frozenset(made.union(leaves))


def _is_cheap(op: OpRecord) -> bool:
    """Whether an op with one result only moves or maps elements."""
    factors = op.kind.factors
    if len(op.operands) > op.kind.captured or len(op.result_types) != 1 or op.op.name in MARKS or factors.reason:
        return False
    return is_fusable(factors)


def _bytes(source: Source, ops: Sequence[OpRecord], slots: Mapping[str, Slot]) -> float:
    kind = slots[source.slot].type if source.slot else ops[source.op].result_types[source.index]
    return kind.bytes
