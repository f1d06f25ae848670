"""The cheapest way to run one stage: eliminate chains, tie what repeats, solve, untie, and prove how good that is.

First without memory: if that optimum happens to fit, it is the optimum with memory too. Else memory is kept at a few
moments, and at more of them until the optimum of these keeps it at all. What is left after
elimination is solved tied (`tying.py`) where that makes it much smaller, else as it is. Tying may cost something:
layers that look alike may be best run in two alternating ways. So the cost is compared with a bound on every
labelling (`sweeps.py`). While it is more than `GAP` above, the labels that the sweeps round to are improved and
tried, then every second, every fourth of the equal layers are tied, and at last none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import DoesNotFit, Solution
from alpa_mlir.passes.intra.shared import SharedGraph
from alpa_mlir.passes.intra.solve import solve
from alpa_mlir.passes.intra.sweeps import Sweeps, flat_graph
from alpa_mlir.passes.intra.tying import Tying
from alpa_mlir.passes.memo import Arrays, digest, noted, remembered

SMALL = 150
"""Nodes up to which nothing is tied."""
SHARE = 0.5
"""Classes per node up to which tying is worth its loss."""
GAP = 2e-3
"""What a solution may cost above the bound, in parts of its cost, before more is tried."""
PERIODS = (1, 2, 4, 0)
"""Every p-th of the nodes that look alike is tied, for each p in turn until the gap is small; 0: none is."""
SWEEPS = 40
TURNS = 5
"""How often a few moments count, and more of them each time, before all do."""


@dataclass(frozen=True)
class Optimum:
    """The label of every node of a graph, its seconds per step, its peak bytes per device, and how it was found.

    No labelling within the memory limit costs less than `bound`.
    """

    labels: tuple[int, ...]
    cost: float
    bound: float
    peak: float
    steps: tuple[str, ...]

    @property
    def gap(self) -> float:
        """What may be left to gain, in parts of the cost."""
        return max(0.0, 1.0 - self.bound / self.cost) if self.cost > 0 else 0.0

    def arrays(self) -> Arrays:
        """As arrays, to be remembered."""
        figures = np.array([self.cost, self.bound, self.peak])
        return {"labels": np.array(self.labels, dtype=np.int64), "figures": figures, "steps": np.array(self.steps)}

    @staticmethod
    def of_arrays(arrays: Arrays) -> Optimum:
        """The inverse of `arrays`."""
        cost, bound, peak = arrays["figures"].tolist()
        return Optimum(tuple(arrays["labels"].tolist()), cost, bound, peak, tuple(arrays["steps"].tolist()))


def optimum(graph: StageGraph, limit: float, solver: str) -> Optimum:
    """The cheapest labelling within `limit` bytes per device; DoesNotFit where there is none.

    One that this planning found with more memory is it where it keeps within `limit`.
    """
    least = float(graph.least_usage().max(initial=0.0))
    if least > limit * (1 + 1e-9):
        raise DoesNotFit(f"memory too small: at least {least:.0f} bytes per device are needed, {limit:.0f} given")
    known: list[tuple[float, Optimum]] = noted(digest("optima", graph.content(), solver))
    for there, found in known:
        if limit <= there and found.peak <= limit * (1 + 1e-9):
            return found
    arrays = remembered(
        lambda: digest("optimum", graph.content(), limit, solver), lambda: _solved(graph, limit, solver).arrays()
    )
    known.append((limit, Optimum.of_arrays(arrays)))
    return known[-1][1]


def _solved(graph: StageGraph, limit: float, solver: str) -> Optimum:
    free = Optimum.of_arrays(
        remembered(
            lambda: digest("free", graph.sketch.unlimited, graph.enumerator.content, solver),
            lambda: _Free(graph, solver).run().arrays(),
        )
    )
    free = replace(free, peak=float(graph.usage(free.labels).max(initial=0.0)))
    if free.peak <= limit * (1 + 1e-9):
        return free
    return _within_memory(graph, limit, solver, free)


@dataclass
class _Best:
    """The cheapest labelling known of what is left of a graph."""

    labels: dict[int, int]
    cost: float = float("inf")

    def offer(self, labels: dict[int, int], cost: float) -> None:
        if cost < self.cost:
            self.labels, self.cost = labels, cost


class _Free:
    """The optimum without a memory limit."""

    def __init__(self, graph: StageGraph, solver: str) -> None:
        self.graph, self.solver = graph, solver
        self.shared = SharedGraph.of(graph)
        self.steps: list[str] = []
        self.best = _Best({})
        self.bound = 0.0

    def run(self) -> Optimum:
        self.shared.eliminate()
        self.steps.append(f"eliminate: {len(self.shared.removed)} of {len(self.graph.nodes)} nodes gone")
        sweeps: Sweeps | None = None
        for period in PERIODS:
            if self._solve(period):
                break
            if sweeps is None:
                sweeps = Sweeps(flat_graph(self.shared, self.shared.left))
                self._sweep(sweeps)
            if self.best.cost - self.bound <= GAP * self.best.cost:
                break
        labels = self.shared.invert(self.best.labels)
        peak = float(self.graph.usage(labels).max(initial=0.0))
        found = Optimum(labels, self.best.cost, self.bound, peak, ())
        line = f"cost {found.cost:.6g}, bound {found.bound:.6g}, gap {100 * found.gap:.2g} %"
        return replace(found, steps=(*self.steps, line))

    def _solve(self, period: int) -> bool:
        """Solve with every `period`-th of what looks alike tied or, where that gains little, untied: then True."""
        tying = Tying.of(self.shared, period=period)
        whole = not period or len(tying.nodes) <= SMALL or tying.classes > SHARE * len(tying.nodes)
        if whole:
            tying = Tying.none(self.shared)
        else:
            self.steps.append(f"tie{f' every {period}' if period > 1 else ''}: {tying.size()}")
        start = tying.restrict(self.best.labels) if self.best.labels else ()
        solution = solve(tying.apply(), self.solver, start=start, gap=GAP)
        self.steps += solution.steps
        cost = self.shared.constant + solution.cost
        self.best.offer(tying.invert(solution.labels), cost)
        if whole:
            self.bound = max(self.bound, self.shared.constant + solution.bound)
        return whole

    def _sweep(self, sweeps: Sweeps) -> None:
        """Raise the bound until it is close enough or stands still, then try what it rounds to."""
        count = 0
        while count < SWEEPS:
            count += 1
            last = self.bound
            self.bound = max(last, self.shared.constant + sweeps.round())
            if self.best.cost - self.bound <= GAP * self.best.cost or self.bound - last <= 1e-4 * self.bound:
                break
        self.steps.append(f"bound: {self.bound:.6g} after {count} sweeps")
        if self.best.cost - self.bound > GAP * self.best.cost:
            labels, cost = sweeps.improved()
            self.steps.append(f"round: {self.shared.constant + cost:.6g}")
            self.best.offer(dict(zip(self.shared.left, labels.tolist(), strict=True)), self.shared.constant + cost)


def _within_memory(graph: StageGraph, limit: float, solver: str, free: Optimum) -> Optimum:
    """The optimum where memory binds; the one without memory bounds it from below.

    There is a row for each moment, and their number grows with the layers, but a few of them decide: the fullest of
    some labellings. An optimum with these rows only that keeps within memory at all moments is one of the whole
    problem; else the moments at which it does not count as well.
    """
    moments, most = graph.moments, limit * (1 + 1e-9)
    chosen = {m for labels in _extremes(graph, free) for m in moments.fullest(graph.usage(labels))}
    for turn in range(TURNS + 1):
        counted = sorted(chosen) if turn < TURNS else None
        found = _with_moments(graph, limit, solver, free, counted)
        broken = set(moments.fullest(graph.usage(found.labels), most))
        if counted is None or broken <= chosen:
            break
        chosen |= broken
    return replace(found, steps=(*free.steps, *found.steps))


def _extremes(graph: StageGraph, free: Optimum) -> tuple[Sequence[int], ...]:
    """The labels that cost least, those that hold least, and those that hold most."""
    arrays = {id(h): (int(h.argmin()), int(h.argmax())) for h in graph.held}
    least, most = zip(*(arrays[id(h)] for h in graph.held), strict=True)
    return free.labels, least, most


def _with_moments(graph: StageGraph, limit: float, solver: str, free: Optimum, chosen: Sequence[int] | None) -> Optimum:
    """The optimum where memory has to be kept at the `chosen` moments (None: at all)."""
    shared, moments = SharedGraph.of(graph), graph.moments
    shared.eliminate(kept=moments.counted() if chosen is None else moments.counted_at(chosen))
    numbers: dict[int, int] = {}
    alike = [numbers.setdefault(id(held), len(numbers)) for held in graph.held]
    tying = Tying.of(shared, alike)
    whole = len(tying.nodes) <= SMALL or tying.classes > SHARE * len(tying.nodes)
    if whole:
        tying = Tying.none(shared)
    solution: Solution = solve(tying.apply(graph.held, moments, limit, chosen), solver, gap=GAP)
    labels = shared.invert(tying.invert(solution.labels))
    cost = shared.constant + solution.cost
    bound = max(free.bound, shared.constant + solution.bound) if whole else free.bound
    found = Optimum(labels, cost, min(bound, cost), float(graph.usage(labels).max(initial=0.0)), ())
    moment = "" if chosen is None else f" at {len(chosen)} moments"
    line = f"cost {found.cost:.6g}, bound {found.bound:.6g}, gap {100 * found.gap:.2g} %"
    return replace(found, steps=(f"memory binds{moment}: tie: {tying.size()}", *solution.steps, line))
