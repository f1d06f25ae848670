"""The solver chain against brute force: every reduction and the program itself keep the optimum."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import sparse

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.intra import live_sets, milp
from alpa_mlir.passes.intra.bounds import FixByBound
from alpa_mlir.passes.intra.milp import ECOS_LIMIT, solve_program
from alpa_mlir.passes.intra.problem import Problem
from alpa_mlir.passes.intra.reductions import Eliminate, Prune, WorkingGraph
from alpa_mlir.passes.intra.solve import solve, undominated_rows


def random_problem(seed: int, memory: bool) -> Problem:
    """Up to seven nodes of up to four labels, dense or sparse, integral costs in half of the cases (ties)."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    sizes = rng.integers(1, 5, n)
    draw = (lambda *s: rng.integers(0, 4, s).astype(float)) if seed % 2 else (lambda *s: rng.random(s))
    density = rng.uniform(0.3, 1.0)
    edges = {(u, v): draw(sizes[u], sizes[v]) for u in range(n) for v in range(u + 1, n) if rng.random() < density}
    costs = tuple(draw(k) for k in sizes)
    if not memory:
        return Problem(costs, edges)
    held = tuple(rng.integers(1, 9, k).astype(float) for k in sizes)
    rows = sparse.csr_matrix(rng.integers(0, 2, (int(rng.integers(1, 4)), n)).astype(float))
    least = float((rows @ np.array([b.min() for b in held])).max())
    most = float((rows @ np.array([b.max() for b in held])).max())
    return Problem(costs, edges, held, rows, least + rng.uniform(0.0, 0.6) * (most - least))


def brute_force(problem: Problem) -> float:
    """The least cost over all labellings that fit."""
    best = float("inf")
    for labels in product(*(range(len(c)) for c in problem.costs)):
        if problem.fits(labels):
            best = min(best, problem.cost(labels))
    return best


@pytest.mark.parametrize("block", range(8))
def test_chain_equals_brute_force(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        problem = random_problem(seed, memory=False)
        found = solve(problem)
        assert found.cost == pytest.approx(brute_force(problem), rel=1e-9, abs=1e-9), seed
        assert problem.cost(found.labels) == pytest.approx(found.cost)


@pytest.mark.parametrize("block", range(6))
def test_chain_equals_brute_force_with_memory_rows(block: int) -> None:
    for seed in range(1000 + block * 15, 1015 + block * 15):
        problem = random_problem(seed, memory=True)
        found = solve(problem)
        assert problem.fits(found.labels), seed
        assert found.cost == pytest.approx(brute_force(problem), rel=1e-7, abs=1e-7), seed


def test_program_alone_equals_brute_force() -> None:
    for seed in range(500, 520):
        problem = random_problem(seed, memory=seed % 2 == 0)
        assert solve(problem, reduce=False).cost == pytest.approx(brute_force(problem), rel=1e-7, abs=1e-7), seed


def test_running_sums_equal_direct_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both encodings of the memory rows have the same optimum; the second is used where it is told to be."""
    monkeypatch.setattr(live_sets, "TIMES", 0)
    for seed in range(1000, 1040):
        problem = random_problem(seed, memory=True)
        if not problem.rows.nnz:
            continue
        count = sum(len(c) for c in problem.costs)
        assert live_sets.live_sets(problem, count, 0).columns == problem.rows.shape[0]
        assert live_sets.live_sets(problem, count).columns == 0
        monkeypatch.setattr(milp, "live_sets", lambda p, n: live_sets.live_sets(p, n, 0))
        found = solve_program(problem).labels
        assert problem.fits(found), seed
        assert problem.cost(found) == pytest.approx(brute_force(problem), abs=1e-9), seed


def test_each_reduction_keeps_the_optimum_and_inverts() -> None:
    for seed in range(700, 740):
        problem = random_problem(seed, memory=False)
        optimum = brute_force(problem)
        for reduction in (Eliminate(), Prune(), FixByBound()):
            graph = WorkingGraph(problem)
            reduction.apply(graph)
            rest = sorted(graph.costs)
            labels: dict[int, int] = {}
            if rest:
                place = {v: i for i, v in enumerate(rest)}
                edges = {(place[u], place[v]): m for u in rest for v, m in graph.around[u].items() if u < v}
                small = Problem(tuple(graph.costs[v] for v in rest), edges)
                best = min(product(*(range(len(c)) for c in small.costs)), key=small.cost)
                labels = {v: int(graph.labels[v][best[place[v]]]) for v in rest}
            reduction.invert(labels)
            cost = problem.cost([labels[v] for v in range(len(problem.costs))])
            assert cost == pytest.approx(optimum, rel=1e-9, abs=1e-9), (seed, type(reduction).__name__)


def test_ecos_bb_solves_small_programs_and_refuses_large_ones() -> None:
    problem = random_problem(3, memory=False)
    assert solve(problem, "ecos_bb", reduce=False).cost == pytest.approx(brute_force(problem), rel=1e-5, abs=1e-5)
    large = Problem(tuple(np.zeros(10) for _ in range(ECOS_LIMIT // 10 + 1)), {})
    with pytest.raises(CompileError, match="teaching-size"):
        solve_program(large, "ecos_bb")


def test_unknown_solver_lists_the_known_ones() -> None:
    with pytest.raises(CompileError, match="HIGHS"):
        solve(random_problem(0, memory=False), "gurobee")


def test_memory_below_the_least_is_an_error_with_the_least() -> None:
    held = (np.array([4.0, 8.0]), np.array([3.0, 6.0]))
    problem = Problem((np.zeros(2), np.zeros(2)), {}, held, sparse.csr_matrix(np.ones((1, 2))), 6.0)
    with pytest.raises(CompileError, match="at least 7 bytes"):
        solve(problem)


def test_infinite_pairs_are_never_chosen() -> None:
    inf = float("inf")
    problem = Problem((np.array([0.0, 5.0]), np.array([0.0, 5.0])), {(0, 1): np.array([[inf, 1.0], [1.0, inf]])})
    assert solve(problem).cost == solve(problem, reduce=False).cost == 6.0


def test_dominated_rows_go() -> None:
    rows = sparse.csr_matrix(np.array([[1.0, 0, 1], [1, 1, 1], [1, 1, 1], [0, 2, 0]]))
    assert undominated_rows(rows).toarray().tolist() == [[1, 1, 1], [0, 2, 0]]


def test_dear_labels_do_not_blur_the_optimum() -> None:
    for seed in range(20):
        problem = random_problem(2001 + 2 * seed, memory=True)
        dear = tuple(np.append(c, 1e11) for c in problem.costs)
        edges = {e: np.pad(m, ((0, 1), (0, 1)), constant_values=1e10) for e, m in problem.edges.items()}
        held = tuple(np.append(b, 1.0) for b in problem.bytes)
        blurred = Problem(dear, edges, held, problem.rows, problem.limit)
        assert solve(blurred, reduce=False).cost == brute_force(problem), seed
