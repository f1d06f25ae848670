"""The second engine: labellings and bounds for problems that are too large or too tight for branch and bound.

    reduce   exact reductions (`reductions.py`), then flat arrays (`flat.py`)
    ascend   prices on the memory rows and messages on the edges raise a lower bound (`prices.py`)
    repair   the labelling that the messages round to becomes one that fits: rows still over their room get dearer,
             and large forests are labelled anew at those prices (`trees.py`), until nothing is over
    polish   small trees are labelled anew where that is cheaper and still fits

Ascent and repair alternate, so that many price vectors are tried. Work is counted in table entries looked at, not in
seconds, and nothing is drawn from a clock: the same problem gives the same labelling everywhere. `stop`, asked
between steps, ends the search early.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.flat import Array, Flat, flatten
from alpa_mlir.passes.intra.prices import Prices, least_usage, priced_costs, usage_of
from alpa_mlir.passes.intra.problem import DoesNotFit, Problem, Progress, Solution, Stop, never, quiet
from alpa_mlir.passes.intra.reductions import Eliminate, Prune, Reduction, WorkingGraph
from alpa_mlir.passes.intra.trees import cost_of, forest_step, polish

WORK = 8e9
"""Table entries that a search looks at, about."""
CHUNKS = 20
"""How often the ascent is interrupted for a repair."""
MOST_ROUNDS = 3000
REPAIRS = 400
"""Forest steps of one repair at most."""
DEARER = 1.03
SIZES = (5, 12, 30)
"""Nodes of the trees of a polish."""
SCALES = (0.0, 1.0, 0.5, 0.25, 1.5)
"""Parts of the prices at which trees are solved in turn."""
UNKNOWN = 0.2
"""How far above the bound the ascent aims at most, in parts of it."""


def search(problem: Problem, progress: Progress = quiet, stop: Stop = never) -> Solution:
    """A labelling within memory and a bound on all; DoesNotFit where none exists or none was found."""
    graph = WorkingGraph(problem)
    steps = [f"problem: {graph.size()}"]
    chain = _reduce(graph, steps)
    order, flat = flatten(graph, problem.runs, problem.limit)
    if (least_usage(flat) > flat.room).any():
        raise DoesNotFit("no choice of strategies keeps within memory")
    found = _Search(flat, graph.constant, progress, stop)
    steps.append(f"search: {len(flat.cost)} labels, {len(flat.room)} memory rows")
    found.run()
    if found.labels is None:
        raise DoesNotFit(f"no labelling within memory was found; whether one exists is not known ({steps[-1]})")
    labels = {v: int(graph.labels[v][x]) for v, x in zip(order, found.labels, strict=True)}
    for reduction in reversed(chain):
        reduction.invert(labels)
    chosen = tuple(labels[v] for v in range(len(problem.costs)))
    return Solution(chosen, problem.cost(chosen), (*steps, *found.steps), found.bound)


def _reduce(graph: WorkingGraph, steps: list[str]) -> list[Reduction]:
    chain: list[Reduction] = [Eliminate(), Prune(), Eliminate()]
    for reduction in chain:
        count = reduction.apply(graph)
        steps.append(f"{type(reduction).__name__.lower()}: {count} gone: {graph.size()}")
    return chain


@dataclass
class _Search:
    """The state of a search: the best labelling of the flat problem, and the bound."""

    flat: Flat
    constant: float
    progress: Progress
    stop: Stop
    labels: Ids | None = None
    cost: float = np.inf
    bound: float = -np.inf
    steps: list[str] = field(default_factory=list)
    seed: int = 0

    def run(self) -> None:
        prices = Prices(self.flat)
        rounds = int(min(MOST_ROUNDS, 5 * len(self.flat.cost), WORK / (4 * len(self.flat.entries) + 1)))
        for chunk in range(CHUNKS):
            for _ in range(max(1, rounds // CHUNKS)):
                prices.round(self._target(prices.bound))
                self.bound = max(self.bound, prices.bound + self.constant)
            self._repair(prices.labels.copy(), prices.best_prices)
            self.progress(f"{chunk + 1}/{CHUNKS}: {self._state()}")
            if self.stop() or self._closed():
                break
        self.steps.append(f"prices and messages: {prices.rounds} rounds: {self._state()}")

    def _state(self) -> str:
        return f"bound {self.bound:.10g}, cost {self.cost:.10g}"

    def _closed(self) -> bool:
        return np.isfinite(self.cost) and self.cost - self.bound <= 1e-9 * abs(self.cost)

    def _target(self, bound: float) -> float:
        """What the ascent aims at: the best known cost, or a little above the bound where that is far away."""
        if not np.isfinite(bound):
            return bound
        scale = float(self.flat.cost[self.flat.cost < self.flat.big].mean()) if abs(bound) < 1e-300 else abs(bound)
        return min(self.cost - self.constant, bound + UNKNOWN * scale)

    def _excess(self, labels: Ids) -> Array:
        parts = np.zeros(len(self.flat.cost))
        parts[self.flat.start[:-1] + labels] = 1.0
        result: Array = usage_of(self.flat, parts) - self.flat.room
        return result

    def _repair(self, labels: Ids, prices: Array) -> None:
        """From a labelling near the bound to one that fits."""
        flat = self.flat
        weights = prices.copy()
        scale = max(abs(self.bound), 1e-30) / max(float(np.abs(flat.room).max(initial=0.0)), 1e-30)
        for step in range(REPAIRS):
            self.seed += 1
            forest_step(flat, priced_costs(flat, weights), labels, self.seed)
            excess = self._excess(labels)
            if excess.max(initial=0.0) <= 0:
                if cost_of(flat, flat.cost, labels) < flat.big:
                    self._polish(labels, prices, excess + flat.room)
                return
            over = np.maximum(excess, 0.0) / excess.max()
            weights = np.where(over > 0, weights * DEARER, weights) + over * scale * 5e-4 * DEARER**step

    def _polish(self, labels: Ids, prices: Array, usage: Array) -> None:
        """Cheaper and cheaper, until no size of tree and no scale of prices gains anything."""
        flat, idle = self.flat, 0
        step = 0
        while idle < len(SCALES) * len(SIZES) and step < 60:
            self.seed += 1
            priced = priced_costs(flat, prices * SCALES[step % len(SCALES)])
            gained = polish(flat, flat.cost, priced, labels, usage, SIZES[step % len(SIZES)], self.seed)
            idle = 0 if gained > 0 else idle + 1
            step += 1
        cost = cost_of(flat, flat.cost, labels) + self.constant
        if cost < self.cost:
            self.cost, self.labels = cost, labels.copy()
