"""The memory rows of the mixed-integer program, in two encodings.

*Direct*: one inequality per live set over the labels of all that is alive. *Running sum*: one continuous column per
live set holds its bytes, tied to the one before by what is born and what dies between them,

    m[t] − m[t − 1] = Σ_v (A[t, v] − A[t − 1, v]) m_v·s_v,      m[t] ≤ room[t]

Long lives make the first large (up to live sets × values) and leave the second alone, but the second is a chain that
branch and bound takes longer over: an instance of 144 rows took 39 s instead of 6. So it is used where the direct
rows are many times larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from alpa_mlir.passes.intra.problem import Array, Problem

DIRECT = 2_000_000
"""Non-zeros up to which rows are always direct."""
TIMES = 4
"""How many times more non-zeros than the running sums they must otherwise have to be replaced."""


@dataclass(frozen=True, eq=False)
class LiveSets:
    """Rows over the s columns and `columns` more: equalities `ties·x = 0` and inequalities `rows·x ≤ room`."""

    ties: sparse.csr_matrix
    rows: sparse.csr_matrix
    room: Array
    columns: int


def live_sets(problem: Problem, count: int, most: int = DIRECT) -> LiveSets:
    """The memory rows of a problem with `count` labels in all, in units of the limit (bytes where that is none).

    Direct up to `most` non-zeros, or where running sums are not much smaller.
    """
    if not problem.rows.shape[0]:
        nothing = sparse.csr_matrix((0, count))
        return LiveSets(nothing, nothing, np.zeros(0), 0)
    base = problem.base if len(problem.base) else np.zeros(problem.rows.shape[0])
    room: Array = (problem.limit - base) / _unit(problem)
    change = sparse.csr_matrix(problem.rows - sparse.vstack([np.zeros((1, problem.rows.shape[1])), problem.rows[:-1]]))
    change.eliminate_zeros()
    labels = np.array([len(b) for b in problem.bytes])
    direct, running = (int(np.bincount(m.indices, minlength=len(labels)) @ labels) for m in (problem.rows, change))
    if direct <= most or direct <= TIMES * running:
        rows = _over_labels(problem.rows, problem)
        return LiveSets(sparse.csr_matrix((0, count)), rows, room, 0)
    times = problem.rows.shape[0]
    sums = sparse.eye_array(times, format="csr")
    steps = sparse.csr_matrix(sums - sparse.eye_array(times, k=-1, format="csr"))
    ties = sparse.hstack([_over_labels(change, problem), -steps]).tocsr()
    return LiveSets(ties, sparse.hstack([sparse.csr_matrix((times, count)), sums]).tocsr(), room, times)


def _unit(problem: Problem) -> float:
    return problem.limit or 1.0


def _over_labels(rows: sparse.csr_matrix, problem: Problem) -> sparse.csr_matrix:
    """Rows over values as rows over their labels, weighted with each label's bytes."""
    table, unit = rows.tocsc(), _unit(problem)
    return sparse.hstack(
        [sparse.csc_matrix(table[:, [v]]) @ sparse.csc_matrix(b[None, :] / unit) for v, b in enumerate(problem.bytes)]
    ).tocsr()
