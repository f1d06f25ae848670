"""Values that several products use: resharded once for all of them rather than once for each.

Products (dot_general, convolution) are what is worth a collective on an operand: the gathered activations
of sequence parallelism feed three projections forwards and three weight gradients backwards, the output of
the experts feeds the combination and the gradient of its weights. So between such a value and its products
stands a copy with a sharding of its own: it may be the value's (then it costs nothing), or another one,
paid once. Where forward and backward products use the value, each phase has a copy made from the common
one: what is gathered for the forward pass need not stay gathered until the backward pass.
Parameters have no common copy (each phase gathers what it needs), values that arrive from another stage
are their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alpa_mlir.passes.intra.program import OpRecord

Operand = tuple[int, int]
"""(op number, operand number)."""


@dataclass(frozen=True)
class Copy:
    """Result `index` of op `op` as its products share it: those of one phase, or all (phase "")."""

    op: int
    index: int
    phase: str


def copies_of(ops: Iterable[OpRecord], inside: set[int]) -> dict[Operand, tuple[Copy, ...]]:
    """For operands of products the copies that lie between the value and the operand, the common one first.

    `inside` are the numbers of the ops whose results count.
    """
    uses: dict[tuple[int, int], list[tuple[OpRecord, int]]] = {}
    for op in ops:
        if op.kind.compute != "product":
            continue
        for k, source in enumerate(op.operands):
            if source.op in inside:
                uses.setdefault((source.op, source.index), []).append((op, k))
    found: dict[Operand, tuple[Copy, ...]] = {}
    for (maker, index), users in uses.items():
        if len(users) < 2:
            continue
        phases = [op.phase for op, _ in users]
        for op, k in users:
            shared = len(set(phases)) > 1 and phases.count(op.phase) > 1
            found[op.number, k] = tuple(Copy(maker, index, p) for p in (["", op.phase] if shared else [""]))
    return found
