"""Better labellings by exact steps: all nodes of a tree are labelled anew at once, the others held.

Given the labels around it, a set of nodes that edges join without a cycle is solved by dynamic programming, leaves
first (min-sum on a tree). `forest_step` takes as many nodes of the whole graph as stay without a cycle and looks at
prices only: it never raises the priced cost. `polish` takes small trees, one around each node, and keeps a step only
if every memory row stays within its room and the cost falls. Which nodes come first is drawn by a small generator
of numbers that the caller seeds: the same seed gives the same labelling.
"""

from __future__ import annotations

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.flat import Array, Flat

CROWD = 64
"""Nodes with more edges than this do not enter a small tree, except as its first node."""


@compiled
def permutation(count: int, seed: int) -> Ids:
    """0 … count-1 shuffled (Fisher and Yates), by the 64-bit generator of Knuth's MMIX."""
    order = np.arange(count)
    state = np.uint64(seed) * np.uint64(2) + np.uint64(1)
    for i in range(count - 1, 0, -1):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        j = np.int64((state >> np.uint64(33)) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]
    return order


@compiled
def _root(above: Ids, v: int) -> int:
    """The representative of v's component, paths halved on the way."""
    while above[v] != v:
        above[v] = above[above[v]]
        v = above[v]
    return v


@compiled
def _forest(flat: Flat, seed: int) -> Ids:
    """1 for nodes of a set without cycles to which no node could be added."""
    nodes = len(flat.start) - 1
    first, other = flat.first, flat.other
    inside = np.zeros(nodes, dtype=np.int64)
    above = np.arange(nodes)
    seen = np.full(nodes, -1)
    for v in permutation(nodes, seed):
        free = True
        for h in range(first[v], first[v + 1]):
            if inside[other[h]]:
                root = _root(above, other[h])
                if seen[root] == v:
                    free = False
                    break
                seen[root] = v
        if free:
            inside[v] = 1
            for h in range(first[v], first[v + 1]):
                if inside[other[h]]:
                    above[_root(above, other[h])] = v
    return inside


@compiled
def _rooted(flat: Flat, inside: Ids, order: Ids, up: Ids) -> int:
    """The nodes inside with parents before children, each with its half to the parent (root: -1); their number."""
    count = 0
    for root in range(len(inside)):
        if inside[root] != 1:
            continue
        inside[root] = 2
        order[count], up[count] = root, -1
        reached = count
        count += 1
        while reached < count:
            v = order[reached]
            reached += 1
            for h in range(flat.first[v], flat.first[v + 1]):
                w = flat.other[h]
                if inside[w] == 1:
                    inside[w] = 2
                    order[count], up[count] = w, flat.twin[h]
                    count += 1
    return count


@compiled
def _lift(entries: Array, low: Array, table: int, high: Array, best: Ids, at: int) -> None:
    """high[j] += min_i low[i] + entry[i, j]; the least i goes to best."""
    n = len(high)
    least = np.full(n, np.inf)
    row = np.uint64(table)
    for i in range(len(low)):
        for j in range(np.uint64(n)):
            cost = low[i] + entries[row + j]
            if cost < least[j]:
                least[j] = cost
                best[at + j] = i
        row += np.uint64(n)
    high += least


@compiled
def _solve_tree(
    flat: Flat, costs: Array, labels: Ids, inside: Ids, order: Ids, up: Ids, count: int, totals: Array, best: Ids
) -> None:
    """The best labels of the nodes in `order`, given those of nodes that are not inside."""
    start, first, other, twin, table = flat.start, flat.first, flat.other, flat.twin, flat.table
    for k in range(count):
        v = order[k]
        n = start[v + 1] - start[v]
        for i in range(start[v], start[v + 1]):
            totals[i] = costs[i]
        for h in range(first[v], first[v + 1]):
            if not inside[other[h]]:
                at = table[h] + labels[other[h]] * n
                for i in range(n):
                    totals[start[v] + i] += flat.entries[at + i]
    for k in range(count - 1, -1, -1):
        v, h = order[k], up[k]
        if h >= 0:
            p = other[h]
            low, high = totals[start[v] : start[v + 1]], totals[start[p] : start[p + 1]]
            _lift(flat.entries, low, table[twin[h]], high, best, flat.message[twin[h]])
    for k in range(count):
        v, h = order[k], up[k]
        if h >= 0:
            labels[v] = best[flat.message[twin[h]] + labels[other[h]]]
        else:
            labels[v] = np.argmin(totals[start[v] : start[v + 1]])


