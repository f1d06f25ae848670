"""A lower bound under memory rows: prices on bytes, messages on edges.

With a price λ_r ≥ 0 on each byte at row r no labelling that keeps the room costs less than

    min_x  Σ_v (c_v + m_v·Σ_r λ_r A[r, v])[x_v] + Σ_(u,v) E_uv[x_u, x_v]  −  Σ_r λ_r room_r

(Lagrange relaxation). The minimum is bounded in turn by message passing: a sweep goes through the nodes in order;
v collects θ = its costs plus all messages to it, and sends each edge ahead the share γ = 1 / max(edges ahead,
edges behind) of θ:  message[j] = min_i (γ θ[i] − message back[i] + E[i, j]).  What stays, (1 − γ · edges ahead) min θ,
summed over all nodes, is a bound for any messages before (sequential tree-reweighted message passing: Kolmogorov,
PAMI 2006, algorithm TRW-S; here the messages are not normalised, so that the sum is that simple).
Prices move along what labellings rounded from the messages use beyond the room, averaged as in the volume
algorithm (Barahona and Anbil 2000), by Polyak's step. One round is one sweep in each direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.flat import Array, Flat

AVERAGE = 0.1
"""Weight of a new round's usage in the average."""
SQUARES = 0.9
"""Weight of the old ones in the average of the squares."""
LEAST = 0.1
"""The least square of the direction that a careful step is reckoned with, in parts of the average square of the
excess."""


@compiled
def usage_of(flat: Flat, parts: Array) -> Array:
    """Bytes at each row, where `parts` says how much of each label is chosen."""
    change = np.zeros(len(flat.room) + 1)
    for v in range(len(flat.start) - 1):
        held = 0.0
        for i in range(flat.start[v], flat.start[v + 1]):
            held += parts[i] * flat.held[i]
        if held != 0.0:
            for k in range(flat.run[v], flat.run[v + 1]):
                change[flat.run_first[k]] += held * flat.run_copies[k]
                change[flat.run_end[k]] -= held * flat.run_copies[k]
    return np.cumsum(change)[:-1]


def least_usage(flat: Flat) -> Array:
    """Bytes at each row if every node held as little as it can."""
    parts = np.zeros(len(flat.cost))
    if flat.nodes:
        parts[flat.start[:-1]] = 1.0
        least = np.minimum.reduceat(flat.held, flat.start[:-1])
        return usage_of(flat._replace(held=np.repeat(least, np.diff(flat.start))), parts)
    return np.zeros(len(flat.room))


@compiled
def priced_costs(flat: Flat, prices: Array) -> Array:
    """The costs of all labels with their bytes paid for."""
    paid = np.zeros(len(prices) + 1)
    for r in range(len(prices)):
        paid[r + 1] = paid[r] + prices[r]
    costs = flat.cost.copy()
    for v in range(len(flat.start) - 1):
        price = 0.0
        for k in range(flat.run[v], flat.run[v + 1]):
            price += flat.run_copies[k] * (paid[flat.run_end[k]] - paid[flat.run_first[k]])
        if price != 0.0:
            for i in range(flat.start[v], flat.start[v + 1]):
                costs[i] += price * flat.held[i]
    return costs


@compiled
def _send(entries: Array, messages: Array, theta: Array, gamma: float, back: int, there: int, row: int, n: int) -> None:
    """The message at `there`, n numbers: the least of γ θ minus the message at `back` plus the edge at `row`."""
    size, place, at = np.uint64(n), np.uint64(there), np.uint64(row)
    for j in range(size):
        messages[place + j] = np.inf
    four = len(theta) - len(theta) % 4
    for i in range(0, four, 4):
        # Four at a time, so that messages are read and written less often.
        a, b = gamma * theta[i] - messages[back + i], gamma * theta[i + 1] - messages[back + i + 1]
        c, d = gamma * theta[i + 2] - messages[back + i + 2], gamma * theta[i + 3] - messages[back + i + 3]
        of_b = at + size
        of_c = of_b + size
        of_d = of_c + size
        for j in range(size):
            p, q, r, s = a + entries[at + j], b + entries[of_b + j], c + entries[of_c + j], d + entries[of_d + j]
            p = q if q < p else p
            r = s if s < r else r
            p = r if r < p else p
            least = messages[place + j]
            messages[place + j] = p if p < least else least
        at = of_d + size
    for i in range(four, len(theta)):
        offer = gamma * theta[i] - messages[back + i]
        for j in range(size):
            cost = offer + entries[at + j]
            least = messages[place + j]
            messages[place + j] = cost if cost < least else least
        at += size


@compiled
def _add(total: Array, source: Array, at: int) -> None:
    """total += source from `at` on."""
    place = np.uint64(at)
    for i in range(np.uint64(len(total))):
        total[i] += source[place + i]


@compiled
def sweep(flat: Flat, costs: Array, messages: Array, labels: Ids, thetas: Array, forward: bool) -> float:
    """One sweep: sends messages, rounds to `labels`, leaves every θ in `thetas`; returns the bound."""
    bound = 0.0
    nodes = len(flat.start) - 1
    start, first, other, twin, message = flat.start, flat.first, flat.other, flat.twin, flat.message
    entries, table = flat.entries, flat.table
    for step in range(nodes):
        v = step if forward else nodes - 1 - step
        begin, end = first[v], first[v + 1]
        middle = begin + flat.behind[v]
        theta = thetas[start[v] : start[v + 1]]
        theta[:] = costs[start[v] : start[v + 1]]
        chosen = theta.copy()
        for h in range(begin, end):
            _add(theta, messages, message[h])
            if (h < middle) == forward:
                _add(chosen, entries, table[h] + labels[other[h]] * len(theta))
            else:
                _add(chosen, messages, message[h])
        labels[v] = np.argmin(chosen)
        gamma = 1.0 / max(middle - begin, end - middle, 1)
        ahead = end - middle if forward else middle - begin
        bound += (1.0 - gamma * ahead) * theta.min()
        for h in range(middle if forward else begin, end if forward else middle):
            n = start[other[h] + 1] - start[other[h]]
            _send(entries, messages, theta, gamma, message[h], message[twin[h]], table[twin[h]], n)
    return bound


