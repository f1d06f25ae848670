"""Tying: nodes that look alike decide alike, so that a model of many equal layers is as small as one of a few.

Two nodes look alike if they have the same strategies and costs and so have their neighbours, their neighbours'
neighbours, … up to `DEPTH` edges away, edges of the same kind in between: colour refinement (Weisfeiler and Leman
1968), stopped early. Run to its end it would tell every layer of a chain from every other by its distance from the
ends; stopped after a few rounds it tells apart only those near the ends, and ties the layers between them, forward,
backward and update. All nodes of one colour become one node of the tied problem: costs and edges add up, an edge
between two nodes of one colour becomes a cost of that node (its diagonal), and a memory row counts all members.
The optimum of the tied problem is a labelling of the whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.costs.memory import Ids, Moments
from alpa_mlir.passes.intra.problem import Array, Problem
from alpa_mlir.passes.intra.shared import SharedGraph

DEPTH = 2
"""Rounds of refinement: nodes alike up to this distance are tied."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Tying:
    """The classes of a graph's nodes: `apply` makes the tied problem, `invert` gives each node its class's label."""

    graph: SharedGraph
    nodes: list[int]
    """The nodes of the graph that are left."""
    ends: Ids
    numbers: Ids
    """[edges, 2] places in `nodes` of the ends of each edge, [edges] its table."""
    of_node: Ids
    """[nodes]: the class of each; classes are numbered by their first node."""
    first: Ids
    """[classes]: the place of the first node of each class."""

    @staticmethod
    def of(graph: SharedGraph, alike: Sequence[int] = (), depth: int = DEPTH, period: int = 1) -> Tying:
        """Tie what looks alike up to `depth` edges away; `alike`: a number per node that must be equal too.

        With a `period` of p only every p-th node of those that look alike is tied, in program order.
        """
        nodes = graph.left
        ends, numbers = graph.edges()
        ends = np.searchsorted(nodes, ends)
        known: dict[tuple[int, int], int] = {}
        own = [(graph.costs[v], alike[v] if alike else 0) for v in nodes]
        colours = np.array([known.setdefault(key, len(known)) for key in own], dtype=np.int64)
        for _ in range(depth):
            colours = refined(colours, ends, numbers)
        if period > 1:
            colours = refined(colours * period + _ranks(colours) % period, ends, numbers)
        return Tying(graph, nodes, ends, numbers, *numbered(colours))

    @staticmethod
    def none(graph: SharedGraph) -> Tying:
        """Each node a class of its own: the problem as it is."""
        return Tying.of(graph, range(len(graph.costs)), 0)

    @property
    def classes(self) -> int:
        """How many nodes the tied problem has."""
        return len(self.first)

    def apply(
        self,
        held: Sequence[Array] = (),
        moments: Moments | None = None,
        limit: float = np.inf,
        chosen: Sequence[int] | None = None,
    ) -> Problem:
        """The tied problem; with `moments` within `limit` bytes, node v of the graph holding `held[v]`.

        `chosen`: the moments that count (None: all).
        """
        tables = self.graph.tables
        nodes = [self.nodes[p] for p in self.first.tolist()]
        count = np.bincount(self.of_node, minlength=self.classes).tolist()
        costs = [n * tables.allowed(tables.arrays[self.graph.costs[v]]) for n, v in zip(count, nodes, strict=True)]
        edges: dict[tuple[int, int], Array] = {}
        for u, v, table, times in zip(*(a.tolist() for a in self._edge_classes()), strict=True):
            matrix = times * tables.allowed(tables.arrays[table])
            if u == v:
                costs[u] = costs[u] + np.diag(matrix)
                continue
            key, matrix = ((u, v), matrix) if u < v else ((v, u), matrix.T)
            edges[key] = edges[key] + matrix if key in edges else matrix
        if moments is None:
            return Problem(tuple(costs), edges)
        groups = np.zeros(len(self.graph.costs), dtype=np.int64)
        groups[self.nodes] = self.of_node
        if chosen is None:
            rows = moments.grouped_rows(groups, self.classes)
        else:
            rows = moments.grouped_rows_at(chosen, groups, self.classes)
        return Problem(tuple(costs), edges, tuple(held[v] for v in nodes), rows, limit)

    def _edge_classes(self) -> tuple[Ids, Ids, Ids, Ids]:
        """(class of one end, of the other, table, number of edges) of each kind of edge between two classes."""
        table = np.column_stack([self.of_node[self.ends].reshape(-1, 2), self.numbers])
        found, times = np.unique(table, axis=0, return_counts=True)
        return found[:, 0], found[:, 1], found[:, 2], times

    def invert(self, labels: Sequence[int]) -> dict[int, int]:
        """The label of each node that a labelling of the classes stands for."""
        return dict(zip(self.nodes, np.asarray(labels)[self.of_node].tolist(), strict=True))

    def restrict(self, labels: Mapping[int, int]) -> tuple[int, ...]:
        """The label of each class, that of its first node."""
        return tuple(labels[self.nodes[p]] for p in self.first.tolist())

    def size(self) -> str:
        """What was tied, in words."""
        return f"{len(self.nodes)} nodes and {len(self.numbers)} edges to {self.classes} classes"


def numbered(colours: Ids) -> tuple[Ids, Ids]:
    """(class of each node, first node of each class), classes in order of their first nodes."""
    _, first, inverse = np.unique(colours, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[inverse.ravel()], first[order]


def _ranks(colours: Ids) -> Ids:
    """How many nodes of its colour come before each node."""
    order = np.argsort(colours, kind="stable")
    starts = np.searchsorted(colours[order], colours[order])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order)) - starts
    return ranks


def refined(colours: Ids, ends: Ids, kinds: Ids) -> Ids:
    """One round: nodes keep one colour if it was one before and their edges agree in kind, side and colours.

    The edges of a node are compared by a commutative hash of 64 bits. Colours are split by it, never merged: a
    collision would tie two nodes of equal strategies that could have been kept apart.
    """
    words, kind = colours.astype(np.uint64), kinds.astype(np.uint64)
    around = np.zeros(len(colours), dtype=np.uint64)
    u, v = ends[:, 0], ends[:, 1]
    np.add.at(around, u, _mixed(_mixed(2 * kind) + words[v]))
    np.add.at(around, v, _mixed(_mixed(2 * kind + np.uint64(1)) + words[u]))
    pairs = np.empty(len(colours), dtype=[("old", np.uint64), ("around", np.uint64)])
    pairs["old"], pairs["around"] = words, around
    return np.unique(pairs, return_inverse=True)[1].ravel().astype(np.int64)


def _mixed(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
