"""Exact reductions: a smaller problem with the same optimum, and the way back.

Each reduction rewrites a working graph in place and remembers how to extend a labelling of what is left
to what it removed (CVXPY's apply/invert). None loses the optimum:

* `Eliminate`  a node with one label or at most two neighbours is minimised out: for every pair of labels of its
  neighbours its best label is known, so it becomes an edge between them (min-plus product; variable
  elimination, Bertelè and Brioschi 1972). Chains of element-wise ops, constants and arguments vanish here.
* `Prune`      a label that another label of the node beats whatever the neighbours do is dropped
  (dead-end elimination, Goldstein 1994); with memory rows the other must also not take more bytes.
* `Components` what is left falls apart into independent problems where no row joins them.

A node is never eliminated while its bytes in a memory row depend on its label: its choice is needed by the row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.problem import Array, Problem

TOLERANCE = 1e-12


class WorkingGraph:
    """A problem being reduced: costs and symmetric adjacency of the nodes still there.

    Forbidden (infinite) entries become `forbidden`, more than any allowed labelling costs: differences stay defined.
    """

    def __init__(self, problem: Problem) -> None:
        everything = [*problem.costs, *problem.edges.values()]
        self.forbidden = 1.0 + 2.0 * sum(float(np.max(t, where=np.isfinite(t), initial=0.0)) for t in everything)
        self.costs: dict[int, Array] = {
            v: np.where(np.isfinite(c), c, self.forbidden) for v, c in enumerate(problem.costs)
        }
        self.labels: dict[int, np.ndarray] = {v: np.arange(len(c)) for v, c in enumerate(problem.costs)}
        self.around: dict[int, dict[int, Array]] = {v: {} for v in self.costs}
        for (u, v), matrix in problem.edges.items():
            self.add_edge(u, v, np.where(np.isfinite(matrix), matrix, self.forbidden))
        counted = np.bincount(problem.runs.node, minlength=len(self.costs))
        self.constant = 0.0
        self.bytes: dict[int, Array] = {v: problem.bytes[v] for v in self.costs if counted[v] > 0}
        self.fixed: dict[int, float] = {}
        """Bytes of nodes that hold the same with every label left."""

    def copy(self) -> WorkingGraph:
        """Another graph to reduce, with the same tables."""
        made = copy(self)
        made.costs, made.labels, made.bytes, made.fixed = (
            dict(self.costs), dict(self.labels), dict(self.bytes), dict(self.fixed)
        )  # fmt: skip
        made.around = {v: dict(edges) for v, edges in self.around.items()}
        return made

    def add_edge(self, u: int, v: int, matrix: Array) -> None:
        """Add a cost between two nodes to whatever stands there (parallel edges merge)."""
        there = self.around[u].get(v)
        total = matrix if there is None else there + matrix
        self.around[u][v] = total
        self.around[v][u] = total.T

    def set_edge(self, u: int, v: int, matrix: Array) -> None:
        """Replace the cost between two nodes."""
        self.around[u][v] = matrix
        self.around[v][u] = matrix.T

    def remove(self, v: int) -> None:
        """Take a node and its edges out."""
        for u in self.around.pop(v):
            del self.around[u][v]
        del self.costs[v]

    def keep(self, v: int, keep: np.ndarray) -> None:
        """Leave a node only the labels where `keep` is true."""
        self.costs[v] = self.costs[v][keep]
        self.labels[v] = self.labels[v][keep]
        for u, matrix in list(self.around[v].items()):
            self.around[v][u] = matrix[keep]
            self.around[u][v] = self.around[v][u].T

    def settle(self, v: int) -> bool:
        """Whether the bytes of a node do not depend on its label; they are then fixed."""
        if v not in self.bytes:
            return True
        held = self.bytes[v][self.labels[v]]
        if held.min() < held.max():
            return False
        self.fixed[v] = float(held[0])
        del self.bytes[v]
        return True

    def size(self) -> str:
        """Nodes, edges and edge entries, in words."""
        edges = sum(len(a) for a in self.around.values()) // 2
        entries = sum(m.size for a in self.around.values() for m in a.values()) // 2
        return f"{len(self.costs)} nodes, {edges} edges, {entries} edge entries"


class Reduction(ABC):
    """One kind of reduction: `apply` shrinks the graph, `invert` extends a labelling to what it removed."""

    @abstractmethod
    def apply(self, graph: WorkingGraph) -> int:
        """Rewrite the graph; returns how many nodes or labels went away."""

    @abstractmethod
    def invert(self, labels: dict[int, int]) -> None:
        """Add the removed nodes' labels (original numbering) to a labelling of the rest."""