@compiled
def marginals(flat: Flat, messages: Array, thetas: Array) -> Array:
    """How much each label of each node counts in the bound of the backward sweep that left `messages` and `thetas`.

    The derivative of that bound by the costs: a node's least θ counts with the part that stays there, and what
    a label of u counts, counts the label of w > u that gave the least to the message, with the share of w.
    """
    parts = np.zeros(len(flat.cost))
    start, first, other, twin, message = flat.start, flat.first, flat.other, flat.twin, flat.message
    for v in range(len(start) - 1):
        a, b = start[v], start[v + 1]
        behind = flat.behind[v]
        middle, end = first[v] + behind, first[v + 1]
        stays = 1.0 - behind / max(behind, end - middle, 1)
        if stays > 0.0:
            parts[a + np.argmin(thetas[a:b])] += stays
        for i in range(b - a):
            if parts[a + i] > 0.0:
                for h in range(middle, end):
                    w = other[h]
                    gamma = 1.0 / max(flat.behind[w], first[w + 1] - first[w] - flat.behind[w], 1)
                    begin, n = start[w], start[w + 1] - start[w]
                    j = _giver(
                        flat.entries, messages, thetas, gamma, begin, n, message[twin[h]], flat.table[h] + i, b - a
                    )
                    parts[begin + j] += gamma * parts[a + i]
    return parts


@compiled
def _giver(
    entries: Array, messages: Array, thetas: Array, gamma: float, begin: int, n: int, back: int, at: int, step: int
) -> int:
    """The label that gave the least to a message."""
    best, least = 0, np.inf
    for j in range(n):
        cost = gamma * thetas[begin + j] - messages[back + j] + entries[at + j * step]
        if cost < least:
            best, least = j, cost
    return best


@dataclass
class Prices:
    """The state of the ascent: current and best prices, messages, the last labelling."""

    flat: Flat
    prices: Array = field(init=False)
    best_prices: Array = field(init=False)
    messages: Array = field(init=False)
    labels: Ids = field(init=False)
    average: Array = field(init=False)
    square: Array = field(init=False)
    thetas: Array = field(init=False)
    parts: Array = field(init=False)
    bound: float = -np.inf
    step: float = 1.0
    failures: int = 0
    rounds: int = 0
    careful: bool = False
    """Shorter steps: they end near the best bound soon, but on large problems below what long steps reach."""

    def __post_init__(self) -> None:
        rows = len(self.flat.room)
        self.prices, self.best_prices = np.zeros(rows), np.zeros(rows)
        self.average, self.square = np.zeros(rows), np.zeros(rows)
        self.messages = np.zeros(self.flat.messages)
        self.labels = np.zeros(self.flat.nodes, dtype=np.int64)
        self.thetas = np.zeros(len(self.flat.cost))
        self.parts = np.zeros(0)

    def round(self, target: float) -> float:
        """Sweep in both directions, then move the prices towards a bound of `target`; the bound of this round."""
        costs = priced_costs(self.flat, self.prices)
        paid = float(self.prices @ self.flat.room)
        sweep(self.flat, costs, self.messages, self.labels, self.thetas, True)
        bound = sweep(self.flat, costs, self.messages, self.labels, self.thetas, False) - paid
        self._judge(bound)
        parts = marginals(self.flat, self.messages, self.thetas)
        self.parts = AVERAGE * parts + (1 - AVERAGE) * self.parts if self.rounds else parts
        self._move(usage_of(self.flat, parts) - self.flat.room, target)
        return bound

    def _judge(self, bound: float) -> None:
        if bound > self.bound:
            self.bound, self.failures = bound, 0
            self.best_prices = self.prices
            self.step = min(self.step * 1.1, 2.0)
            return
        self.failures += 1
        if self.failures >= 5:
            self.failures, self.step = 0, max(self.step * 0.66, 1e-4)

    def _move(self, excess: Array, target: float) -> None:
        """Prices from the best ones along the average excess, in shorter steps where it changes much."""
        self.rounds += 1
        first = self.rounds == 1
        self.average = excess if first else AVERAGE * excess + (1 - AVERAGE) * self.average
        self.square = SQUARES * self.square + (1 - SQUARES) * excess * excess
        square = self.square / (1 - SQUARES**self.rounds)
        way = np.where((self.best_prices <= 0) & (self.average < 0), 0.0, self.average)
        scale = 1.0 / (square**0.25 + 1e-3 * float(square.max(initial=0.0)) ** 0.25 + 1e-300)
        norm = float((way * scale) @ way)
        if self.careful:
            # Where usage swings about the room its average is next to nothing, and a step along it is far too long.
            norm = max(norm, LEAST * float(scale @ square))
        if norm > 0:
            step = self.step * max(target - self.bound, 0.0) / norm
            self.prices = np.maximum(self.best_prices + step * scale * way, 0.0)
