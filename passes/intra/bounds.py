"""Labels that no optimum can use, found by a bound: message passing on the linear relaxation.

Moving cost between a node and its edges (θ_v ± m, θ_uv ∓ m) changes no labelling's cost, but it changes
the bound  Σ_v min θ_v + Σ_uv min θ_uv.  Going through the nodes in order, each collects the minima of
all its edges and hands equal shares on to the edges ahead (Kolmogorov's sequential tree-reweighted
message passing, PAMI 2006, in its reparametrisation form): the bound only rises. Rounding along the same
order gives a labelling, hence an upper bound. A label whose reduced cost alone lifts the lower bound
above the upper one can be dropped: `FixByBound` is therefore an exact reduction. On transformer graphs,
where the relaxation is (nearly) tight, few labels survive.
"""

from __future__ import annotations

import numpy as np

from alpa_mlir.passes.intra.problem import Array
from alpa_mlir.passes.intra.reductions import Reduction, WorkingGraph

SWEEPS = 300
ROUNDING = 5
PATIENCE = 30
GAP = 1e-11
"""Relative difference of cost that counts as none (rounding of sums)."""


class _Messages:
    """The reparametrised costs of a working graph; node order is the order of node numbers."""

    def __init__(self, graph: WorkingGraph) -> None:
        self.graph = graph
        self.order = sorted(graph.costs)
        self.nodes = {v: graph.costs[v].copy() for v in self.order}
        self.edges = {(u, v): graph.around[u][v].copy() for u in self.order for v in graph.around[u] if u < v}
        self.before = {v: [u for u in sorted(graph.around[v]) if u < v] for v in self.order}
        self.after = {v: [u for u in sorted(graph.around[v]) if u > v] for v in self.order}

    def sweep(self, forward: bool) -> None:
        """Collect at every node in order, hand on to the edges ahead."""
        for v in self.order if forward else reversed(self.order):
            cost = self.nodes[v]
            for u in self.before[v]:
                matrix = self.edges[u, v]
                least = matrix.min(axis=0)
                matrix -= least
                cost += least
            for u in self.after[v]:
                matrix = self.edges[v, u]
                least = matrix.min(axis=1)
                matrix -= least[:, None]
                cost += least
            ahead, behind = (self.after[v], self.before[v]) if forward else (self.before[v], self.after[v])
            if not ahead:
                continue
            share = cost / max(len(ahead), len(behind))
            for u in ahead:
                if forward:
                    self.edges[v, u] += share[:, None]
                else:
                    self.edges[u, v] += share
            cost -= share * len(ahead)

    def bound(self) -> float:
        """The lower bound that stands now."""
        nodes = sum(float(c.min()) for c in self.nodes.values())
        return nodes + sum(float(m.min()) for m in self.edges.values())

    def rounded(self, forward: bool) -> dict[int, int]:
        """A labelling: each node in order takes its best label given those already labelled."""
        labels: dict[int, int] = {}
        for v in self.order if forward else reversed(self.order):
            cost = self.nodes[v].copy()
            for u in self.before[v]:
                matrix = self.edges[u, v]
                cost += matrix[labels[u]] if u in labels else matrix.min(axis=0)
            for u in self.after[v]:
                matrix = self.edges[v, u]
                cost += matrix[:, labels[u]] if u in labels else matrix.min(axis=1)
            labels[v] = int(np.argmin(cost))
        return labels

    def reduced(self, v: int) -> Array:
        """By how much each label of a node lifts the bound."""
        cost: Array = self.nodes[v] - self.nodes[v].min()
        for u in self.before[v]:
            matrix = self.edges[u, v]
            cost = cost + (matrix.min(axis=0) - matrix.min())
        for u in self.after[v]:
            matrix = self.edges[v, u]
            cost = cost + (matrix.min(axis=1) - matrix.min())
        return cost


def labelling_cost(graph: WorkingGraph, labels: dict[int, int]) -> float:
    """Cost of a labelling (positions in the graph's current label lists)."""
    nodes = sum(float(graph.costs[v][x]) for v, x in labels.items())
    pairs = ((u, v) for u in labels for v in graph.around[u] if u < v)
    return nodes + sum(float(graph.around[u][v][labels[u], labels[v]]) for u, v in pairs)


def descend(graph: WorkingGraph, labels: dict[int, int]) -> float:
    """Improve a labelling node by node until none improves; returns its cost."""
    changed = True
    while changed:
        changed = False
        for v in sorted(labels):
            cost = graph.costs[v].copy()
            for u, matrix in graph.around[v].items():
                cost += matrix[:, labels[u]]
            best = int(np.argmin(cost))
            if cost[best] < cost[labels[v]] - 1e-15 * abs(cost[labels[v]]):
                labels[v], changed = best, True
    return labelling_cost(graph, labels)


class FixByBound(Reduction):
    """Drop labels whose reduced cost exceeds the gap between the best labelling found and the bound.

    Where the gap closes (to `GAP` of the cost) that labelling is optimal, and every node keeps only its label.
    """

    def __init__(self, upper: float = float("inf")) -> None:
        self.lower = float("-inf")
        self.upper = upper
        """The least cost known of any labelling of the graph (one found before, or here)."""
        self.best: dict[int, int] = {}

    @property
    def closed(self) -> bool:
        """Whether a labelling is proven optimal."""
        return bool(self.best) and self.upper - self.lower <= GAP * abs(self.upper)

    def apply(self, graph: WorkingGraph) -> int:
        if not graph.costs:
            return 0
        messages = _Messages(graph)
        self._tighten(graph, messages)
        dropped = 0
        slack = self.upper - self.lower + GAP * abs(self.upper)
        for v in messages.order:
            reduced = messages.reduced(v)
            keep = np.arange(len(reduced)) == self.best[v] if self.closed else reduced <= slack
            keep[int(np.argmin(reduced))] |= not keep.any()
            if not keep.all():
                graph.keep(v, keep)
                dropped += int((~keep).sum())
        return dropped

    def _tighten(self, graph: WorkingGraph, messages: _Messages) -> None:
        """Sweep until the gap closes or the bound stands still."""
        stalled, last = 0, float("-inf")
        for i in range(SWEEPS):
            messages.sweep(forward=True)
            messages.sweep(forward=False)
            self.lower = max(self.lower, messages.bound())
            if i % ROUNDING == 0 or i == SWEEPS - 1:
                self._round(graph, messages)
            stalled = stalled + 1 if self.lower - last <= 1e-6 * abs(self.lower) else 0
            last = self.lower
            if self.closed or stalled >= PATIENCE:
                break

    def _round(self, graph: WorkingGraph, messages: _Messages) -> None:
        for forward in (True, False):
            labels = messages.rounded(forward)
            cost = descend(graph, labels)
            if cost < self.upper + GAP * abs(self.upper) and (cost < self.upper or not self.best):
                self.upper, self.best = cost, labels

    def invert(self, labels: dict[int, int]) -> None:
        """Nothing to add: labels keep their original numbers."""
