"""From the labelling that messages round to, near the bound but over the room, to one that fits and is cheap.

Repair: rows over their room get dearer, in proportion to what they are over and more from step to step; at these prices
large forests are labelled anew (`trees.forest_step`) until nothing is over. Polish: small trees are labelled anew at a
part of the ascent's prices and kept where the true cost falls and everything fits (`trees.polish`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.flat import Array, Flat
from alpa_mlir.passes.intra.prices import Prices, priced_costs, usage_of
from alpa_mlir.passes.intra.trees import cost_of, forest_step, polish

STEPS = 150
"""Forest steps of one repair at most."""
DEARER, GENTLE, HURRY = 1.03, 60, 1.1
"""Growth of prices from one step to the next, for how many steps, and after them."""
LAST_RESORTS = 3
"""How often a labelling is looked for whatever it costs."""
LOUDER = 1.3
"""The same, where costs do not count."""
START = 5e-4
"""The first addition to a price, in parts of (bound / room)."""
SIZES = (5, 12, 30)
"""Nodes of the trees of a polish."""
SCALES = (0.0, 1.0, 0.5, 0.25, 1.5)
"""Parts of the prices at which trees are solved in turn."""
ROUGH = 3
"""Polishes before it is judged whether a labelling deserves more."""
NEAR = 1.01
"""What deserves more, in parts of the best known cost."""
POLISHES = 60
POLISHED = 4e8
"""Table entries that the polishes of one repair look at, about."""
FEWEST = 6


def usage(flat: Flat, labels: Ids) -> Array:
    """Bytes at each row under a labelling."""
    parts = np.zeros(len(flat.cost))
    parts[flat.start[:-1] + labels] = 1.0
    result: Array = usage_of(flat, parts)
    return result


@dataclass
class Repair:
    """Repairs in turn; the seed of the permutations counts on."""

    seed: int = 0
    resorts: int = 0

    def run(self, flat: Flat, prices: Prices, best: float) -> Iterator[Ids]:
        """Labellings that fit, from where the ascent is; `best` is the cost of the best known one."""
        labels = self.fitting(flat, prices.labels.copy(), prices.best_prices, prices.bound)
        if labels is None and best == np.inf and self.resorts < LAST_RESORTS:
            self.resorts += 1
            labels = self.smallest(flat)
        if labels is not None:
            self.polished(flat, labels, prices.best_prices, best)
            yield labels

    def smallest(self, flat: Flat) -> Ids | None:
        """A labelling that fits and has nothing forbidden, whatever it costs; None where none is found.

        Costs count as nothing here, only what is forbidden does, and bytes at rows over their room.
        """
        bare = flat._replace(
            cost=np.where(flat.cost < flat.big, 0.0, flat.big), entries=np.where(flat.entries < flat.big, 0.0, flat.big)
        )
        pairs = zip(flat.start[:-1], flat.start[1:], strict=True)
        labels = np.array([int(np.argmin(flat.held[a:b] + bare.cost[a:b])) for a, b in pairs], dtype=np.int64)
        weights = np.full(len(flat.room), 1.0)
        for _ in range(STEPS):
            self.seed += 1
            forest_step(bare, priced_costs(bare, weights), labels, self.seed)
            excess = usage(flat, labels) - flat.room
            if excess.max(initial=0.0) <= 0 and cost_of(bare, bare.cost, labels) < flat.big:
                return labels
            weights = np.where(excess > 0, weights * LOUDER, weights)
            weights *= 1.0 / max(float(weights.max(initial=0.0)), 1.0)
        return None

    def fitting(self, flat: Flat, labels: Ids, prices: Array, bound: float) -> Ids | None:
        """A labelling that fits, from one that may not; None where that takes too many steps."""
        weights = prices.copy()
        scale = START * max(abs(bound), 1e-30) / max(float(np.abs(flat.room).max(initial=0.0)), 1e-30)
        for step in range(STEPS):
            self.seed += 1
            forest_step(flat, priced_costs(flat, weights), labels, self.seed)
            excess = usage(flat, labels) - flat.room
            most = float(excess.max(initial=0.0))
            if most <= 0:
                return labels if cost_of(flat, flat.cost, labels) < flat.big else None
            scale *= DEARER if step < GENTLE else HURRY
            weights = np.where(excess > 0, weights * DEARER + scale * excess / most, weights)
        return None

    def polished(self, flat: Flat, labels: Ids, prices: Array, best: float) -> None:
        """Cheaper and cheaper, until no size of tree and no part of the prices gains anything."""
        used = usage(flat, labels)
        idle = 0
        for step in range(max(FEWEST, min(POLISHES, int(POLISHED / (len(flat.entries) + 1))))):
            self.seed += 1
            priced = priced_costs(flat, prices * SCALES[step % len(SCALES)])
            gained = polish(flat, flat.cost, priced, labels, used, SIZES[step % len(SIZES)], self.seed)
            idle = 0 if gained > 0 else idle + 1
            if step == ROUGH and cost_of(flat, flat.cost, labels) > best + (NEAR - 1) * abs(best):
                break
            if idle == len(SCALES) * len(SIZES):
                break
