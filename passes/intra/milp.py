"""The choice as a mixed-integer linear program in CVXPY.

Per node v a one-hot vector s_v; per edge a non-negative table e_uv with marginals

    Σ_j e_uv[i, j] = s_u[i],   Σ_i e_uv[i, j] = s_v[j],   Σ_i s_v[i] = 1,   Σ_v A[r, v] m_v·s_v ≤ limit

so that only s needs to be integral (e follows). Without binding memory this relaxation is integral on
transformer graphs, so the linear program is solved first and branch and bound only called where it left
fractions. All variables stand in one vector and all constraints in two sparse matrices: CVXPY then
canonicalises in a fraction of a second. Forbidden pairs (infinite cost) get no variable.
CVXPY takes over a second to import, so only the functions that solve do.
Deterministic: one thread, fixed seed, and a bias towards low label numbers far below any real cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import sparse

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.costs.communication import Ids
from alpa_mlir.passes.intra.live_sets import live_sets
from alpa_mlir.passes.intra.problem import Array, DoesNotFit, Problem, Remaining, endless

BIAS = 1e-9
ECOS_LIMIT = 300
USER_LIMIT = "user_limit"
"""CVXPY's status of a program whose solver was stopped by a limit."""
COARSE = 100.0
"""Costs this many times the optimum make the solver's tolerances too coarse: it is asked again without them."""
SETTINGS: dict[str, dict[str, object]] = {
    "HIGHS": {"highs_options": {"threads": 1, "random_seed": 1, "mip_rel_gap": 1e-9, "output_flag": False}},
    "ECOS_BB": {"mi_max_iters": 100_000, "mi_abs_eps": 1e-9, "mi_rel_eps": 1e-9},
}


@dataclass(frozen=True, eq=False)
class Encoding:
    """The program `min c·x, marginals·x = targets, memory·x ≤ room`, x ≥ 0, the first `count` entries binary."""

    cost: Array
    marginals: sparse.csr_matrix
    targets: Array
    memory: sparse.csr_matrix
    room: Array
    count: int
    starts: tuple[int, ...]
    scale: float


def encode(problem: Problem) -> Encoding:
    """Columns: s of all nodes, e of all finite label pairs of all edges, then bytes of live sets (`live_sets.py`).

    Costs are scaled to about one.
    """
    starts = np.concatenate([[0], np.cumsum([len(c) for c in problem.costs])]).astype(int)
    count = int(starts[-1])
    builder = _Rows()
    for v, cost in enumerate(problem.costs):
        builder.row(np.arange(starts[v], starts[v] + len(cost)), 1.0)
    costs = [*problem.costs]
    column = count
    for (u, v), matrix in sorted(problem.edges.items()):
        rows, columns = np.nonzero(np.isfinite(matrix))
        numbers = column + np.arange(len(rows))
        builder.marginal(numbers, rows, starts[u], matrix.shape[0])
        builder.marginal(numbers, columns, starts[v], matrix.shape[1])
        costs.append(matrix[rows, columns])
        column += len(rows)
    live = live_sets(problem, count)
    marginals, targets = builder.build(column + live.columns)
    ties, memory = (_wider(m, count, column - count) for m in (live.ties, live.rows))
    marginals = sparse.vstack([marginals, ties]).tocsr()
    targets = np.concatenate([targets, np.zeros(ties.shape[0])])
    cost = np.concatenate([*costs, np.zeros(live.columns)])
    scale = float(np.abs(cost).max(initial=0.0)) or 1.0
    bias = np.concatenate([np.arange(len(c)) for c in problem.costs]) if count else np.zeros(0)
    scaled = cost / scale
    scaled[:count] += BIAS * bias / max(1, count)
    return Encoding(scaled, marginals, targets, memory, live.room, count, tuple(int(s) for s in starts), scale)


def _wider(matrix: sparse.csr_matrix, count: int, pairs: int) -> sparse.csr_matrix:
    """A matrix over s and live sets with empty columns for the pairs in between."""
    empty = sparse.csr_matrix((matrix.shape[0], pairs))
    return sparse.hstack([matrix[:, :count], empty, matrix[:, count:]]).tocsr()


class _Rows:
    """Sparse equality rows collected as triplets."""

    def __init__(self) -> None:
        self.parts: list[tuple[Ids, Ids, Array]] = []
        self.targets: list[Array] = []
        self.rows = 0

    def row(self, columns: Ids, target: float) -> None:
        """Σ x[columns] = target."""
        self.parts.append((np.full(len(columns), self.rows), columns, np.ones(len(columns))))
        self.targets.append(np.array([target]))
        self.rows += 1

    def marginal(self, columns: Ids, labels: Ids, start: int, size: int) -> None:
        """Σ of the pairs with each label − s[label] = 0."""
        self.parts.append((self.rows + labels, columns, np.ones(len(columns))))
        self.parts.append((self.rows + np.arange(size), start + np.arange(size), -np.ones(size)))
        self.targets.append(np.zeros(size))
        self.rows += size

    def build(self, columns: int) -> tuple[sparse.csr_matrix, Array]:
        """The matrix and the right-hand side."""
        rows, where, values = (np.concatenate(p) for p in zip(*self.parts, strict=True))
        return sparse.csr_matrix((values, (rows, where)), shape=(self.rows, columns)), np.concatenate(self.targets)


