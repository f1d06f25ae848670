"""Labels that no better labelling uses, found by the bound.

During the backward sweep of `prices.py`, when node v is reached, the nodes before it stand as the forward sweep left
them and those after it as the backward sweep did, and what is known is a bound on every labelling with x_v = i:

    Σ_(u<v) (1 − γ_u·ahead_u) min θ_u  +  Σ_(w>v) (1 − γ_w·behind_w + γ_w·|edges of w to u < v|) min θ_w  +  θ_v[i]

(the edges that join a node before v with one after it hold at least the share γ_w·min θ_w of the latter). Labels whose
bound is not below the best known cost are dropped: what is left holds every better labelling, if there is one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.flat import Array, Flat
from alpa_mlir.passes.intra.prices import Prices, priced_costs, sweep

SLACK = 1e-10
"""What rounding may add to a bound, in parts of its terms."""


@compiled
def label_bounds(flat: Flat, forward: Array, backward: Array) -> Array:
    """A bound on the priced cost of all labellings with each label, from the θ of a forward and a backward sweep."""
    nodes = len(flat.start) - 1
    before = np.zeros(nodes + 1)
    for v in range(nodes):
        ahead = flat.first[v + 1] - flat.first[v] - flat.behind[v]
        stays = 1.0 - ahead / max(ahead, flat.behind[v], 1)
        before[v + 1] = before[v] + stays * forward[flat.start[v] : flat.start[v + 1]].min()
    crossing = np.zeros(nodes)
    bounds = np.empty(len(flat.cost))
    after = 0.0
    for v in range(nodes - 1, -1, -1):
        after -= crossing[v]
        behind = flat.behind[v]
        for i in range(flat.start[v], flat.start[v + 1]):
            bounds[i] = before[v] + after + backward[i]
        least = backward[flat.start[v] : flat.start[v + 1]].min()
        share = least / max(behind, flat.first[v + 1] - flat.first[v] - behind, 1)
        after += least
        for h in range(flat.first[v], flat.first[v] + behind):
            crossing[flat.other[h]] += share
    return bounds


@compiled
def forbid_pairs(flat: Flat, forward: Array, messages: Array, bounds: Array, cutoff: float, entries: Array) -> int:
    """Mark as forbidden, in a copy of the entries, the pairs of labels with which no labelling costs `cutoff` or less.

    `forward`: θ of the forward sweep that left `messages`; `bounds` of the backward sweep after it.
    To the bound of a label of w an edge to u < w adds what it holds itself, and u what its label is above its least.
    """
    gone = 0
    for w in range(len(flat.start) - 1):
        n = flat.start[w + 1] - flat.start[w]
        for h in range(flat.first[w], flat.first[w] + flat.behind[w]):
            u, twin = flat.other[h], flat.twin[h]
            a, m = flat.start[u], flat.start[u + 1] - flat.start[u]
            behind = flat.behind[u]
            ahead = flat.first[u + 1] - flat.first[u] - behind
            gamma = 1.0 / max(behind, ahead, 1)
            best = forward[a : a + m].min()
            for i in range(m):
                above = (1.0 - gamma * ahead) * (forward[a + i] - best)
                share = gamma * forward[a + i] - messages[flat.message[twin] + i]
                for j in range(n):
                    at = flat.table[h] + i * n + j
                    if entries[at] < flat.big:
                        held = share + entries[at] - messages[flat.message[h] + j]
                        if bounds[flat.start[w] + j] + above + max(held, 0.0) > cutoff:
                            entries[at] = flat.big
                            entries[flat.table[twin] + j * m + i] = flat.big
                            gone += 1
    return gone


class Fixed(NamedTuple):
    """Which labels are kept, the entries with dropped pairs forbidden, and the pairs that are left and dropped."""

    keep: npt.NDArray[np.bool_]
    entries: Array
    left: int
    gone: int


def fix(flat: Flat, prices: Prices, cutoff: float) -> Fixed:
    """Keep what may cost up to `cutoff`."""
    costs = priced_costs(flat, prices.best_prices)
    paid = float(prices.best_prices @ flat.room)
    cutoff = cutoff + paid + SLACK * (abs(cutoff) + abs(paid)) if cutoff < np.inf else cutoff
    messages, labels = prices.messages.copy(), prices.labels.copy()
    forward, backward = np.zeros(len(flat.cost)), np.zeros(len(flat.cost))
    sweep(flat, costs, messages, labels, forward, True)
    before = messages.copy()
    sweep(flat, costs, messages, labels, backward, False)
    bounds = label_bounds(flat, forward, backward)
    entries = flat.entries.copy()
    allowed = int((entries < flat.big).sum()) // 2
    gone = int(forbid_pairs(flat, forward, before, bounds, cutoff, entries))
    return Fixed(bounds <= cutoff, entries, allowed - gone, gone)
