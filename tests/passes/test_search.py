"""The second engine against brute force: what it proves is true, what it finds fits, and every run finds the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from alpa_mlir.passes.intra import neighbourhoods
from alpa_mlir.passes.intra.branch import Branched, branch
from alpa_mlir.passes.intra.flat import Flat, flatten
from alpa_mlir.passes.intra.neighbourhoods import Neighbourhoods
from alpa_mlir.passes.intra.prices import Prices, marginals, usage_of
from alpa_mlir.passes.intra.problem import DoesNotFit, Problem
from alpa_mlir.passes.intra.reductions import Eliminate, Prune, WorkingGraph
from alpa_mlir.passes.intra.search import search
from alpa_mlir.passes.intra.spans import Spans
from tests.passes.test_milp import brute_force, random_problem


def intervals_problem(seed: int) -> Problem:
    """Up to seven nodes alive at ranges of time, with forbidden pairs; some have no labelling that fits."""
    rng = np.random.default_rng(seed)
    problem = random_problem(seed, memory=False)
    n = len(problem.costs)
    start = rng.integers(0, 6, n)
    spans = Spans.of_intervals(np.column_stack([start, start + rng.integers(0, 5, n)]))
    held = tuple(rng.integers(1, 9, len(c)).astype(float) for c in problem.costs)
    edges = {e: np.where(rng.random(m.shape) < 0.1, np.inf, m) for e, m in problem.edges.items()}
    made = replace(problem, edges=edges, bytes=held, spans=spans)
    least = made.least_usage().max(initial=0.0)
    return replace(made, limit=float(least + rng.integers(-1, 6)))


MAKERS: dict[str, Callable[[int], Problem]] = {
    "rows": lambda seed: random_problem(seed, memory=True),
    "intervals": intervals_problem,
}


def check(problem: Problem, seed: int, **settings: int) -> bool:
    """Whether the optimum was found; bound, fit and cost must hold in any case."""
    best = brute_force(problem)
    try:
        found = search(problem, **settings)
    except DoesNotFit as e:
        assert best == np.inf or "not known" in e.message, seed
        return best == np.inf
    assert problem.fits(found.labels), seed
    assert problem.cost(found.labels) == pytest.approx(found.cost, abs=1e-9), seed
    assert found.bound <= best + 1e-9 * (1 + abs(best)), seed
    assert found.cost >= best - 1e-9, seed
    assert not found.optimal or found.cost == pytest.approx(best, rel=1e-6), seed
    return found.cost <= best + 1e-9


@pytest.mark.parametrize("memory", ["rows", "intervals"])
def test_search_against_brute_force(memory: str) -> None:
    make = MAKERS[memory]
    assert all([check(make(seed), seed) for seed in range(120)])


@pytest.mark.parametrize("memory", ["rows", "intervals"])
def test_search_without_branch_and_bound_against_brute_force(memory: str) -> None:
    found = [check(MAKERS[memory](seed), seed, small=0, neighbourhoods=0) for seed in range(200, 300)]
    assert sum(found) >= 90


def test_nothing_fits_is_said() -> None:
    held = (np.array([3.0, 4.0]), np.array([4.0, 5.0]))
    problem = Problem((np.zeros(2), np.zeros(2)), {}, held, sparse.csr_matrix(np.ones((1, 2))), 6.0)
    with pytest.raises(DoesNotFit, match="keeps within memory"):
        search(problem)


def large_problem(seed: int, nodes: int = 36) -> Problem:
    """A chain with skips whose values live for a while, within memory that binds."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, nodes)
    pairs = [(v, v + d) for v in range(nodes) for d in (1, 3) if v + d < nodes]
    edges = {(u, v): rng.integers(0, 100, (sizes[u], sizes[v])).astype(float) for u, v in pairs}
    costs = tuple(rng.integers(0, 100, k).astype(float) for k in sizes)
    held = tuple(rng.integers(1, 50, k).astype(float) for k in sizes)
    start = np.arange(nodes)
    spans = Spans.of_intervals(np.column_stack([start, start + rng.integers(1, 15, nodes)]))
    problem = Problem(costs, edges, held, spans=spans)
    return replace(problem, limit=float(problem.least_usage().max() * 1.2))


def flat_of(problem: Problem) -> Flat:
    graph = WorkingGraph(problem)
    for reduction in (Eliminate(), Prune()):
        reduction.apply(graph)
    return flatten(graph, problem.runs, problem.limit)[1]


def test_two_runs_find_the_same() -> None:
    first, second = (search(large_problem(3), small=0, neighbourhoods=2) for _ in range(2))
    assert (first.labels, first.bound, first.steps) == (second.labels, second.bound, second.steps)


def test_the_marginals_are_the_derivative_of_the_bound() -> None:
    flat = flat_of(large_problem(4))
    prices = Prices(flat)
    for _ in range(30):
        prices.round(1e4)
    parts = marginals(flat, prices.messages, prices.thetas)
    assert np.allclose(np.add.reduceat(parts, flat.start[:-1]), 1.0)
    assert parts.min() >= 0.0