@dataclass(frozen=True)
class _Removed:
    """A node minimised out: for each combination of its neighbours' (then) labels its best original label."""

    node: int
    neighbours: tuple[int, ...]
    positions: tuple[dict[int, int], ...]
    best: np.ndarray


class Eliminate(Reduction):
    """Minimise out nodes with at most two neighbours, until none is left."""

    def __init__(self) -> None:
        self.removed: list[_Removed] = []

    def apply(self, graph: WorkingGraph) -> int:
        before = len(self.removed)
        waiting = sorted(graph.costs)
        while waiting:
            touched: set[int] = set()
            for v in waiting:
                if v not in graph.costs or not graph.settle(v):
                    continue
                if len(graph.costs[v]) == 1:
                    touched.update(graph.around[v])
                    self._fold(graph, v)
                elif len(graph.around[v]) <= 2:
                    touched.update(graph.around[v])
                    self._remove(graph, v)
            waiting = sorted(touched)
        return len(self.removed) - before

    def _fold(self, graph: WorkingGraph, v: int) -> None:
        """A node without a choice: its edges are costs of its neighbours."""
        for u, matrix in graph.around[v].items():
            graph.costs[u] = graph.costs[u] + matrix[0]
        graph.constant += float(graph.costs[v][0])
        graph.remove(v)
        self._remember(graph, v, (), np.array(0))

    def _remove(self, graph: WorkingGraph, v: int) -> None:
        neighbours = tuple(sorted(graph.around[v]))
        cost = graph.costs[v]
        if not neighbours:
            choice = np.array(int(np.argmin(cost)))
            graph.constant += float(cost.min())
        elif len(neighbours) == 1:
            (u,) = neighbours
            table = graph.around[u][v] + cost
            choice = np.argmin(table, axis=1)
            graph.costs[u] = graph.costs[u] + np.take_along_axis(table, choice[:, None], 1)[:, 0]
        else:
            u, w = neighbours
            choice, joined = _min_plus(graph.around[u][v] + cost, graph.around[v][w])
            graph.remove(v)
            graph.add_edge(u, w, joined)
            self._remember(graph, v, neighbours, choice)
            return
        graph.remove(v)
        self._remember(graph, v, neighbours, choice)

    def _remember(self, graph: WorkingGraph, v: int, neighbours: tuple[int, ...], choice: np.ndarray) -> None:
        positions = tuple({int(x): i for i, x in enumerate(graph.labels[u])} for u in neighbours)
        self.removed.append(_Removed(v, neighbours, positions, graph.labels[v][choice]))

    def invert(self, labels: dict[int, int]) -> None:
        for entry in reversed(self.removed):
            where = tuple(p[labels[u]] for u, p in zip(entry.neighbours, entry.positions, strict=True))
            labels[entry.node] = int(entry.best[where])


def _min_plus(left: Array, right: Array) -> tuple[np.ndarray, Array]:
    """argmin and min over the middle index of left[i, k] + right[k, j]; the first of equals."""
    best = left[:, :1] + right[:1, :]
    choice = np.zeros(best.shape, dtype=np.int64)
    for k in range(1, left.shape[1]):
        table = left[:, k : k + 1] + right[k : k + 1, :]
        better = table < best
        np.copyto(best, table, where=better)
        choice[better] = k
    return choice, best


