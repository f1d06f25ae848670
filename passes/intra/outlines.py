"""What strategies of an op are on every mesh with certain axes, whatever the axes' sizes and the op's.

Ops that differ in sizes only (layers of other widths, microbatches of other batches) have the same outlines, so they
are made once for each *form* of op and each set of axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

from alpa_mlir.dialect.factors import FIXED, PASS, Mapping
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.intra.excluded import usable_factors
from alpa_mlir.passes.intra.program import OpKind

MANY_AXES = 3
"""Mesh axes from which on the sums of an op end alike over all axes that they run over."""
ALL_REDUCED, PARTIAL = -1, -2
"""Places of an axis over which a result is summed, other than a dimension of the result."""
UNUSED, CARRIED = -1, -2
"""Places of an axis other than a factor: nowhere, or operands are partial over it."""


@dataclass(frozen=True)
class Form:
    """What outlines depend on: kinds of factors, the dimensions that they make, which of them axes may be put on.

    `others`: the number of dimensions of each value that the op's regions use; `rank`: of the first result.
    """

    kinds: tuple[str, ...]
    operands: tuple[Mapping, ...]
    results: tuple[Mapping, ...]
    usable: tuple[int, ...]
    others: tuple[int, ...]
    rank: int

    def is_reduction(self, factor: int) -> bool:
        """Whether splitting the factor leaves partial results."""
        return self.kinds[factor] not in (PASS, FIXED)


@lru_cache(maxsize=8192)
def form_of(kind: OpKind) -> Form:
    """The form of ops of a kind."""
    factors = kind.factors
    others = tuple([len(t.shape) for t in kind.operand_types[len(factors.operands) :]])
    rank = len(kind.result_types[0].shape) if kind.result_types else 0
    return Form(factors.kinds, factors.operands, factors.results, tuple(usable_factors(factors)), others, rank)


@dataclass(frozen=True)
class Outline:
    """What a strategy is on every mesh with certain axes: all but what divides and what it costs.

    `endings`: the results' shardings after the sums have ended, one strategy each; `scattered`: these must divide.
    """

    held: tuple[tuple[str, ...], ...]
    operands: tuple[Sharding, ...]
    whole: tuple[Sharding, ...]
    partial: tuple[Sharding, ...]
    endings: tuple[tuple[Sharding, ...], ...]
    scattered: bool


def outlines(
    kind: OpKind, axes: tuple[str, ...], partial: bool, carried: tuple[int, ...], any_order: bool
) -> Sequence[Outline]:
    """The outlines of ops of a kind on a mesh with these axes, as `Enumerator.of_op` asks for them; `any_order`: axes
    on one factor in any order."""
    # On many axes there are too many outlines to keep from mesh to mesh.
    made = _kept_outlines if len(axes) < MANY_AXES else _outlines
    return made(form_of(kind), axes, partial, carried, any_order)


def _outlines(
    form: Form, axes: tuple[str, ...], partial: bool, carried: tuple[int, ...], any_order: bool
) -> tuple[Outline, ...]:
    few = len(axes) < MANY_AXES
    elsewhere = (UNUSED, CARRIED) if carried else (UNUSED,)
    found = []
    for places in product((*elsewhere, *form.usable), repeat=len(axes)):
        held = tuple(tuple(a for a, p in zip(axes, places, strict=True) if p == f) for f in range(len(form.kinds)))
        kept = {k: tuple(sorted(a for a, p in zip(axes, places, strict=True) if p == CARRIED)) for k in carried}
        for turned in orders(held) if any_order else [held]:
            found.append(_outline(form, turned, partial, kept, few))
    return tuple(found)


_kept_outlines = lru_cache(maxsize=4096)(_outlines)


def _outline(
    form: Form, held: tuple[tuple[str, ...], ...], unended: bool, kept: dict[int, tuple[str, ...]], few: bool
) -> Outline:
    operands = tuple(Sharding(_dims(m, held), kept.get(k, ())) for k, m in enumerate(form.operands))
    extra = [Sharding.replicated(rank) for rank in form.others]
    operands = (*operands, *extra)
    whole = tuple(Sharding(_dims(m, held)) for m in form.results)
    reduced = {a for f, axes in enumerate(held) for a in axes if form.is_reduction(f)}
    summed = tuple(sorted(reduced.union(*kept.values())))
    partial = tuple(Sharding(s.dims, summed) for s in whole)
    return Outline(held, operands, whole, partial, *_endings(form, held, whole, summed, unended, few))


def _dims(mapping: Mapping, held: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(a for f in dim for a in held[f]) for dim in mapping)


def _endings(
    form: Form,
    held: tuple[tuple[str, ...], ...],
    whole: tuple[Sharding, ...],
    summed: tuple[str, ...],
    unended: bool,
    few: bool,
) -> tuple[tuple[tuple[Sharding, ...], ...], bool]:
    """Result shardings after the sums have ended, and whether they must divide: each axis all-reduced, scattered onto
    one dimension, or, with `unended`, left partial."""
    if not summed:
        return (whole,), False
    kinds = {form.kinds[f] for f, axes in enumerate(held) if axes and form.is_reduction(f)}
    if kinds - {"add"} or len(whole) != 1:
        return (whole,), False
    ways = range(PARTIAL if unended else ALL_REDUCED, form.rank)
    every = product(ways, repeat=len(summed)) if few else ((way,) * len(summed) for way in ways)
    return tuple([(_ended(whole[0], summed, places),) for places in every]), True


def _ended(whole: Sharding, summed: tuple[str, ...], places: tuple[int, ...]) -> Sharding:
    """`whole` with the summed axes where `places` says (see `_endings`)."""
    placed = tuple(zip(summed, places, strict=True))
    dims = tuple((*dim, *(a for a, p in placed if p == number)) for number, dim in enumerate(whole.dims))
    return Sharding(dims, tuple(a for a, p in placed if p == PARTIAL))


def orders(held: tuple[tuple[str, ...], ...]) -> list[tuple[tuple[str, ...], ...]]:
    """The same axes in every order within each place."""
    return list(product(*(permutations(axes) for axes in held)))
