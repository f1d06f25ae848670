"""The second engine: labellings and bounds for problems that are too large or too tight for branch and bound alone.

    reduce   exact reductions (`reductions.py`), then flat arrays (`flat.py`)
    ascend   prices on the memory rows and messages on the edges raise a lower bound (`prices.py`)
    repair   the labelling that the messages round to becomes one that fits, then cheaper (`repair.py`)
    improve  large neighbourhoods are solved exactly, one after the other (`neighbourhoods.py`)
    fix      labels and pairs that no better labelling uses go, by the bound (`fixing.py`); reduce again
    branch   what is left is solved by branch and bound where it is small (`branch.py`)

Ascent and repair alternate, so that many price vectors are tried. Work is counted in table entries looked at, not in
seconds, and nothing is drawn from a clock: the same problem gives the same labelling everywhere. `stop`, asked
between steps, ends the search early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.branch import branch
from alpa_mlir.passes.intra.fixing import Fixed, fix
from alpa_mlir.passes.intra.flat import flatten
from alpa_mlir.passes.intra.neighbourhoods import FEW, MOST, Neighbourhoods
from alpa_mlir.passes.intra.prices import Prices, least_usage
from alpa_mlir.passes.intra.problem import Array, DoesNotFit, Problem, Progress, Solution, Stop, never, quiet
from alpa_mlir.passes.intra.reductions import Eliminate, Prune, Reduction, WorkingGraph
from alpa_mlir.passes.intra.repair import Repair

WORK = 64e9
"""Table entries that the first ascent looks at, about."""
CHUNKS = 12
"""How often an ascent is interrupted for a repair."""
LONG, IDLE, NEARER = 5e5, 2, 0.02
"""Where a gap is allowed and there are LONG table entries or more an ascent ends after IDLE repairs one after the other
that brought nothing: no cheaper labelling, and the bound nearer to it by less than NEARER, in parts of the distance."""
MOST_ROUNDS = 1200
AGAIN = 0.25
"""Rounds of an ascent after fixing, in parts of those of the first."""
TURNS = 3
MOST_NEIGHBOURHOODS, FEWEST, PATIENCE, HASTE = 60, 6, 30, 8
"""Neighbourhoods at most, at least, and without success one after the other: the last where a gap is allowed."""
IMPROVED = 4e8
"""Table entries that the neighbourhoods are cut out of, about, all together."""
LITTLE = 0.1
"""The part of the pairs that must have gone for another ascent."""
SMALL, SMALLER = 40_000, 10_000
"""Pairs of labels left up to which branch and bound is tried; `SMALLER` where a gap is allowed: more of them take ten
seconds to prove a few tenths of a percent."""
LOOKS = 3000
"""How often the branch and bound of the rest looks at its limits at most; `SOON` where a gap is allowed."""
SOON = 20
AIM = 0.2
"""How far above the bound the ascent aims at most, in parts of it."""
FINE = 1e-9
"""Costs that differ by less, in parts, are equal."""


def search(
    problem: Problem,
    progress: Progress = quiet,
    stop: Stop = never,
    *,
    small: int | None = None,
    neighbourhoods: int = MOST_NEIGHBOURHOODS,
    start: Sequence[int] = (),
    gap: float = 0.0,
) -> Solution:
    """A labelling within memory and a bound on all; DoesNotFit where none exists or none was found.

    `small`: pairs of labels left up to which branch and bound is tried (None: as many as suit); `neighbourhoods` at
    most are tried; `start`: a labelling that is known; `gap`: what the labelling may cost above the bound, in parts of
    its cost.
    """
    if small is None:
        small = SMALLER if gap else SMALL
    found = _Search(problem, progress, stop, small, neighbourhoods, gap)
    found.begin(start)
    found.run()
    if found.labels is None:
        raise DoesNotFit(
            "no choice of strategies keeps within memory"
            if found.bound == np.inf
            else "no choice of strategies within memory was found; whether there is one is not known"
        )
    return Solution(found.labels, found.cost, tuple(found.steps), min(found.bound, found.cost))


@dataclass
class _Search:
    """The state of a search: what is left of the problem, the best labelling of all of it, and the bound."""

    problem: Problem
    progress: Progress
    stop: Stop
    small: int
    neighbourhoods: int
    gap: float = 0.0
    labels: tuple[int, ...] | None = None
    cost: float = np.inf
    bound: float = -np.inf
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph = WorkingGraph(self.problem)
        self.chain: list[Reduction] = []
        self.repair = Repair()
        self.whole = all(
            bool((t == np.floor(t))[np.isfinite(t)].all()) for t in (*self.problem.costs, *self.problem.edges.values())
        )
        self.steps.append(f"problem: {self.graph.size()}")

    def begin(self, labels: Sequence[int]) -> None:
        """Take a labelling that is known, if it is one."""
        if len(labels) and self.problem.fits(labels) and np.isfinite(self.problem.cost(labels)):
            self.labels, self.cost = tuple(labels), self.problem.cost(labels)

    def run(self) -> None:
        """All phases, until bound and cost meet."""
        prices: Prices | None = None
        for turn in range(TURNS):
            if not self._reduce():
                return
            prices = self._ascend(prices, 1.0 if turn == 0 else AGAIN)
            if self.stop():
                return
            if turn == 0 and self._fixed(prices).left > self.small:
                self._improve()
            fixed = self._fix(prices)
            if fixed is None or self.stop():
                return
            if fixed.left <= self.small:
                return self._branch()
            if fixed.gone < LITTLE * (fixed.left + fixed.gone):
                return

    def _reduce(self) -> bool:
        """Reduce and lay out what is left; False where that decides everything."""
        for reduction in (Eliminate(), Prune(), Eliminate()):
            count = reduction.apply(self.graph)
            self.chain.append(reduction)
            if count:
                self.steps.append(f"{type(reduction).__name__.lower()}: {count} gone: {self.graph.size()}")
        self.order, self.flat = flatten(self.graph, self.problem.runs, self.problem.limit)
        if (least_usage(self.flat) > self.flat.room).any():
            self.bound = self._proven()
            return False
        if not self.order:
            self.adopt(np.zeros(0, dtype=np.int64))
            self.bound = self._proven()
        return bool(self.order)

    def _ascend(self, last: Prices | None, share: float) -> Prices:
        """Raise the bound, from the prices of the last ascent, with repairs in between."""
        prices = Prices(self.flat, careful=self.gap > 0)
        if last is not None:
            known = np.zeros(self.problem.runs.rows)
            known[last.flat.row] = last.best_prices
            prices.prices = known[self.flat.row]
        entries = len(self.flat.entries)
        rounds = int(share * min(MOST_ROUNDS, 5 * len(self.flat.cost), WORK / (4 * entries + 1)))
        hasty, idle = self.gap > 0 and entries >= LONG, 0
        for chunk in range(CHUNKS):
            bound, cost = self.bound, self.cost
            for _ in range(max(1, rounds // CHUNKS)):
                prices.round(self._aim(prices.bound))
                if self.labels is not None and self.stop():
                    break
            self.bound = max(self.bound, prices.bound + self.graph.constant)
            for labels in self.repair.run(self.flat, prices, self.cost - self.graph.constant):
                self.adopt(labels)
            self.progress(f"{chunk + 1}/{CHUNKS}: {self._state()}")
            stands = self.cost == cost < np.inf and self.bound - bound < NEARER * (cost - bound)
            idle = idle + 1 if stands else 0
            if self.stop() or self._closed() or (hasty and idle == IDLE):
                break
        self.steps.append(f"prices and messages: {prices.rounds} rounds: {self._state()}")
        return prices

    def _fixed(self, prices: Prices) -> Fixed:
        return fix(self.flat, prices, self._cutoff() - self.graph.constant)

    def _fix(self, prices: Prices) -> Fixed | None:
        """Drop what no better labelling uses; None where nothing better is left."""
        fixed = self._fixed(prices)
        if self._closed() or not np.logical_or.reduceat(fixed.keep, self.flat.start[:-1]).all():
            self.bound = self._proven()
            self.steps.append("nothing better is left")
            return None
        if fixed.gone or not fixed.keep.all():
            self._forbid(fixed.keep, fixed.entries)
        labels = f"{int(fixed.keep.sum())} of {len(fixed.keep)} labels"
        self.steps.append(f"fix by bound: {labels} and {fixed.left} of {fixed.left + fixed.gone} pairs left")
        return fixed

    def _forbid(self, keep: npt.NDArray[np.bool_], entries: Array) -> None:
        """Take over what `fix` left."""
        flat, ends = self.flat, np.repeat(self.order, np.diff(self.flat.first))
        sizes = np.diff(flat.start)
        for h in np.flatnonzero(np.take(self.order, flat.other) < ends):
            u, v = self.order[flat.other[h]], int(ends[h])
            shape = (len(self.graph.costs[u]), len(self.graph.costs[v]))
            at = flat.table[h]
            self.graph.set_edge(u, v, entries[at : at + shape[0] * shape[1]].reshape(shape))
        for v, a, n in zip(self.order, flat.start[:-1], sizes, strict=True):
            if not keep[a : a + n].all():
                self.graph.keep(v, keep[a : a + n])

    def _improve(self) -> None:
        """Solve large neighbourhoods of the best labelling one after the other."""
        if self.labels is None:
            return
        most = FEW if self.gap else MOST
        around = Neighbourhoods(
            self.graph, self.order, self.flat, self.problem.runs, self.problem.limit, self.whole, self.stop, most
        )
        rounds = min(self.neighbourhoods, max(FEWEST, int(IMPROVED / (len(self.flat.entries) + 1))))
        patience = HASTE if self.gap else PATIENCE
        idle, before, seed = 0, self.cost, -1
        for seed in range(rounds):
            if idle == patience or self.stop():
                break
            better = around.improve(self._flat_labels(), self.cost - self.graph.constant, seed)
            last = self.cost
            if better is not None:
                self.adopt(better)
            idle = 0 if self.cost < last else idle + 1
            self.progress(f"neighbourhood {seed + 1}/{rounds}: {self._state()}")
        self.steps.append(f"{seed + 1} neighbourhoods: {before:.10g} to {self.cost:.10g}")

    def _flat_labels(self) -> Ids:
        """The best labelling as one of the flat problem, which it was found in."""
        assert self.labels is not None
        labels = [int(np.searchsorted(self.graph.labels[v], self.labels[v])) for v in self.order]
        return np.array(labels, dtype=np.int64)

    def _branch(self) -> None:
        """Branch and bound on what is left."""
        if not self._reduce():
            return
        constant = self.graph.constant
        known = self.cost if self.cost < np.inf else self.bound
        looks, most, presolve = SOON if self.gap else LOOKS, self._cutoff() - constant, not self.gap
        found = branch(self.flat, known - constant, self.whole, looks, self.stop, most=most, presolve=presolve)
        if found.labels is not None:
            self.adopt(found.labels)
        # What was dropped costs more than the cutoff: it holds nothing better than the best known.
        self.bound = max(self.bound, min(found.bound + constant, self._proven()))
        self.steps.append(f"branch and bound: {len(self.flat.cost)} labels: {self._state()}")
        if self._closed():
            self.bound = self._proven()

    def adopt(self, labels: Ids) -> None:
        """Take a labelling of the flat problem if it is the best."""
        found = {v: int(self.graph.labels[v][x]) for v, x in zip(self.order, labels, strict=True)}
        for reduction in reversed(self.chain):
            reduction.invert(found)
        chosen = tuple(found[v] for v in range(len(self.problem.costs)))
        cost = self.problem.cost(chosen)
        if cost < self.cost and self.problem.fits(chosen):
            self.labels, self.cost = chosen, cost

    def _state(self) -> str:
        return f"bound {self.bound:.10g}, cost {self.cost:.10g}"

    def _cutoff(self) -> float:
        """What a better labelling costs at the most."""
        if self.cost == np.inf:
            return np.inf
        return self.cost - max(0.999 if self.whole else FINE * abs(self.cost), self.gap * abs(self.cost))

    def _proven(self) -> float:
        """The bound where no better labelling is left."""
        return self._cutoff() if self.gap else self.cost

    def _closed(self) -> bool:
        return bool(np.isfinite(self.cost)) and self.bound > self._cutoff()

    def _aim(self, bound: float) -> float:
        """The best known cost, or a little above the bound where that is far away."""
        if not np.isfinite(bound):
            return bound
        scale = float(self.flat.cost[self.flat.cost < self.flat.big].mean()) if abs(bound) < 1e-300 else abs(bound)
        return min(self.cost - self.graph.constant, bound + AIM * scale)
