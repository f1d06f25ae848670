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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import Array, Problem

DEPTH = 3
"""Rounds of refinement: nodes alike up to this distance are tied."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Tying:
    """The classes of a graph's nodes: `apply` makes the tied problem, `invert` gives each node its class's label."""

    graph: StageGraph
    of_node: Ids
    """[nodes]: the class of each node; classes are numbered by their first node."""
    first: Ids
    """[classes]: the first node of each class."""

    @staticmethod
    def of(graph: StageGraph, depth: int = DEPTH) -> Tying:
        """Tie what looks alike up to `depth` edges away."""
        known: dict[tuple[int, int, str], int] = {}
        kinds = [known.setdefault((id(n.choices), n.weight, n.function), len(known)) for n in graph.nodes]
        colours = np.array(kinds, dtype=np.int64)
        for _ in range(depth):
            colours = _refined(colours, graph.ends, graph.kinds)
        return Tying(graph, *_numbered(colours))

    @property
    def classes(self) -> int:
        """How many nodes the tied problem has."""
        return len(self.first)

    def apply(self, limit: float = float("inf")) -> Problem:
        """The tied problem."""
        count = np.bincount(self.of_node, minlength=self.classes)
        costs = [n * self.graph.costs[v] for n, v in zip(count.tolist(), self.first.tolist(), strict=True)]
        edges: dict[tuple[int, int], Array] = {}
        for u, v, kind, times in zip(*(a.tolist() for a in self._edge_classes()), strict=True):
            matrix = times * self.graph.enumerator.edge_seconds(kind)
            if u == v:
                costs[u] = costs[u] + np.diag(matrix)
                continue
            key, matrix = ((u, v), matrix) if u < v else ((v, u), matrix.T)
            edges[key] = edges[key] + matrix if key in edges else matrix
        held = tuple(self.graph.held[v] for v in self.first.tolist())
        rows = self.graph.moments.grouped_rows(self.of_node, self.classes)
        return Problem(tuple(costs), edges, held, rows, limit)

    def _edge_classes(self) -> tuple[Ids, Ids, Ids, Ids]:
        """(producer's class, consumer's class, kind, number of edges) of each kind of edge between two classes."""
        ends = self.of_node[self.graph.ends].reshape(-1, 2)
        table = np.column_stack([ends, self.graph.kinds])
        found, times = np.unique(table, axis=0, return_counts=True)
        return found[:, 0], found[:, 1], found[:, 2], times

    def invert(self, labels: tuple[int, ...]) -> tuple[int, ...]:
        """The labelling of all nodes that a labelling of the classes stands for."""
        return tuple(np.asarray(labels)[self.of_node].tolist())

    def size(self) -> str:
        """What was tied, in words."""
        return f"{len(self.of_node)} nodes in {self.classes} classes, {len(self.graph.kinds)} edges"


def _numbered(colours: Ids) -> tuple[Ids, Ids]:
    """(class of each node, first node of each class), classes in order of their first nodes."""
    _, first, inverse = np.unique(colours, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[inverse.ravel()], first[order]


def _refined(colours: Ids, ends: Ids, kinds: Ids) -> Ids:
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
