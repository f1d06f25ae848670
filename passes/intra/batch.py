"""Which factors carry the batch, and on which side of it the other ops stand.

From the batch arguments the batch dimension is followed through the ops' factors, forwards; dimensions
that are only spread out (the bias that is added to each example) are found by following it backwards from
where they meet it. This is all that data parallelism, ZeRO and tensor parallelism need in order to be told
apart: no op names, no layer structure.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpa_mlir.dialect.factors import FIXED, Mapping
from alpa_mlir.passes.intra.program import OpRecord, Program, Source

Marks = dict[Source, set[int]]
"""Dimensions of values that count examples."""


@dataclass(frozen=True)
class Batch:
    """The batch in a program.

    factors: per op the factors that carry it. summed: ops that add over it and whose result has none (gradients,
    the loss). parameters: slots that ops with a batch use, directly or through ops without (casts, transposes),
    and those ops themselves: `before`.
    """

    factors: dict[int, tuple[int, ...]]
    summed: frozenset[int]
    before: frozenset[int]
    parameters: frozenset[str]


def find_batch(program: Program) -> Batch:
    """Follow the batch dimension of the batch arguments."""
    marks: Marks = {Source(-1, 0, n): {s.batch_dim} for n, s in program.slots.items() if s.batch_dim >= 0}
    while True:
        size = sum(map(len, marks.values()))
        for op in program.ops:
            _forwards(op, marks)
        for op in reversed(program.ops):
            _backwards(op, marks)
        if sum(map(len, marks.values())) == size:
            break
    factors = {op.number: carried(op, marks) for op in program.ops}
    factors = {number: found for number, found in factors.items() if found}
    summed = {
        op.number
        for op in program.ops
        if any(op.factors.is_reduction(f) for f in factors.get(op.number, ()))
        and not any(marks.get(Source(op.number, k)) for k in range(len(op.result_types)))
    }
    before, parameters = _before(program, factors)
    return Batch(factors, frozenset(summed), before, parameters)


def carried(op: OpRecord, marks: Marks) -> tuple[int, ...]:
    """The factors of an op that carry the batch, in order."""
    found: set[int] = set()
    for source, mapping in zip(op.operands, op.factors.operands, strict=False):
        found |= _major(op, mapping, marks.get(source, set()))
    for k, mapping in enumerate(op.factors.results):
        found |= _major(op, mapping, marks.get(Source(op.number, k), set()))
    return tuple(sorted(f for f in found if op.factors.kinds[f] != FIXED))


def _major(op: OpRecord, mapping: Mapping, dims: set[int]) -> set[int]:
    """The major factor of each of some dimensions."""
    sized = ([f for f in mapping[d] if op.factors.sizes[f] > 1] for d in dims if d < len(mapping))
    return {fs[0] for fs in sized if fs}


def _forwards(op: OpRecord, marks: Marks) -> None:
    found = carried(op, marks)
    for k, mapping in enumerate(op.factors.results):
        _mark(op, mapping, found, Source(op.number, k), marks)


def _backwards(op: OpRecord, marks: Marks) -> None:
    """Operands without a batch get it where they are spread over it: they are no parameters, but made from them."""
    found = carried(op, marks)
    for source, mapping in zip(op.operands, op.factors.operands, strict=False):
        if source.op >= 0:
            _mark(op, mapping, found, source, marks)


def _mark(op: OpRecord, mapping: Mapping, factors: tuple[int, ...], value: Source, marks: Marks) -> None:
    for d, dim in enumerate(mapping):
        sized = [f for f in dim if op.factors.sizes[f] > 1]
        if sized and sized[0] in factors:
            marks.setdefault(value, set()).add(d)


def _before(program: Program, factors: dict[int, tuple[int, ...]]) -> tuple[frozenset[int], frozenset[str]]:
    """Ops without a batch whose results ops with one use, at once or later, and the slots that those ops use."""
    wanted: set[int] = set()
    parameters: set[str] = set()
    for op in reversed(program.ops):
        if op.number in factors or op.number in wanted:
            wanted.update(s.op for s in op.operands if s.op >= 0)
            parameters.update(s.slot for s in op.operands if s.slot)
    batch = {name for name, slot in program.slots.items() if slot.batch_dim >= 0}
    return frozenset(wanted - factors.keys()), frozenset(parameters - batch)
