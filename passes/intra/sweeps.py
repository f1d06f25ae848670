"""Message passing over what is left of a shared graph: a bound on every labelling, and labellings near it.

The sweeps are those of `prices.py`, without memory rows; here are the graph laid out flat (each distinct table once),
descent from what the sweeps round to, and labellings near the optimum for where many small problems are solved for
an estimate each, so that a proven optimum is not worth its time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.flat import Array, Flat, joined, offsets
from alpa_mlir.passes.intra.prices import sweep
from alpa_mlir.passes.intra.shared import SharedGraph

NEAR = 1e-3
"""The part of a labelling's cost that it may lie above the bound: then it is near enough."""
ROUNDS, ROUNDING = 60, 5
"""How many rounds of sweeps are tried to get there, and after how many of them their labels are improved."""
FASTER, PATIENCE = 0.95, 2
"""The part of the gap that may be left from one rounding to the next; where more is, it stands still, and how often."""


class Sweeps:
    """Messages on the edges of a problem without memory rows, and the labels that the last sweeps rounded to."""

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.messages, self.thetas = np.zeros(flat.messages), np.zeros(len(flat.cost))
        self.labels = [np.zeros(flat.nodes, dtype=np.int64) for _ in range(2)]

    def round(self) -> float:
        """One sweep in each direction; returns a bound on the cost of all labellings."""
        sweep(self.flat, self.flat.cost, self.messages, self.labels[0], self.thetas, True)
        return float(sweep(self.flat, self.flat.cost, self.messages, self.labels[1], self.thetas, False))

    def improved(self) -> tuple[Ids, float]:
        """The better of the two labellings that the last round gave, after descent, and its cost."""
        found = []
        for rounded in self.labels:
            labels = rounded.copy()
            found.append((float(descend(self.flat, labels)), labels))
        cost, labels = min(found, key=lambda pair: pair[0])
        return labels, cost


class Start(NamedTuple):
    """Where sweeps of a problem may begin that differs from another in costs only: the other's messages and labels."""

    messages: Array
    labels: Ids


def near_optimum(graph: SharedGraph, start: Start | None = None) -> tuple[dict[int, int], Start | None]:
    """A labelling of the nodes left that costs little more than the optimum, and where to begin with other costs."""
    nodes = graph.left
    if not nodes:
        return {}, None
    sweeps = Sweeps(flat_graph(graph, nodes))
    best, cost, gap = sweeps.labels[0], float("inf"), float("inf")
    if start is not None:
        sweeps.messages[:] = start.messages
        best = start.labels.copy()
        cost = float(descend(sweeps.flat, best))
    still = 0
    for count in range(1, ROUNDS + 1):
        bound = sweeps.round()
        if count % ROUNDING:
            continue
        labels, found = sweeps.improved()
        if found < cost:
            best, cost = labels, found
        last, gap = gap, cost - bound
        still = still + 1 if gap > FASTER * last else 0
        if gap <= NEAR * (cost + graph.constant) or still == PATIENCE:
            break
    return dict(zip(nodes, best.tolist(), strict=True)), Start(sweeps.messages, best)


def flat_graph(graph: SharedGraph, nodes: list[int]) -> Flat:
    """What is left of a shared graph in flat arrays, without memory rows."""
    arrays = graph.tables.arrays
    ends, numbers = graph.edges()
    ends = np.searchsorted(nodes, ends)
    own = np.concatenate([ends[:, 0], ends[:, 1]])
    other = np.concatenate([ends[:, 1], ends[:, 0]])
    order = np.lexsort((other, own))
    # Half e + n·[v is the higher end] of edge e; a half holds [labels of the other end, labels of its own].
    turned = [graph.tables.turned(t) for t in numbers.tolist()]
    halves = np.concatenate([np.array(turned, dtype=np.int64), numbers])[order]
    distinct, of_half = np.unique(halves, return_inverse=True)
    own, other = own[order], other[order]
    costs = [arrays[graph.costs[v]] for v in nodes]
    sizes = np.array([len(c) for c in costs], dtype=np.int64)
    tables = [arrays[t].ravel() for t in distinct.tolist()]
    begins = offsets(np.array([len(t) for t in tables], dtype=np.int64))
    message = offsets(sizes[own])
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Flat(
        offsets(sizes),
        joined(costs),
        np.zeros(int(sizes.sum())),
        offsets(np.bincount(own, minlength=len(nodes))),
        np.bincount(own[other < own], minlength=len(nodes)),
        other,
        np.lexsort((own, other)),
        message[:-1],
        begins[:-1][of_half],
        joined(tables),
        np.zeros(len(nodes) + 1, dtype=np.int64),
        none,
        none,
        nothing,
        nothing,
        none,
        int(message[-1]),
        graph.tables.forbidden,
    )


@compiled
def descend(flat: Flat, labels: Ids) -> float:
    """Improve a labelling node by node until none improves; returns its cost."""
    nodes = len(flat.start) - 1
    waiting = np.ones(nodes, dtype=np.bool_)
    changed = True
    while changed:
        changed = False
        for v in range(nodes):
            if not waiting[v]:
                continue
            waiting[v] = False
            theta = _given(flat, labels, v, nodes)
            best = np.argmin(theta)
            if theta[best] < theta[labels[v]] - 1e-15 * abs(theta[labels[v]]):
                labels[v] = best
                changed = True
                for h in range(flat.first[v], flat.first[v + 1]):
                    waiting[flat.other[h]] = True
    cost = 0.0
    for v in range(nodes):
        cost += _given(flat, labels, v, v)[labels[v]]
    return cost


@compiled
def _given(flat: Flat, labels: Ids, v: int, end: int) -> Array:
    """What each label of v costs, edges to nodes below `end` included."""
    n = flat.start[v + 1] - flat.start[v]
    theta = flat.cost[flat.start[v] : flat.start[v + 1]].copy()
    for h in range(flat.first[v], flat.first[v + 1]):
        if flat.other[h] < end:
            row = flat.table[h] + labels[flat.other[h]] * n
            for i in range(n):
                theta[i] += flat.entries[row + i]
    return theta
