"""Labellings near the optimum of what is left of a shared graph, quickly: sweeps, rounding, descent, all compiled.

Where many small problems are solved for an estimate each (prices of ranges of layers), a proven optimum is not worth
its time. The bound of the sweeps (`prices.py`, without memory rows) says when a labelling is near enough.
"""

from __future__ import annotations

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.flat import Array, Flat
from alpa_mlir.passes.intra.prices import sweep
from alpa_mlir.passes.intra.shared import SharedGraph

NEAR = 1e-3
"""The part of a labelling's cost that it may lie above the bound: then it is near enough."""
SWEEPS, ROUNDING = 60, 5
"""How many sweeps are tried to get there, and after how many of them their labels are improved by descent."""
FASTER = 0.95
"""The part of the gap that may be left from one rounding to the next; where more is, it stands still."""


def near_optimum(graph: SharedGraph) -> dict[int, int]:
    """A labelling of the nodes left that costs little more than the optimum."""
    nodes = graph.left
    if not nodes:
        return {}
    flat = flat_graph(graph, nodes)
    messages, thetas = np.zeros(flat.messages), np.zeros(len(flat.cost))
    sides = [np.zeros(len(nodes), dtype=np.int64) for _ in range(2)]
    best, cost, gap = sides[0], float("inf"), float("inf")
    for count in range(1, SWEEPS + 1):
        sweep(flat, flat.cost, messages, sides[0], thetas, True)
        bound = sweep(flat, flat.cost, messages, sides[1], thetas, False)
        if count % ROUNDING:
            continue
        for rounded in sides:
            labels = rounded.copy()
            found = descend(flat, labels)
            if found < cost:
                best, cost = labels, found
        last, gap = gap, cost - bound
        if gap <= NEAR * (cost + graph.constant) or gap > FASTER * last:
            break
    return dict(zip(nodes, best.tolist(), strict=True))


def flat_graph(graph: SharedGraph, nodes: list[int]) -> Flat:
    """What is left of a shared graph in flat arrays, without memory rows."""
    arrays = graph.tables.arrays
    ends, numbers = graph.edges()
    ends = np.searchsorted(nodes, ends)
    own = np.concatenate([ends[:, 0], ends[:, 1]])
    other = np.concatenate([ends[:, 1], ends[:, 0]])
    order = np.lexsort((other, own))
    # Half e + n·[v is the higher end] of edge e; a half holds [labels of the other end, labels of its own].
    turned = [arrays[graph.tables.turned(t)] for t in numbers.tolist()]
    halves = [*turned, *(arrays[t] for t in numbers.tolist())]
    own, other = own[order], other[order]
    costs = [arrays[graph.costs[v]] for v in nodes]
    sizes = np.array([len(c) for c in costs], dtype=np.int64)
    tables = [halves[h].ravel() for h in order.tolist()]
    first = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=len(nodes)))]).astype(np.int64)
    message = np.concatenate([[0], np.cumsum(sizes[own])]).astype(np.int64)
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Flat(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(costs),
        np.zeros(int(sizes.sum())),
        first,
        np.bincount(own[other < own], minlength=len(nodes)),
        other,
        np.lexsort((own, other)),
        message[:-1],
        np.concatenate([[0], np.cumsum(sizes[own] * sizes[other])])[:-1].astype(np.int64),
        np.concatenate(tables) if tables else nothing,
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