@pytest.mark.parametrize("seed", range(3))
def test_the_ascent_does_not_step_far_where_usage_swings_about_the_room(seed: int) -> None:
    """Many values alike, each dear or large: at low prices all are too large, at high ones none is."""
    rng = np.random.default_rng(seed)
    costs = tuple(np.sort(rng.random(3)) for _ in range(150))
    held = tuple(np.array([4.0, 2.0, 1.0]) * rng.uniform(0.5, 2) for _ in costs)
    born = rng.integers(0, 20, len(costs))
    spans = Spans.of_intervals(np.column_stack([born, born + rng.integers(15, 20, len(costs))]))
    problem = Problem(costs, {}, held, spans=spans)
    least, most = (usage.max() for usage in (problem.least_usage(), problem.largest_usage()))
    prices = Prices(flat_of(replace(problem, limit=float(least + 0.3 * (most - least)))), careful=True)
    bounds = []
    for _ in range(300):
        prices.round(sum(float(c.max()) for c in costs))
        bounds.append(prices.bound)
    assert bounds[30] > 0.98 * bounds[-1] and bounds[-1] > 1.5 * bounds[0]


def test_implied_rows_go_and_the_rest_implies_them() -> None:
    problem = large_problem(5)
    flat, rng = flat_of(problem), np.random.default_rng(0)
    assert 0 < len(flat.room) < problem.runs.rows
    graph = WorkingGraph(problem)
    order, whole = flatten(graph, problem.runs, problem.limit)
    for _ in range(200):
        labels = [int(rng.integers(len(problem.costs[v]))) for v in order]
        parts = np.zeros(len(whole.cost))
        parts[whole.start[:-1] + np.array(labels)] = 1.0
        assert (usage_of(whole, parts) <= whole.room).all() == problem.fits(labels)


def test_runs_and_rows_are_the_same() -> None:
    rng = np.random.default_rng(1)
    rows = sparse.csr_matrix(rng.integers(0, 3, (9, 7)).astype(float))
    spans = Spans.of_rows(rows)
    held = rng.random(7)
    assert np.allclose(spans.usage(held), rows @ held)
    assert (spans.matrix() != rows).nnz == 0
    keep = rng.random(9) < 0.5
    assert np.allclose(spans.kept(keep).usage(held), rows[keep] @ held)


def test_a_neighbourhood_never_makes_it_worse() -> None:
    problem = large_problem(6)
    graph = WorkingGraph(problem)
    order, flat = flatten(graph, problem.runs, problem.limit)
    around = Neighbourhoods(graph, order, flat, problem.runs, problem.limit, whole=True)
    labels = np.array([int(np.argmin(h)) for h in problem.bytes])
    costs = [problem.cost(labels.tolist())]
    for seed in range(3):
        better = around.improve(labels, costs[-1], seed)
        if better is not None:
            assert problem.fits(better.tolist())
            costs.append(problem.cost(better.tolist()))
            labels = better
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("gap", [0.0, 0.002])
def test_neighbourhoods_are_small_where_a_gap_is_allowed(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear program of a large one takes as long as ten searches."""
    asked: list[int] = []

    def branched(flat: Flat, *rest: object) -> Branched:
        asked.append(int((flat.entries < flat.big).sum()) // 2)
        return Branched(None, -np.inf)

    monkeypatch.setattr(neighbourhoods, "branch", branched)
    monkeypatch.setattr("alpa_mlir.passes.intra.search.FEW", 500)
    search(large_problem(3), small=0, neighbourhoods=8, gap=gap)
    assert (max(asked, default=0) > 500) == (gap == 0)


@pytest.mark.parametrize("gap", [0.0, 1e-6])
def test_what_is_left_is_branched_on_only_where_it_is_small_for_a_gap(
    gap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpa_mlir.passes.intra.search.SMALLER", 0)
    steps = "\n".join(search(large_problem(3), neighbourhoods=0, gap=gap).steps)
    assert ("branch and bound" in steps) == (gap == 0)


def test_branch_and_bound_looks_below_a_cost_only() -> None:
    problem = next(p for p in map(intervals_problem, range(100)) if np.isfinite(brute_force(p)))
    flat, best = flat_of(problem), brute_force(problem)
    constant = best - branch(flat, best, False, 1000).bound
    for presolve in (True, False):
        within = branch(flat, best, False, 1000, most=best - constant + 0.1, presolve=presolve)
        assert within.bound == pytest.approx(best - constant)
        below = branch(flat, best, False, 1000, most=best - constant - 0.1, presolve=presolve)
        assert below.bound >= best - constant - 0.1


def test_a_gap_is_allowed_and_said() -> None:
    """With a gap the search may begin with a labelling and end early, and its bound stays one."""
    for seed in range(60):
        problem = random_problem(seed, memory=False)
        best = brute_force(problem)
        first = tuple(0 for _ in problem.costs)
        found = search(problem, start=first, gap=0.2)
        assert found.bound <= best + 1e-9 * (1 + abs(best)), seed
        assert best - 1e-9 <= found.cost <= min(problem.cost(first), max(best, found.bound / 0.8)) + 1e-9, seed
