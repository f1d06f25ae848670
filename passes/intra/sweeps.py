"""A lower bound on the cost of every labelling of a shared graph, and labellings near it, by message passing.

Each edge (u, v) with table M holds a message to either end, μ_u and μ_v, which takes cost from the edge to the node:
for any messages no labelling costs less than

    Σ_v min(c_v + Σ_e μ_(e,v))  +  Σ_(u,v) min(M − μ_u − μ_v)

A sweep goes through the nodes in order; each collects from all its edges what they can give and hands equal
shares on to the edges ahead (sequential tree-reweighted message passing, Kolmogorov, PAMI 2006): the bound only
rises. Rounding in the same order (each node takes its best label given those already labelled) and descent node
by node give labellings.  The tables are those of `shared.py`, held once; only the messages are one per edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alpa_mlir.passes.intra.problem import Array
from alpa_mlir.passes.intra.shared import SharedGraph


@dataclass(frozen=True, eq=False)
class _Half:
    """An edge seen from one of its ends: its number, the node at the other end, its table [own labels, other's]."""

    edge: int
    side: int
    other: int
    table: Array


class Sweeps:
    """Messages on the edges of what is left of a graph."""

    def __init__(self, graph: SharedGraph) -> None:
        self.graph = graph
        arrays = graph.tables.arrays
        self.nodes = graph.left
        self.costs = {v: arrays[graph.costs[v]] for v in self.nodes}
        self.halves: dict[int, list[_Half]] = {v: [] for v in self.nodes}
        self.messages: list[list[Array]] = []
        ends, numbers = graph.edges()
        for (u, v), table in zip(ends.tolist(), numbers.tolist(), strict=True):
            edge, matrix, turned = len(self.messages), arrays[table], arrays[graph.tables.turned(table)]
            self.messages.append([np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1])])
            self.halves[u].append(_Half(edge, 0, v, matrix))
            self.halves[v].append(_Half(edge, 1, u, turned))

    def sweep(self, forward: bool) -> None:
        """Collect at every node in order, hand on to the edges ahead."""
        for v in self.nodes if forward else reversed(self.nodes):
            halves = self.halves[v]
            offers = [self._offer(h) for h in halves]
            ahead = [(h.side == 0) == forward for h in halves]
            most = max(sum(ahead), len(halves) - sum(ahead), 1)
            share = np.sum([self.costs[v], *offers], axis=0) / most
            for half, offer, is_ahead in zip(halves, offers, ahead, strict=True):
                self.messages[half.edge][half.side] = offer - share if is_ahead else offer

    def _offer(self, half: _Half) -> Array:
        """What an edge can give to a node: its least cost for each of the node's labels."""
        result: Array = (half.table - self.messages[half.edge][1 - half.side]).min(axis=1)
        return result

    def bound(self) -> float:
        """No labelling costs less."""
        total = self.graph.constant
        for v in self.nodes:
            halves = self.halves[v]
            total += float(np.sum([self.costs[v], *(self.messages[h.edge][h.side] for h in halves)], axis=0).min())
            for h in halves:
                if h.side == 0:
                    total += float((self._offer(h) - self.messages[h.edge][0]).min())
        return total

    def rounded(self, forward: bool) -> dict[int, int]:
        """A labelling: each node in order takes its best label given those already labelled."""
        labels: dict[int, int] = {}
        for v in self.nodes if forward else reversed(self.nodes):
            cost = self.costs[v].copy()
            for h in self.halves[v]:
                cost += h.table[:, labels[h.other]] if h.other in labels else self._offer(h)
            labels[v] = int(np.argmin(cost))
        return labels

    def descend(self, labels: dict[int, int]) -> float:
        """Improve a labelling node by node until none improves; returns its cost."""
        waiting = dict.fromkeys(self.nodes)
        while waiting:
            touched: dict[int, None] = {}
            for v in waiting:
                cost = self.costs[v].copy()
                for h in self.halves[v]:
                    cost += h.table[:, labels[h.other]]
                best = int(np.argmin(cost))
                if cost[best] < cost[labels[v]] - 1e-15 * abs(cost[labels[v]]):
                    labels[v] = best
                    touched.update(dict.fromkeys(h.other for h in self.halves[v]))
            waiting = dict.fromkeys(sorted(touched))
        return self.graph.cost(labels)
