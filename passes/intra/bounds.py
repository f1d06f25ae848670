"""Labels that no optimum can use, found by a bound: an exact reduction of a problem without memory rows.

Sweeps raise a bound on all labellings (`sweeps.py`), what they round to gives a labelling and so an upper bound, and
labels whose own bound is above it are dropped (`fixing.py`). On transformer graphs, where the relaxation is (nearly)
tight, few labels survive.
"""

from __future__ import annotations

import numpy as np

from alpa_mlir.passes.intra.fixing import fix
from alpa_mlir.passes.intra.flat import flatten
from alpa_mlir.passes.intra.prices import Prices
from alpa_mlir.passes.intra.reductions import Reduction, WorkingGraph
from alpa_mlir.passes.intra.spans import Spans
from alpa_mlir.passes.intra.sweeps import Sweeps

ROUNDS = 300
ROUNDING = 5
PATIENCE = 30
GAP = 1e-11
"""Relative difference of cost that counts as none (rounding of sums)."""


class FixByBound(Reduction):
    """Drop labels whose bound exceeds the cost of the best labelling found.

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
        nodes = 1 + max((*graph.costs, *graph.fixed))
        order, flat = flatten(graph, Spans.none(nodes), float("inf"))
        sweeps = Sweeps(flat)
        self._tighten(order, sweeps)
        prices = Prices(flat)
        prices.messages, prices.labels = sweeps.messages, sweeps.labels[1]
        kept = fix(flat, prices, self.upper + GAP * abs(self.upper)).keep
        dropped = 0
        for v, a, b in zip(order, flat.start[:-1], flat.start[1:], strict=True):
            keep = np.arange(b - a) == self.best[v] if self.closed else kept[a:b]
            if keep.any() and not keep.all():
                graph.keep(v, keep)
                dropped += int((~keep).sum())
        return dropped

    def _tighten(self, order: list[int], sweeps: Sweeps) -> None:
        """Sweep until the gap closes or the bound stands still."""
        stalled, last = 0, float("-inf")
        for count in range(ROUNDS):
            self.lower = max(self.lower, sweeps.round())
            if count % ROUNDING == 0 or count == ROUNDS - 1:
                labels, cost = sweeps.improved()
                if cost < self.upper + GAP * abs(self.upper) and (cost < self.upper or not self.best):
                    self.upper, self.best = cost, dict(zip(order, labels.tolist(), strict=True))
            stalled = stalled + 1 if self.lower - last <= 1e-6 * abs(self.lower) else 0
            last = self.lower
            if self.closed or stalled >= PATIENCE:
                break

    def invert(self, labels: dict[int, int]) -> None:
        """Nothing to add: labels keep their original numbers."""
