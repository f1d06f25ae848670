"""Large neighbourhoods: all nodes but some hundred keep their labels, the rest is solved by branch and bound.

A neighbourhood grows breadth first, over edges and over nodes that count in one tight memory row, until its edges hold
a given number of pairs of labels. What the held nodes cost and use is constant, so that labels and pairs that alone
cost more than the best labelling leaves go, and dead ends with them: some thousand pairs remain (Shaw 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.branch import branch
from alpa_mlir.passes.intra.flat import Flat, flatten
from alpa_mlir.passes.intra.problem import Stop, never
from alpa_mlir.passes.intra.reductions import Eliminate, Prune, Reduction, WorkingGraph
from alpa_mlir.passes.intra.repair import usage
from alpa_mlir.passes.intra.spans import Spans
from alpa_mlir.passes.intra.trees import permutation

PAIRS = (50_000, 50_000, 200_000, 200_000, 100_000, 100_000)
"""Pairs of labels in neighbourhoods in turn, before anything is dropped."""
MOST, FEW = 30_000, 6_000
"""Pairs left, after that, above which a neighbourhood is passed over; `FEW` where a gap is allowed: the linear program
of thirty thousand takes ten seconds."""
LOOKS = 100
"""How often a branch and bound looks at its limits at most."""
TIGHT = 0.05
"""Rows with less room left than this, in parts of it, are tight."""


@dataclass
class Neighbourhoods:
    """What the neighbourhoods of a problem are taken from."""

    graph: WorkingGraph
    order: list[int]
    flat: Flat
    spans: Spans
    limit: float
    whole: bool
    stop: Stop = never
    most: int = MOST

    def improve(self, labels: Ids, cost: float, seed: int) -> Ids | None:
        """Cheaper labels for the nodes of the neighbourhood number `seed`; None where there are none.

        `cost` is what `labels` cost in the flat problem.
        """
        free = self._grow(labels, seed)
        graph = self.graph.copy()
        for k, v in enumerate(self.order):
            if not free[k]:
                only = np.zeros(len(graph.costs[v]), dtype=bool)
                only[labels[k]] = True
                graph.keep(v, only)
        chain: list[Reduction] = [Eliminate()]
        chain[0].apply(graph)
        total = cost + self.graph.constant
        forbid_above(graph, (total - graph.constant) * (1 + 1e-9))
        chain += [Prune(), Eliminate(), Prune(), Eliminate()]
        for reduction in chain[1:]:
            reduction.apply(graph)
        order, flat = flatten(graph, self.spans, self.limit)
        if not order or int((flat.entries < flat.big).sum()) // 2 > self.most:
            return None
        found = branch(flat, total - graph.constant, self.whole, LOOKS, self.stop)
        if found.labels is None:
            return None
        result = {v: int(graph.labels[v][x]) for v, x in zip(order, found.labels, strict=True)}
        for reduction in reversed(chain):
            reduction.invert(result)
        places = [int(np.searchsorted(self.graph.labels[v], result[v])) for v in self.order]
        return np.array(places, dtype=np.int64)

    def _grow(self, labels: Ids, seed: int) -> Ids:
        """1 for the nodes of a neighbourhood."""
        flat = self.flat
        sizes = np.diff(flat.start)
        order = permutation(flat.nodes, seed)
        waiting = [int(order[0])]
        if seed % 2 and len(flat.room):
            left = flat.room - usage(flat, labels)
            tight = np.flatnonzero(left <= TIGHT * np.abs(flat.room))
            row = int(tight[seed // 2 % len(tight)]) if len(tight) else int(np.argmin(left))
            runs = np.flatnonzero((flat.run_first <= row) & (row < flat.run_end))
            owner = np.repeat(np.arange(flat.nodes), np.diff(flat.run))
            alive = np.zeros(flat.nodes, dtype=bool)
            alive[owner[runs]] = True
            waiting = [int(v) for v in order if alive[v]]
        free = np.zeros(flat.nodes, dtype=np.int64)
        pairs = 0
        for v in waiting:
            if free[v]:
                continue
            free[v] = 1
            for h in range(flat.first[v], flat.first[v + 1]):
                w = int(flat.other[h])
                pairs += int(sizes[v] * sizes[w]) if free[w] else 0
                if not free[w]:
                    waiting.append(w)
            if pairs > PAIRS[seed % len(PAIRS)]:
                break
        return free


def forbid_above(graph: WorkingGraph, most: float) -> None:
    """Forbid labels and pairs that alone cost more."""
    for v in graph.costs:
        graph.costs[v] = np.where(graph.costs[v] > most, graph.forbidden, graph.costs[v])
        for w, matrix in graph.around[v].items():
            if v < w and matrix.max() > most:
                graph.set_edge(v, w, np.where(matrix > most, graph.forbidden, matrix))
