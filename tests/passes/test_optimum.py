"""The optimum of a stage within memory: compared with all labellings, with few moments counted and with all."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context
from alpa_mlir.passes.costs.memory import Lifetime, Moments
from alpa_mlir.passes.intra import optimize
from alpa_mlir.passes.intra.graph import Node, StageGraph
from alpa_mlir.passes.intra.optimize import optimum
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.program import Source
from alpa_mlir.passes.memo import remembering_meanwhile
from tests.passes.small_programs import PROGRAMS, normalized
from tests.passes.test_tying import graph_of

LABELS = 3


def random_graph(seed: int, nodes: int = 7) -> StageGraph:
    """A graph of a few nodes with lifetimes in two functions; what costs less holds more, as a rule."""
    random = np.random.default_rng(seed)
    made = []
    for v in range(nodes):
        held = random.integers(1, 40, LABELS).astype(float)
        seconds = 40 - held + random.integers(0, 20, LABELS)
        choices = SimpleNamespace(seconds=seconds, held=held, least_held=held.min())
        made.append(Node(choices, 1, Source(v, 0), "microbatch"))
    pairs = [(u, v) for v in range(nodes) for u in range(v) if random.random() < 0.4]
    tables = [random.integers(0, 15, (LABELS, LABELS)).astype(float) for _ in pairs]
    lifetimes = []
    for v in range(1, nodes):
        first = int(random.integers(0, 20))
        function = ("microbatch", "update")[v % 2]
        lifetimes.append(Lifetime(v, function, first, first + int(random.integers(0, 8)), int(random.integers(0, 2))))
    content = f"random graph {seed}"
    enumerator = SimpleNamespace(edge_seconds=lambda k: tables[k], content=content)
    sketch = SimpleNamespace(unlimited=content, content=content)
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    moments = Moments.of(nodes, [0], lifetimes)
    return StageGraph(tuple(made), ends, np.arange(len(pairs)), moments, {}, {}, {}, {}, {}, enumerator, sketch)


class Labellings:
    """The most bytes that each labelling of a graph holds, and its cost."""

    def __init__(self, graph: StageGraph) -> None:
        problem, every = graph.problem(), list(product(range(LABELS), repeat=len(graph.nodes)))
        self.peaks = np.array([graph.usage(x).max() for x in every])
        self.costs = np.array([problem.cost(x) for x in every])

    def cheapest(self, limit: float) -> float:
        """The cost of the best of those that fit; infinite where none does."""
        return float(self.costs[self.peaks <= limit].min(initial=np.inf))


def limits(graph: StageGraph) -> list[float]:
    """From what no labelling keeps to what the cheapest needs."""
    least = float(graph.least_usage().max())
    free = optimum(graph, float("inf"), "highs").peak
    return [least + part * (free - least) for part in (-0.01, 0.0, 0.1, 0.3, 0.6, 0.9, 1.0)]


@pytest.mark.parametrize("begin", ["extremes", "nothing"])
@pytest.mark.parametrize("seed", range(12))
def test_no_labelling_that_fits_is_cheaper(seed: int, begin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no moment counts at first, so that all that matter have to be found."""
    if begin == "nothing":
        monkeypatch.setattr(optimize, "_extremes", lambda graph, free: ())
    graph = random_graph(seed)
    every = Labellings(graph)
    for limit in limits(graph):
        best = every.cheapest(limit)
        if best == float("inf"):
            with pytest.raises(DoesNotFit):
                optimum(graph, limit, "highs")
            continue
        found = optimum(graph, limit, "highs")
        assert found.cost == pytest.approx(best, rel=1e-6)
        assert graph.problem().cost(found.labels) == pytest.approx(found.cost, rel=1e-9)
        assert found.peak == graph.usage(found.labels).max() <= limit * (1 + 1e-9)
        assert found.bound <= best * (1 + 1e-9)


def test_all_moments_count_where_few_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "TURNS", 0)
    graph = random_graph(3)
    limit = limits(graph)[3]
    assert optimum(graph, limit, "highs").cost == pytest.approx(Labellings(graph).cheapest(limit), rel=1e-6)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_programs_keep_within_memory_above_their_bounds(name: str) -> None:
    graph = graph_of(normalized(name, make_context()), (2, 2))
    for limit in limits(graph)[1:-1:2]:
        found = optimum(graph, limit, "highs")
        assert found.bound <= found.cost == pytest.approx(graph.problem().cost(found.labels), rel=1e-9)
        assert found.peak == graph.usage(found.labels).max() <= limit * (1 + 1e-9)


def test_an_optimum_with_more_memory_is_one_with_less_where_it_keeps_within(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(5)
    wide = limits(graph)[4]
    with remembering_meanwhile():
        found = optimum(graph, wide, "highs")
        asked: list[float] = []
        solved = optimize._solved
        monkeypatch.setattr(optimize, "_solved", lambda g, limit, s: asked.append(limit) or solved(g, limit, s))
        assert optimum(graph, found.peak, "highs") == found
        assert not asked
        best = Labellings(graph).cheapest(found.peak - 1)
        assert optimum(graph, found.peak - 1, "highs").cost == pytest.approx(best, rel=1e-6)
        assert asked