class Prune(Reduction):
    """Drop labels that another label of the same node beats for every choice of the neighbours."""

    def apply(self, graph: WorkingGraph) -> int:
        return sum(self._prune(graph, v) for v in sorted(graph.costs))

    def _prune(self, graph: WorkingGraph, v: int) -> int:
        n = len(graph.costs[v])
        self._drop_impossible(graph, v)
        cost = graph.costs[v]
        if len(cost) == 1:
            return n - 1
        tables = [graph.around[v][u] for u in sorted(graph.around[v])]
        ends = np.cumsum([m.shape[1] for m in tables], dtype=np.int64)
        side_by_side = np.concatenate(tables, axis=1) if tables else np.zeros((len(cost), 0))
        # Costs may hold sums of forbidden entries, which would blow the tolerance up.
        slack = TOLERANCE * (1.0 + np.max(cost, where=cost < graph.forbidden, initial=0.0))
        allowed = _beats(cost, side_by_side, ends, slack)
        if v in graph.bytes:
            held = graph.bytes[v][graph.labels[v]]
            allowed &= held[:, None] <= held[None, :]
        keep = _survivors(allowed)
        if not keep.all():
            graph.keep(v, keep)
        return int(n - keep.sum())

    def _drop_impossible(self, graph: WorkingGraph, v: int) -> None:
        """Drop labels that are forbidden themselves or by every label of a neighbour; one stays if all are."""
        impossible = graph.costs[v] >= graph.forbidden
        for matrix in graph.around[v].values():
            impossible |= matrix.min(axis=1) >= graph.forbidden
        if impossible.any():
            impossible[0] &= not impossible.all()
            graph.keep(v, ~impossible)

    def invert(self, labels: dict[int, int]) -> None:
        """Nothing to add: labels keep their original numbers."""


@compiled
def _beats(cost: Array, tables: Array, ends: Ids, slack: float) -> npt.NDArray[np.bool_]:
    """[i, j]: whether label i is at most `slack` dearer than j whatever the neighbours' labels are.

    `tables`: edge tables side by side, a row per label; that of neighbour e ends before column ends[e]. What a few
    labels of the neighbours show bounds what all of them would: most pairs are told apart by these.
    """
    n, edges = len(cost), len(ends)
    beats = np.zeros((n, n), dtype=np.bool_)
    most = np.zeros(edges + 1)
    for i in range(n):
        for j in range(n):
            for e in range(edges - 1, -1, -1):
                begin = ends[e - 1] if e else 0
                few = tables[j, begin] - tables[i, begin]
                for k in ((begin + ends[e]) // 2, ends[e] - 1):
                    few = min(few, tables[j, k] - tables[i, k])
                most[e] = most[e + 1] + few
            gain, e = cost[j] - cost[i], 0
            while e < edges and gain + most[e] >= -slack:
                least = np.inf
                for k in range(ends[e - 1] if e else 0, ends[e]):
                    difference = tables[j, k] - tables[i, k]
                    least = difference if difference < least else least
                gain, e = gain + least, e + 1
            beats[i, j] = e == edges and gain >= -slack
    return beats


def _survivors(beats: np.ndarray) -> np.ndarray:
    """Labels left when each label beaten by one still standing goes (of two equals the first stays)."""
    keep = np.ones(len(beats), dtype=bool)
    for r in range(len(beats) - 1, -1, -1):
        by = beats[:, r] & keep
        by[r] = False
        if by.any():
            keep[r] = False
    return keep


def components(graph: WorkingGraph) -> list[list[int]]:
    """Groups of nodes that edges connect, each sorted, in order of their smallest node."""
    seen: set[int] = set()
    found = []
    for start in sorted(graph.costs):
        if start in seen:
            continue
        seen.add(start)
        group, stack = [], [start]
        while stack:
            v = stack.pop()
            group.append(v)
            fresh = [u for u in sorted(graph.around[v]) if u not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        found.append(sorted(group))
    return found
