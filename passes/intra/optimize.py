"""The cheapest way to run one stage: tie what repeats, solve, untie.

A graph of more than `SMALL` nodes of which at most `SHARE` differ from all others is solved tied (`tying.py`),
others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.solve import solve
from alpa_mlir.passes.intra.tying import Tying

SMALL = 1000
SHARE = 0.5


@dataclass(frozen=True)
class Optimum:
    """The label of every node of a graph, its seconds per step, its peak bytes per device, and how it was found."""

    labels: tuple[int, ...]
    cost: float
    peak: float
    steps: tuple[str, ...]


def optimum(graph: StageGraph, limit: float, solver: str) -> Optimum:
    """The cheapest labelling within `limit` bytes per device; DoesNotFit where there is none."""
    least = float(graph.least_usage().max(initial=0.0))
    if least > limit * (1 + 1e-9):
        raise DoesNotFit(f"memory too small: at least {least:.0f} bytes per device are needed, {limit:.0f} given")
    tying = Tying.of(graph)
    if len(graph.nodes) <= SMALL or tying.classes > SHARE * len(graph.nodes):
        solution = solve(graph.problem(limit), solver)
        labels, steps = solution.labels, solution.steps
    else:
        solution = solve(tying.apply(limit), solver)
        labels, steps = tying.invert(solution.labels), (f"tied: {tying.size()}", *solution.steps)
    return Optimum(labels, solution.cost, float(graph.usage(labels).max(initial=0.0)), steps)