@compiled
def forest_step(flat: Flat, costs: Array, labels: Ids, seed: int) -> None:
    """Label a large forest anew, drawn by `seed`, at least cost for the given (priced) costs."""
    nodes = len(flat.start) - 1
    inside = _forest(flat, seed)
    order, up = np.empty(nodes, dtype=np.int64), np.empty(nodes, dtype=np.int64)
    count = _rooted(flat, inside, order, up)
    best = np.zeros(flat.messages, dtype=np.int64)
    _solve_tree(flat, costs, labels, inside, order, up, count, np.empty(len(flat.cost)), best)


@compiled
def _grow(flat: Flat, seed_node: int, size: int, mark: Ids, order: Ids, up: Ids) -> int:
    """A tree of up to `size` nodes around a node, breadth first; inside nodes get mark 1, those next to it more."""
    order[0], up[0], mark[seed_node] = seed_node, -1, 1
    count, reached = 1, 0
    while reached < count and count < size:
        v = order[reached]
        reached += 1
        for h in range(flat.first[v], flat.first[v + 1]):
            w = flat.other[h]
            if mark[w] or flat.first[w + 1] - flat.first[w] > CROWD or count == size:
                continue
            touching = 0
            for k in range(flat.first[w], flat.first[w + 1]):
                touching += mark[flat.other[k]]
            if touching == 1:
                mark[w] = 1
                order[count], up[count] = w, flat.twin[h]
                count += 1
    return count


@compiled
def _shift(flat: Flat, usage: Array, v: int, amount: float) -> None:
    """Node v holds `amount` bytes more."""
    if amount != 0.0:
        for k in range(flat.run[v], flat.run[v + 1]):
            more = amount * flat.run_copies[k]
            for r in range(flat.run_first[k], flat.run_end[k]):
                usage[r] += more


@compiled
def _fits(flat: Flat, usage: Array, v: int) -> bool:
    """Whether all rows that count v are within their room."""
    for k in range(flat.run[v], flat.run[v + 1]):
        for r in range(flat.run_first[k], flat.run_end[k]):
            if usage[r] > flat.room[r]:
                return False
    return True


@compiled
def cost_of(flat: Flat, costs: Array, labels: Ids) -> float:
    """What a labelling costs (forbidden entries count as they stand)."""
    total = 0.0
    for v in range(len(flat.start) - 1):
        n = flat.start[v + 1] - flat.start[v]
        total += costs[flat.start[v] + labels[v]]
        for h in range(flat.first[v], flat.first[v] + flat.behind[v]):
            total += flat.entries[flat.table[h] + labels[flat.other[h]] * n + labels[v]]
    return total


@compiled
def _cost_around(flat: Flat, costs: Array, labels: Ids, inside: Ids, order: Ids, count: int) -> float:
    """The part of the cost that the nodes in `order` take part in."""
    total = 0.0
    for k in range(count):
        v = order[k]
        n = flat.start[v + 1] - flat.start[v]
        total += costs[flat.start[v] + labels[v]]
        for h in range(flat.first[v], flat.first[v + 1]):
            w = flat.other[h]
            if not inside[w] or w < v:
                total += flat.entries[flat.table[h] + labels[w] * n + labels[v]]
    return total


@compiled
def polish(flat: Flat, costs: Array, priced: Array, labels: Ids, usage: Array, size: int, seed: int) -> float:
    """One small tree around every node, in an order drawn by `seed`; labels must fit. Returns what was gained.

    Trees are solved for the `priced` costs; a step is kept if `costs` fall.
    """
    nodes = len(flat.start) - 1
    mark, best = np.zeros(nodes, dtype=np.int64), np.zeros(flat.messages, dtype=np.int64)
    order, up, old = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    totals = np.empty(len(flat.cost))
    gained = 0.0
    for v in permutation(nodes, seed):
        count = _grow(flat, v, size, mark, order, up)
        before = _cost_around(flat, costs, labels, mark, order, count)
        for k in range(count):
            old[k] = labels[order[k]]
        _solve_tree(flat, priced, labels, mark, order, up, count, totals, best)
        gain = before - _cost_around(flat, costs, labels, mark, order, count)
        if gain > 1e-12 * abs(before) and _try(flat, labels, usage, order, old, count):
            gained += gain
        else:
            for k in range(count):
                labels[order[k]] = old[k]
        for k in range(count):
            mark[order[k]] = 0
    return gained


@compiled
def _try(flat: Flat, labels: Ids, usage: Array, order: Ids, old: Ids, count: int) -> bool:
    """Count the new labels of the nodes in `order` in the usage; undone if that does not fit."""
    for k in range(count):
        v = order[k]
        _shift(flat, usage, v, flat.held[flat.start[v] + labels[v]] - flat.held[flat.start[v] + old[k]])
    for k in range(count):
        if labels[order[k]] != old[k] and not _fits(flat, usage, order[k]):
            for q in range(count):
                v = order[q]
                _shift(flat, usage, v, flat.held[flat.start[v] + old[q]] - flat.held[flat.start[v] + labels[v]])
            return False
    return True
