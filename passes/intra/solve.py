"""The chain from a problem to its optimum: reduce, encode, solve, invert.

First without memory rows: if that optimum happens to fit, it is the optimum of the whole problem, for
leaving constraints out can only lower the cost. Only otherwise the rows come in, and with them the
restriction that nodes which a row counts are not eliminated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse

from alpa_mlir.passes.intra.bounds import FixByBound
from alpa_mlir.passes.intra.milp import check_solver, solve_program
from alpa_mlir.passes.intra.problem import (
    TOLERANCE,
    DoesNotFit,
    Problem,
    Progress,
    Remaining,
    Solution,
    Stop,
    endless,
    never,
    quiet,
)
from alpa_mlir.passes.intra.reductions import Eliminate, Prune, Reduction, WorkingGraph, components

ROUNDS = 8
LARGE = 20_000
"""Entries of edge tables up to which branch and bound is tried at once."""
TIGHT = 2_000
"""The same where there are memory rows and a gap is allowed: branch and bound may take long over the last per mille."""


def solve(
    problem: Problem,
    solver: str = "highs",
    *,
    engine: str = "auto",
    reduce: bool = True,
    progress: Progress = quiet,
    stop: Stop = never,
    remaining: Remaining = endless,
    start: Sequence[int] = (),
    gap: float = 0.0,
) -> Solution:
    """A labelling within memory, and how far at most it is from the best one.

    `engine` highs: optimal, by the chain above; search: by the second engine (`search.py`), which says in `bound` what
    is proven, begins with `start` and ends within `gap` of the bound; auto: the second engine where the problem is
    large. `stop` ends the second engine, HiGHS ends where nothing is `remaining`. DoesNotFit where memory cannot be
    kept, CompileError where the solver fails.
    """
    check_solver(solver)
    least = float(problem.least_usage().max(initial=0.0))
    if least > problem.limit * (1 + TOLERANCE):
        raise DoesNotFit(
            f"memory too small: at least {least:.0f} bytes per device are needed, {problem.limit:.0f} given"
        )
    entries = sum(m.size for m in problem.edges.values())
    large = entries > (TIGHT if gap and problem.runs.rows else LARGE)
    if engine == "search" or (engine == "auto" and large and solver == "highs"):
        return _searched(problem, progress, stop, start, gap)
    free = replace(problem, rows=sparse.csr_matrix((0, len(problem.costs))), spans=None, limit=float("inf"))
    relaxed = _solve_reduced(free, solver, reduce, remaining)
    if problem.fits(relaxed.labels):
        return relaxed
    bound = _binding_rows(problem)
    constrained = _solve_reduced(bound, solver, reduce, remaining)
    if not problem.fits(constrained.labels):
        # Solvers keep rows within some 1e-6 of the limit; the second engine counts bytes.
        return _searched(problem, progress, stop, start, gap)
    return replace(constrained, steps=(*relaxed.steps, f"memory binds: {bound.rows.shape[0]} rows", *constrained.steps))


def _searched(problem: Problem, progress: Progress, stop: Stop, start: Sequence[int], gap: float) -> Solution:
    from alpa_mlir.passes.intra.search import search

    return search(problem, progress, stop, start=start, gap=gap)


def _binding_rows(problem: Problem) -> Problem:
    """Only rows that some labelling breaks, and of rows counting the same nodes the largest."""
    possible = problem.largest_usage() > problem.limit
    spans = problem.runs.kept(possible)
    return replace(problem, rows=undominated_rows(spans.matrix()), spans=None)


def undominated_rows(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows without those that another row counts at least as much of every node (kept order, first of equals).

    Only neighbours within a window are compared, so that many rows cost little: a dominated row that
    stays is redundant, not wrong.
    """
    window = 64
    dense = rows.toarray()
    keep = np.ones(len(dense), dtype=bool)
    for r in range(len(dense)):
        first = max(0, r - window)
        near = dense[first : r + window]
        for o in np.flatnonzero((near >= dense[r]).all(axis=1)) + first:
            if o != r and keep[o] and (o < r or (dense[o] > dense[r]).any()):
                keep[r] = False
                break
    return sparse.csr_matrix(dense[keep])


def _solve_reduced(problem: Problem, solver: str, reduce: bool, remaining: Remaining) -> Solution:
    graph = WorkingGraph(problem)
    steps = [f"problem: {graph.size()}"]
    chain = _reduce(graph, problem.rows.shape[0] > 0, steps) if reduce else []
    labels: dict[int, int] = {}
    proven = graph.constant
    groups = [sorted(graph.costs)] if problem.rows.shape[0] else components(graph)
    for group in groups:
        if group:
            found, bound = _solve_group(problem, graph, group, solver, steps, remaining)
            labels.update(found)
            proven += bound
    for reduction in reversed(chain):
        reduction.invert(labels)
    chosen = tuple(labels[v] for v in range(len(problem.costs)))
    cost = problem.cost(chosen)
    if not np.isfinite(cost):
        raise DoesNotFit("every choice of strategies holds a forbidden one")
    return Solution(chosen, cost, tuple(steps), min(proven, cost))


def _reduce(graph: WorkingGraph, memory: bool, steps: list[str]) -> list[Reduction]:
    """Eliminate and prune, then drop labels by bound, as long as that makes more possible."""
    chain: list[Reduction] = []
    upper = float("inf")
    for _ in range(ROUNDS):
        for reduction in (Eliminate(), Prune(), Eliminate()):
            count = reduction.apply(graph)
            chain.append(reduction)
            if count:
                steps.append(f"{type(reduction).__name__.lower()}: {count} gone: {graph.size()}")
        if memory or not graph.costs:
            break
        bound = FixByBound(upper - graph.constant)
        labels = sum(len(c) for c in graph.costs.values())
        count = bound.apply(graph)
        upper = min(upper, bound.upper + graph.constant)
        chain.append(bound)
        steps.append(
            f"fix by bound: {count} of {labels} labels gone, gap {bound.upper - bound.lower:.3g} of {upper:.3g}"
        )
        if not bound.closed and count < labels // 20:
            break
    return chain


def _solve_group(
    problem: Problem,
    graph: WorkingGraph,
    group: list[int],
    solver: str,
    steps: list[str],
    remaining: Remaining,
) -> tuple[dict[int, int], float]:
    place = {v: i for i, v in enumerate(group)}
    inf = float("inf")
    edges = {
        (place[u], place[v]): np.where(m < graph.forbidden, m, inf)
        for u in group
        for v, m in sorted(graph.around[u].items())
        if u < v
    }
    costs = tuple(graph.costs[v] for v in group)
    if problem.rows.shape[0]:
        held = tuple(
            problem.bytes[v][graph.labels[v]] if v in graph.bytes else np.zeros(len(graph.labels[v])) for v in group
        )
        fixed = np.zeros(len(problem.costs))
        fixed[list(graph.fixed)] = list(graph.fixed.values())
        smaller = Problem(costs, edges, held, problem.rows[:, group], problem.limit, base=problem.rows @ fixed)
    else:
        smaller = Problem(costs, edges)
    answer = solve_program(smaller, solver, remaining)
    steps.append(answer.line)
    return {v: int(graph.labels[v][answer.labels[place[v]]]) for v in group}, answer.bound
