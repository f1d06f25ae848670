"""The graph of a stage with every distinct array held once, and chains eliminated without doing equal work twice.

A model of many equal layers has thousands of nodes and edges but few distinct cost vectors and edge tables. Here
a node is the number of its costs, an edge the number of its table, and an operation on tables (transpose, sum,
min-plus product) is done once for equal operands. So `eliminate` (nodes with at most two neighbours are minimised
out, as `reductions.Eliminate` does) costs a dictionary look-up per node of a repeated layer, and what repeats
stays recognisable: equal layers are left with equal numbers, which is what `tying.py` looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import Array

Choice = Callable[..., int]
"""The best label of an eliminated node, given those of its neighbours."""


@dataclass
class Tables:
    """Arrays by number; what is made of numbered arrays is made once. Forbidden entries are finite: `forbidden`."""

    forbidden: float
    arrays: list[Array] = field(default_factory=list)
    _turned: dict[int, int] = field(default_factory=dict)
    _sums: dict[tuple[int, int], int] = field(default_factory=dict)
    _ends: dict[tuple[int, int], tuple[int, Choice]] = field(default_factory=dict)
    _paths: dict[tuple[int, int, int], tuple[int, Choice]] = field(default_factory=dict)

    def add(self, array: Array) -> int:
        """The number of a new array."""
        self.arrays.append(array)
        return len(self.arrays) - 1

    def finite(self, array: Array) -> Array:
        """Infinite entries as large ones: more than any allowed labelling costs."""
        return np.where(np.isfinite(array), array, self.forbidden)

    def allowed(self, array: Array) -> Array:
        """Forbidden entries as infinite ones again."""
        return np.where(array < self.forbidden, array, np.inf)

    def turned(self, table: int) -> int:
        """The transpose."""
        found = self._turned.get(table)
        if found is None:
            found = self._turned[table] = self.add(self.arrays[table].T)
            self._turned[found] = table
        return found

    def sum(self, first: int, second: int) -> int:
        """The sum of two arrays of one shape."""
        key = (first, second)
        found = self._sums.get(key)
        if found is None:
            found = self._sums[key] = self.add(self.arrays[first] + self.arrays[second])
        return found

    def end(self, table: int, cost: int) -> tuple[int, Choice]:
        """min over the columns of table + cost, and where it is."""
        key = (table, cost)
        found = self._ends.get(key)
        if found is None:
            total = self.arrays[table] + self.arrays[cost]
            least = self.add(total.min(axis=1))
            found = self._ends[key] = least, lambda label: int(total[label].argmin())
        return found

    def path(self, left: int, cost: int, right: int) -> tuple[int, Choice]:
        """The min-plus product of left + cost and right, and the first middle index that attains it."""
        key = (left, cost, right)
        found = self._paths.get(key)
        if found is None:
            ahead, behind = self.arrays[left] + self.arrays[cost], np.ascontiguousarray(self.arrays[right])
            product = self.add(min_plus(ahead, behind))
            found = self._paths[key] = product, lambda i, j: int((ahead[i] + behind[:, j]).argmin())
        return found


@compiled
def min_plus(left: Array, right: Array) -> Array:
    """The least of left[i, k] + right[k, j] over the middle index; four of these at a time are vector operations."""
    middle, size = left.shape[1], np.uint64(right.shape[1])
    best = np.full((left.shape[0], right.shape[1]), np.inf)
    for i in range(left.shape[0]):
        row = best[i]
        for k in range(0, middle - 3, 4):
            a, b, c, d = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
            of_a, of_b, of_c, of_d = right[k], right[k + 1], right[k + 2], right[k + 3]
            for j in range(size):
                p, q, r, s = a + of_a[j], b + of_b[j], c + of_c[j], d + of_d[j]
                p = q if q < p else p
                r = s if s < r else r
                p = r if r < p else p
                row[j] = p if p < row[j] else row[j]
        for k in range(middle - middle % 4, middle):
            own, other = left[i, k], right[k]
            for j in range(size):
                cost = own + other[j]
                row[j] = cost if cost < row[j] else row[j]
    return best


def _largest(array: Array) -> float:
    return float(np.max(array, where=np.isfinite(array), initial=0.0))


@dataclass(frozen=True, eq=False)
class Matrices:
    """Costs of nodes or tables of edges: their largest allowed entries, and whether all entries are allowed."""

    arrays: Sequence[Array]
    largest: Array
    whole: list[bool]

    @staticmethod
    def of(arrays: Sequence[Array]) -> Matrices:
        """Look at all arrays once."""
        largest = np.array([float(m.max()) for m in arrays])
        whole = np.isfinite(largest)
        for k in np.flatnonzero(~whole).tolist():
            largest[k] = _largest(arrays[k])
        return Matrices(arrays, largest, whole.tolist())

    def finite(self, tables: Tables) -> list[Array]:
        """The tables with infinite entries as large ones."""
        return [m if whole else tables.finite(m) for m, whole in zip(self.arrays, self.whole, strict=True)]


@dataclass(frozen=True, eq=False)
class _Removed:
    node: int
    neighbours: tuple[int, ...]
    choice: Choice


@dataclass
class SharedGraph:
    """Nodes with the numbers of their costs; `around[v][u]` is the number of the table [v's labels, u's labels]."""

    tables: Tables
    costs: list[int]
    around: list[dict[int, int]]
    constant: float = 0.0
    removed: list[_Removed] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    @staticmethod
    def of(graph: StageGraph) -> SharedGraph:
        """The nodes and edges of a stage."""
        costs = {id(c): c for c in graph.costs}
        seconds = {k: graph.enumerator.edge_seconds(k) for k in np.unique(graph.kinds).tolist()}
        largest = [{k: _largest(a) for k, a in known.items()} for known in (costs, seconds)]
        total = sum(largest[0][id(c)] for c in graph.costs) + sum(largest[1][k] for k in graph.kinds.tolist())
        tables = Tables(1.0 + 2.0 * total)
        numbers = [{k: tables.add(tables.finite(a)) for k, a in known.items()} for known in (costs, seconds)]
        shared = SharedGraph(tables, [numbers[0][id(c)] for c in graph.costs], [{} for _ in graph.nodes])
        for (u, v), kind in zip(graph.ends.tolist(), graph.kinds.tolist(), strict=True):
            shared._add(u, v, numbers[1][kind])
        return shared

    @staticmethod
    def of_problem(costs: Sequence[Array], edges: Mapping[tuple[int, int], Array]) -> SharedGraph:
        """The nodes and edges (u < v) of a problem."""
        total = sum(_largest(a) for a in (*costs, *edges.values()))
        tables = Tables(1.0 + 2.0 * total)
        shared = SharedGraph(tables, [tables.add(tables.finite(c)) for c in costs], [{} for _ in costs])
        for (u, v), matrix in sorted(edges.items()):
            shared._add(u, v, tables.add(tables.finite(matrix)))
        return shared

    @staticmethod
    def of_numbered(costs: Sequence[Array], ends: Ids, numbers: Ids, matrices: Matrices) -> SharedGraph:
        """Nodes with costs, edges from ends[e, 0] to ends[e, 1] with matrix numbers[e]."""
        own = Matrices.of(costs)
        tables = Tables(1.0 + 2.0 * float(own.largest.sum() + matrices.largest[numbers].sum()))
        made = [tables.add(m) for m in matrices.finite(tables)]
        shared = SharedGraph(tables, [tables.add(c) for c in own.finite(tables)], [{} for _ in costs])
        for (u, v), number in zip(ends.tolist(), numbers.tolist(), strict=True):
            shared._add(u, v, made[number])
        return shared

    def _add(self, u: int, v: int, table: int) -> None:
        """Add an edge; parallel ones merge."""
        there = self.around[u].get(v)
        if there is not None:
            table = self.tables.sum(there, table)
        self.around[u][v] = table
        self.around[v][u] = self.tables.turned(table)

    @property
    def left(self) -> list[int]:
        """The nodes not eliminated, in order."""
        return [v for v in range(len(self.costs)) if v not in self.gone]

    def eliminate(self, kept: set[int] | None = None) -> None:
        """Minimise out all nodes with at most two neighbours but those in `kept`, until none is left."""
        waiting = [v for v in self.left if kept is None or v not in kept]
        while waiting:
            touched: dict[int, None] = {}
            for v in waiting:
                if v not in self.gone and len(self.around[v]) <= 2:
                    touched.update(dict.fromkeys(self.around[v]))
                    self._remove(v)
            waiting = [v for v in sorted(touched) if kept is None or v not in kept]

    def _remove(self, v: int) -> None:
        neighbours = tuple(sorted(self.around[v]))
        tables, cost = self.tables, self.costs[v]
        for u in neighbours:
            del self.around[u][v]
        if not neighbours:
            label = int(tables.arrays[cost].argmin())
            choice: Choice = lambda: label  # noqa: E731
            self.constant += float(tables.arrays[cost].min())
        elif len(neighbours) == 1:
            (u,) = neighbours
            least, choice = tables.end(tables.turned(self.around[v][u]), cost)
            self.costs[u] = tables.sum(self.costs[u], least)
        else:
            u, w = neighbours
            joined, choice = tables.path(tables.turned(self.around[v][u]), cost, self.around[v][w])
            self._add(u, w, joined)
        self.around[v] = {}
        self.gone.add(v)
        self.removed.append(_Removed(v, neighbours, choice))

    def edges(self) -> tuple[Ids, Ids]:
        """([edges, 2] ends u < v, [edges] numbers of their tables [u's labels, v's labels]), in order."""
        found = [(u, v, table) for u in self.left for v, table in sorted(self.around[u].items()) if u < v]
        array = np.array(found, dtype=np.int64).reshape(-1, 3)
        return array[:, :2], array[:, 2]

    def invert(self, labels: dict[int, int]) -> tuple[int, ...]:
        """The labels of all nodes from those of the nodes left."""
        everything = dict(labels)
        for entry in reversed(self.removed):
            everything[entry.node] = entry.choice(*(everything[u] for u in entry.neighbours))
        return tuple(everything[v] for v in range(len(self.costs)))

    def cost(self, labels: Mapping[int, int]) -> float:
        """Cost of a labelling of the nodes left."""
        arrays = self.tables.arrays
        total = self.constant + sum(float(arrays[self.costs[v]][labels[v]]) for v in self.left)
        ends, numbers = self.edges()
        for (u, v), table in zip(ends.tolist(), numbers.tolist(), strict=True):
            total += float(arrays[table][labels[u], labels[v]])
        return total
