"""The outlines of a form of ops as arrays, so that what divides and what it costs is reckoned for all of them at once.

An op of a graph has tens of strategies on each of tens of meshes, at each number of microbatches: one by one they would
be most of a search. A table has a row for each ending of each outline, in order; on a mesh it gets extents, the
numbers of shardings and the costs of endings. What is left to each op is its sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpa_mlir.dialect.factors import OpFactors, splittable
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.communication import Ids, Matrix, ReshardTable
from alpa_mlir.passes.intra.outlines import Outline

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class OutlineTable:
    """Outlines on a mesh.

    Places are factors with axes on them: place p splits `factor[p]` into `parts[p]`.
    Per outline: `needed[o, p]`, whether place p must be possible; `split[o]`, into how many parts the op's work falls;
    for each operand k the number of its sharding, `operands[k][o]`, and how many parts that makes, `reads[k][o]`; for
    each result how many parts it is computed in, `written[k][o]`.
    Per row: `outline[r]`; for each result the number of its sharding, `results[k][r]`, the parts that makes,
    `held[k][r]`, and the seconds that ending its sums takes, `start[k][r] + per_byte[k][r] · bytes`; `scattered[r]`,
    whether `dims[r]`, the parts of the first result's dimensions, must divide these; `alike[r]`, a number that rows
    with equal shardings share (`distinct`: none do).
    """

    outlines: tuple[Outline, ...]
    endings: tuple[tuple[Sharding, ...], ...]
    factor: Ids
    parts: Ids
    needed: Flags
    split: Ids
    operands: tuple[Ids, ...]
    reads: tuple[Ids, ...]
    written: tuple[Ids, ...]
    outline: Ids
    results: tuple[Ids, ...]
    held: tuple[Ids, ...]
    start: tuple[Matrix, ...]
    per_byte: tuple[Matrix, ...]
    scattered: Flags
    dims: Ids
    alike: Ids
    distinct: bool

    @staticmethod
    def of(outlines: Sequence[Outline], mesh: Mesh, shardings: ReshardTable) -> OutlineTable:
        """The table of outlines on a mesh with their axes."""
        places = list(dict.fromkeys((f, a) for o in outlines for f, a in enumerate(o.held) if a))
        number = {place: n for n, place in enumerate(places)}
        needed = np.zeros((len(outlines), len(places)), dtype=bool)
        for n, o in enumerate(outlines):
            needed[n, [number[f, a] for f, a in enumerate(o.held) if a]] = True
        rows = [(n, ending) for n, o in enumerate(outlines) for ending in o.endings]
        outline, endings = np.array([n for n, _ in rows], dtype=np.int64), tuple([e for _, e in rows])
        extents = _Extents(mesh)
        parts = np.array([mesh.extent(axes) for _, axes in places], dtype=np.int64)
        operands, reads = _columns([o.operands for o in outlines], shardings, extents)
        partial, _ = _columns([o.partial for o in outlines], shardings, extents)
        _, written = _columns([o.whole for o in outlines], shardings, extents)
        results, held = _columns(endings, shardings, extents)
        costs = [_costs(shardings, before[outline], after) for before, after in zip(partial, results, strict=True)]
        alike = _alike([*(column[outline] for column in operands), *results], len(rows))
        return OutlineTable(
            tuple(outlines),
            endings,
            np.array([f for f, _ in places], dtype=np.int64),
            parts,
            needed,
            np.where(needed, parts, 1).prod(axis=1),
            operands,
            reads,
            written,
            outline,
            results,
            held,
            tuple([start for start, _ in costs]),
            tuple([per_byte for _, per_byte in costs]),
            np.array([o.scattered for o in outlines], dtype=bool)[outline],
            np.array([[mesh.extent(axes) for axes in e[0].dims] if e else [] for e in endings], dtype=np.int64),
            alike,
            int(alike.max(initial=-1)) + 1 == len(rows),
        )

    def possible(self, factors: OpFactors, shape: tuple[int, ...]) -> Ids:
        """The rows of an op with these factors, whose first result has this shape."""
        whole = np.array([splittable(factors, f, 1) for f in range(len(factors.sizes))], dtype=bool)
        sizes = np.array(factors.sizes, dtype=np.int64)[self.factor]
        impossible = np.any(self.needed & ((sizes % self.parts > 0) | ~whole[self.factor]), axis=1)
        rows = ~impossible[self.outline]
        if self.scattered.any():
            rows &= ~self.scattered | ~(np.array(shape, dtype=np.int64) % self.dims).any(axis=1)
        return np.flatnonzero(rows)

    def undominated(self, rows: Ids, seconds: Matrix) -> Ids:
        """Of these rows, which cost so much, those (their places in `rows`) that are the quickest, and the first, of
        the ones with their shardings; in the order of the first ones."""
        _, first, group = np.unique(self.alike[rows], return_index=True, return_inverse=True)
        if len(first) == len(rows):
            return np.arange(len(rows))
        order = np.lexsort((seconds, group))
        best = order[np.r_[True, np.diff(group[order]) > 0]]
        result: Ids = best[np.argsort(first)]
        return result


class _Extents:
    """How many parts shardings make on a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._known: dict[Sharding, int] = {}

    def of(self, sharding: Sharding) -> int:
        """Of one sharding."""
        found = self._known.get(sharding)
        if found is None:
            found = self._known[sharding] = self._mesh.extent(sharding.axes)
        return found


def _columns(
    values: Sequence[tuple[Sharding, ...]], shardings: ReshardTable, extents: _Extents
) -> tuple[tuple[Ids, ...], tuple[Ids, ...]]:
    """For each place in the tuples the numbers of its shardings, and the parts that they make."""
    columns = [[value[k] for value in values] for k in range(len(values[0]) if values else 0)]
    numbers = [np.array([shardings.number(s) for s in column], dtype=np.int64) for column in columns]
    parts = [np.array([extents.of(s) for s in column], dtype=np.int64) for column in columns]
    return tuple(numbers), tuple(parts)


def _costs(shardings: ReshardTable, before: Ids, after: Ids) -> tuple[Matrix, Matrix]:
    """Seconds, and seconds per byte, of changing one sharding into another."""
    pairs = [shardings.pair(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    return np.array([p.seconds for p in pairs], dtype=np.float64), np.array([p.per_byte for p in pairs], np.float64)


def _alike(columns: Sequence[Ids], count: int) -> Ids:
    """Numbers of rows that are equal for equal rows."""
    known: dict[tuple[int, ...], int] = {}
    rows: Iterable[tuple[int, ...]] = zip(*(c.tolist() for c in columns), strict=True) if columns else [()] * count
    return np.array([known.setdefault(row, len(known)) for row in rows], dtype=np.int64)
