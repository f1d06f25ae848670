"""Branch and bound on what is left of a flat problem, with HiGHS: the same program as in `milp.py`, built from arrays.

The best known labelling is its start, and costs are scaled to it: forbidden pairs are gone by then, so that the numbers
of the program are of the size of its optimum and the solver's tolerances (1e-7) mean something.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import highspy
import numpy as np
from scipy import sparse

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.flat import Array, Flat
from alpa_mlir.passes.intra.problem import Stop, never

SCALE = 1e5
"""What the best known cost is in the program."""


class Program(NamedTuple):
    """min cost·x, lower ≤ rows·x ≤ upper, x ≥ 0, the first `labels` whole."""

    cost: Array
    rows: sparse.csr_matrix
    lower: Array
    upper: Array
    labels: int


def program(flat: Flat) -> Program:
    """One column per label and per pair of labels of an edge that is not forbidden."""
    sizes = np.diff(flat.start)
    labels = len(flat.cost)
    own = np.repeat(np.arange(flat.nodes), np.diff(flat.first))
    halves = np.flatnonzero(flat.other < own)
    low, high = flat.other[halves], own[halves]
    edge, place = _runs(sizes[low] * sizes[high])
    values = flat.entries[flat.table[halves][edge] + place]
    allowed = values < flat.big
    edge, place, values = edge[allowed], place[allowed], values[allowed]
    columns = labels + len(values)
    n = sizes[high][edge]
    equal = sparse.vstack([
        _nodes(flat, sizes, columns),
        _marginals(edge, place // n, sizes[low], flat.start[low], labels, columns),
        _marginals(edge, place % n, sizes[high], flat.start[high], labels, columns),
    ])  # fmt: skip
    target = np.zeros(equal.shape[0])
    target[: flat.nodes] = 1.0
    rows = sparse.vstack([equal, _memory(flat, columns)]).tocsr()
    lower = np.concatenate([target, np.full(len(flat.room), -np.inf)])
    return Program(np.concatenate([flat.cost, values]), rows, lower, np.concatenate([target, flat.room]), labels)


def _runs(sizes: Ids) -> tuple[Ids, Ids]:
    """(number of the run, place in it) of each element of runs of given sizes."""
    run = np.repeat(np.arange(len(sizes)), sizes)
    return run, np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _marginals(edge: Ids, label: Ids, sizes: Ids, start: Ids, first: int, columns: int) -> sparse.csr_matrix:
    """Σ of an edge's pairs with a label − the label = 0, for all labels of one end of all edges."""
    run, place = _runs(sizes)
    entries = np.concatenate([np.ones(len(edge)), -np.ones(len(run))])
    row = np.concatenate([(np.cumsum(sizes) - sizes)[edge] + label, np.arange(len(run))])
    column = np.concatenate([first + np.arange(len(edge)), start[run] + place])
    return sparse.csr_matrix((entries, (row, column)), shape=(len(run), columns))


def _nodes(flat: Flat, sizes: Ids, columns: int) -> sparse.csr_matrix:
    entries = (np.ones(len(flat.cost)), (np.repeat(np.arange(flat.nodes), sizes), np.arange(len(flat.cost))))
    return sparse.csr_matrix(entries, shape=(flat.nodes, columns))


def _memory(flat: Flat, columns: int) -> sparse.csr_matrix:
    """The memory rows as they are."""
    node = np.repeat(np.arange(flat.nodes), np.diff(flat.run))
    length = flat.run_end - flat.run_first
    row = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length - flat.run_first, length)
    counts = sparse.csr_matrix(
        (np.repeat(flat.run_copies, length), (row, np.repeat(node, length))), shape=(len(flat.room), flat.nodes)
    )
    owner = np.repeat(np.arange(flat.nodes), np.diff(flat.start))
    held = sparse.csr_matrix((flat.held, (owner, np.arange(len(owner)))), shape=(flat.nodes, columns))
    return sparse.csr_matrix(counts @ held)


class Branched(NamedTuple):
    """The best labelling found (None: nothing), and what is proven: no labelling costs less than `bound`."""

    labels: Ids | None
    bound: float


def branch(
    flat: Flat,
    known: float,
    whole: bool,
    looks: int,
    stop: Stop = never,
    *,
    most: float = np.inf,
    presolve: bool = True,
) -> Branched:
    """Solve to the end, or until HiGHS has looked at its limits `looks` times (nodes, rounds of cuts, heuristics).

    `known`: about what the optimum costs, for the scale; `whole`: costs are whole numbers. Only labellings that cost
    `most` at most are looked for. `presolve`: on a problem that is reduced already it takes as long as the rest.
    """
    made = program(flat)
    scale = SCALE / known if known > 0 else 1.0
    solver = highspy.Highs()
    settings: dict[str, str | float] = {
        "output_flag": False, "threads": 1, "random_seed": 1,
        "mip_rel_gap": 1e-9, "mip_abs_gap": 0.99 * scale if whole else 1e-9,
    }  # fmt: skip
    if not presolve:
        settings["presolve"] = "off"
    if most < np.inf:
        settings["objective_bound"] = most * scale
    for name, value in settings.items():
        solver.setOptionValue(name, value)
    solver.cbMipInterrupt += _Counter(looks, stop)
    solver.passModel(_model(made, scale, flat.big))
    solver.run()
    status, found = solver.getModelStatus(), solver.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Branched(None, np.inf)
    if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kInterrupt):
        raise CompileError(f"HiGHS ended with {solver.modelStatusToString(status)}")
    bound = found.mip_dual_bound / scale
    if found.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Branched(None, bound)
    values = np.array(solver.getSolution().col_value[: made.labels])
    labels = [int(np.argmax(values[a:b])) for a, b in zip(flat.start[:-1], flat.start[1:], strict=True)]
    return Branched(np.array(labels, dtype=np.int64), bound)


class _Counter:
    """Interrupts a solver that has been asked often enough: a limit that no clock decides."""

    def __init__(self, looks: int, stop: Stop) -> None:
        self.left, self.stop = looks, stop

    def __call__(self, event: Any) -> None:
        self.left -= 1
        if self.left <= 0 or self.stop():
            event.interrupt()


def _model(made: Program, scale: float, big: float) -> highspy.HighsLp:
    possible = made.cost < big
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(made.cost), len(made.lower)
    model.col_cost_ = np.where(possible, made.cost, 0.0) * scale
    model.col_lower_, model.col_upper_ = np.zeros(len(made.cost)), np.where(possible, 1.0, 0.0)
    model.row_lower_, model.row_upper_ = made.lower, made.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = made.rows.indptr
    model.a_matrix_.index_ = made.rows.indices
    model.a_matrix_.value_ = made.rows.data
    kinds = highspy.HighsVarType
    model.integrality_ = [kinds.kInteger] * made.labels + [kinds.kContinuous] * (len(made.cost) - made.labels)
    return model
