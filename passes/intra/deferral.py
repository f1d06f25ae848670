"""Sums that may stay partial for a while: where they are added to other sums before anybody needs them.

A product split along what it sums over leaves an addend on each device. If two such results are only added
to one another (the gradients that flow back through three projections of one value, those of a table that
is used twice), one collective after the addition does instead of one for each. So partial results may be
handed on through linear ops (`alpa_mlir.dialect.linear`) to an addition of several of them, or to a sum
over microbatches that is itself kept as addends; everywhere else they end where they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alpa_mlir.dialect.linear import is_linear
from alpa_mlir.dialect.rounds import ENTER, LEAVE
from alpa_mlir.passes.intra.program import OpRecord, Program, Source

JOINS = ("stablehlo.add", "stablehlo.subtract")


@dataclass(frozen=True)
class Deferral:
    """`unended`: ops that may leave their result partial; `carried`: operands that an op may take partial."""

    unended: frozenset[int]
    carried: dict[int, tuple[int, ...]]


def find_deferral(program: Program, ops: Sequence[OpRecord], feeders: Iterable[int]) -> Deferral:
    """What may stay partial among the ops of one stage; `feeders` make sums that are kept as addends."""
    inside = {op.number for op in ops}
    bound = _needed_elsewhere(program, ops, inside)
    capable: dict[int, tuple[int, ...]] = {}
    for op in ops:
        if len(op.result_types) != 1 or op.number in bound:
            continue
        if op.kind.compute in ("product", "reduction"):
            if any(op.factors.kinds[f] == "add" and n > 1 for f, n in enumerate(op.factors.sizes)):
                capable[op.number] = ()
            continue
        taken = tuple(k for k in range(op.captured) if _hands_on(program, op, op.operands[k], capable))
        # What rounds pass on stays of one kind.
        if taken and op.op.name not in (ENTER, LEAVE) and is_linear(op.op, frozenset(taken)):
            capable[op.number] = taken
    wanted = {n for n in feeders if n in capable}
    for op in reversed(ops):
        taken = capable.get(op.number, ())
        if op.number in wanted or (op.op.name in JOINS and len(taken) > 1):
            wanted.update(op.operands[k].op for k in taken)
    carried = {op.number: taken for op in ops if (taken := _taken(op, capable, wanted))}
    return Deferral(frozenset(wanted | set(feeders)), carried)


def _taken(op: OpRecord, capable: dict[int, tuple[int, ...]], wanted: set[int]) -> tuple[int, ...]:
    """The operands that an op takes partial: all of those it could, if they may be left so."""
    taken = capable.get(op.number, ())
    return taken if taken and all(op.operands[k].op in wanted for k in taken) else ()


def _hands_on(program: Program, op: OpRecord, source: Source, capable: dict[int, tuple[int, ...]]) -> bool:
    """Whether a value may come partial: made by a capable op in the same run of the same function."""
    if source.op not in capable:
        return False
    maker = program.ops[source.op]
    return (maker.function, maker.phase) == (op.function, op.phase)


def _needed_elsewhere(program: Program, ops: Sequence[OpRecord], inside: set[int]) -> set[int]:
    """Those of the ops whose results another stage uses, or that leave a function as they are."""
    leaving = {s.op for s in program.results}
    return {op.number for op in ops if op.number in leaving or not inside.issuperset(program.users[op.number])}
