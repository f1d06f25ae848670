"""Bytes per device over a step: what is alive at each moment, as counts of copies per value.

    M1  stored values (state, constants, sums, stacks, the microbatch's batch arguments) are alive always
    M2  a value of @microbatch is alive from its op to its last use in program order
    M3  a forward value that a backward op uses is kept once per microbatch in flight
    M4  a value made by a fused op (rule C12) whose only user, in the same phase, is fused or a reduction
        is never stored
    M5  a new state value takes over the buffer of the old one
    M6  a value that leaves the step is alive to the end of its function

The moments that matter are those just before something dies with something born since the last death:
all others have a subset of their values alive (the maximal cliques of an interval graph).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Lifetime:
    """Copies of a value alive in [first, last] (op positions of one function); `kept` more for all its moments."""

    node: int
    function: str
    first: int
    last: int
    kept: int = 0


def live_rows(nodes: int, stored: list[int], lifetimes: list[Lifetime]) -> sparse.csr_matrix:
    """Rows [moments, nodes] of how many copies of each node's value are alive (rules M1 to M3).

    One row per undominated moment of each function; at least one row, for what is stored.
    """
    base = np.zeros(nodes)
    base[stored] = 1.0
    rows = []
    for function in dict.fromkeys(t.function for t in lifetimes):
        rows.extend(_function_rows(base, [t for t in lifetimes if t.function == function]))
    if not rows:
        rows = [sparse.csr_matrix(base[None, :])]
    return sparse.vstack(rows).tocsr()


def _function_rows(base: np.ndarray, lifetimes: list[Lifetime]) -> list[sparse.csr_matrix]:
    kept = base.copy()
    for t in lifetimes:
        kept[t.node] += t.kept
    births = sorted(lifetimes, key=lambda t: (t.first, t.node))
    deaths = sorted(lifetimes, key=lambda t: (t.last, t.node))
    rows, alive, born, fresh = [], kept, 0, False
    for t in deaths:
        while born < len(births) and births[born].first <= t.last:
            alive[births[born].node] += 1
            born, fresh = born + 1, True
        if fresh:
            rows.append(sparse.csr_matrix(alive[None, :]))
            fresh = False
        alive[t.node] -= 1
    return rows