class Answer(NamedTuple):
    """Optimal labels, a line about how they were found, and the bound that the solver proved on all labellings."""

    labels: tuple[int, ...]
    line: str
    bound: float


def solve_program(problem: Problem, solver: str = "highs", remaining: Remaining = endless) -> Answer:
    """Optimal labels, as the solver sees it; the best that HiGHS has found where no time is left.

    CompileError where the solver is unknown or gives up, DoesNotFit where no labelling keeps within memory.
    """
    name = check_solver(solver)
    answer = _solve_once(problem, name, remaining)
    cost = problem.cost(answer.labels)
    if name == "HIGHS" and 0 < cost < np.inf and _largest(problem) > COARSE * cost and remaining() > 0:
        return _solve_once(_without_dear(problem, cost), name, remaining)
    return answer


def _largest(problem: Problem) -> float:
    tables = (*problem.costs, *problem.edges.values())
    return max((float(np.max(t, where=np.isfinite(t), initial=0.0)) for t in tables), default=0.0)


def _without_dear(problem: Problem, cost: float) -> Problem:
    """The same without what alone costs more than a known labelling: tolerances are parts of the largest cost."""
    edges = {e: np.where(m <= cost * (1 + 1e-9), m, np.inf) for e, m in problem.edges.items()}
    return replace(problem, costs=tuple(np.minimum(c, 2 * cost) for c in problem.costs), edges=edges)


def _solve_once(problem: Problem, name: str, remaining: Remaining) -> Answer:
    encoding = encode(problem)
    if name == "ECOS_BB" and encoding.count > ECOS_LIMIT:
        raise CompileError(
            f"ECOS_BB is a teaching-size solver: this program has {encoding.count} binary variables, it takes "
            f"{ECOS_LIMIT}; use solver=highs"
        )
    text = f"{encoding.count} binaries, {len(encoding.cost)} variables, {encoding.marginals.shape[0]} rows"
    if name == "HIGHS":
        values, bound = _solve(encoding, name, remaining(), integral=False)
        if np.abs(values - np.round(values)).max(initial=0.0) < 1e-6:
            return Answer(_labels(encoding, values), f"linear program: {text}: integral", bound)
    values, bound = _solve(encoding, name, remaining(), integral=True)
    return Answer(_labels(encoding, values), f"mixed-integer program: {text}", bound)


def check_solver(solver: str) -> str:
    """The CVXPY name of a mixed-integer solver; CompileError with the installed ones otherwise."""
    name = solver.upper()
    if name == "HIGHS":
        return name  # CVXPY installs it
    import cvxpy
    from cvxpy.reductions.solvers.defines import MI_SOLVERS

    known = [s for s in cvxpy.installed_solvers() if s in MI_SOLVERS]
    if name not in known:
        raise CompileError(f"unknown solver {solver!r}: the mixed-integer solvers here are {', '.join(sorted(known))}")
    return name


def _solve(encoding: Encoding, name: str, seconds: float, *, integral: bool) -> tuple[Array, float]:
    """Values of the s columns, and a bound on the cost; HiGHS ends after these seconds."""
    import cvxpy

    rest = len(encoding.cost) - encoding.count
    chosen = cvxpy.Variable(encoding.count, boolean=True) if integral else cvxpy.Variable(encoding.count)
    x = cvxpy.hstack([chosen, cvxpy.Variable(rest)]) if rest else chosen
    constraints = [encoding.marginals @ x == encoding.targets, x >= 0]
    if encoding.memory.shape[0]:
        constraints.append(encoding.memory @ x <= encoding.room)
    program = cvxpy.Problem(cvxpy.Minimize(encoding.cost @ x), constraints)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")  # the status says so too
            program.solve(solver=name, **_settings(name, seconds))
    except cvxpy.error.SolverError as e:
        raise CompileError(f"the solver {name} gave up: {e}") from None
    if program.status == cvxpy.INFEASIBLE:
        raise DoesNotFit("no choice of strategies keeps within memory")
    if program.status == USER_LIMIT and not (integral and _is_choice(encoding, chosen.value)):
        raise CompileError(f"{name} had found no choice when the time was up: engine search finds some sooner")
    if program.status not in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE, USER_LIMIT) or chosen.value is None:
        raise CompileError(f"the solver {name} ended with status {program.status}")
    proven = float(program.value)
    if integral and name == "HIGHS":
        proven = min(proven, float(program.solver_stats.extra_stats.mip_dual_bound))
    return np.asarray(chosen.value), proven * encoding.scale


def _settings(name: str, seconds: float) -> dict[str, object]:
    settings = dict(SETTINGS.get(name, {}))
    if name == "HIGHS" and seconds < float("inf"):
        options = settings["highs_options"]
        assert isinstance(options, dict)
        settings["highs_options"] = {**options, "time_limit": max(0.0, seconds)}
    return settings


def _is_choice(encoding: Encoding, values: Array | None) -> bool:
    """Whether these values of the s columns pick one label of each node."""
    if values is None or len(values) != encoding.count or np.abs(values - np.round(values)).max(initial=0.0) > 1e-6:
        return False
    return bool((np.round(np.add.reduceat(values, encoding.starts[:-1])) == 1).all())


def _labels(encoding: Encoding, values: Array) -> tuple[int, ...]:
    pairs: Sequence[tuple[int, int]] = list(zip(encoding.starts, encoding.starts[1:], strict=False))
    return tuple(int(np.argmax(values[a:b])) for a, b in pairs)
