"""Cutting layers into stages on submeshes: the dynamic program of the Alpa paper (OSDI'22, §5.2, eq. 2-4).

    T* = min over partitions of  Σ t_i + max_j b_j,     b_j = (M-1)·t_j + u_j

t_i is the latency of one microbatch in stage i (forward and backward), u_i what stage i does once per step
(gradient synchronisation and update); with u = 0 this is the paper's objective.  For a cap c on the
bottleneck the latency alone is additive:

    F(s, k, d) = min over last layer j, submesh m of  t(k, j, m) + F(s-1, j+1, d-n_m),    b(k, j, m) ≤ c

is the least latency of layers k … L-1 in s stages on exactly d devices.  A stage followed by s-1 others keeps
s microbatches in flight under 1F1B, so its tables have an axis for that number: memory makes entries infinite.

The caps are visited downwards: the optimum for cap c has some bottleneck c' ≤ c, no smaller cap down to c'
changes it, so the next cap lies just below c'.  Latency only grows on the way, hence the search ends as soon as
latency plus the smallest bottleneck there is cannot beat the best found.  (The paper enumerates upwards; the
answer is the same, most caps are skipped.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
RELATIVE = 1e-9
"""Bottlenecks closer than this are one: the result is optimal up to this factor."""


@dataclass(frozen=True)
class StageChoice:
    """Layers `first` … `last` on submesh option `option`, with `in_flight` microbatches under way."""

    first: int
    last: int
    option: int
    in_flight: int


@dataclass(frozen=True)
class Partition:
    """A cut of all layers into stages in order; `cost = latency + bottleneck`, in the unit of the tables."""

    stages: tuple[StageChoice, ...]
    latency: float
    bottleneck: float

    @property
    def cost(self) -> float:
        """The objective."""
        return self.latency + self.bottleneck


@dataclass(frozen=True, eq=False)
class StageTables:
    """What a stage costs: `latency[q-1, i, j, m]` and `bottleneck[q-1, i, j, m]` for layers i … j on
    submesh option m with q microbatches in flight; infinite where impossible. Beyond the last q the last holds.

    `devices[m]` is the number of devices of option m.
    """

    latency: Table
    bottleneck: Table
    devices: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.latency.shape[1])

    def row(self, stages_left: int) -> int:
        """The index q-1 of a stage that has `stages_left` stages from itself to the end."""
        return min(stages_left, int(self.latency.shape[0])) - 1


def partition_layers(tables: StageTables, total: int, stages: Sequence[int]) -> Partition | None:
    """The cheapest partition that uses exactly `total` devices in one of the given numbers of stages.

    None where there is no feasible one.
    """
    finite = tables.bottleneck[np.isfinite(tables.latency)]
    floor = float(finite.min()) if finite.size else 0.0
    best: Partition | None = None
    cap = np.inf
    while True:
        found = _least_latency(tables, total, stages, cap)
        if found is None:
            return best
        if best is None or found.cost < best.cost:
            best = found
        if found.latency + floor >= best.cost:
            return best
        cap = found.bottleneck - RELATIVE * abs(found.bottleneck)
        if cap >= found.bottleneck:
            return best


def _least_latency(tables: StageTables, total: int, stages: Sequence[int], cap: float) -> Partition | None:
    """F(s, 0, total) with its partition, for the s of least latency (ties: fewest stages)."""
    ordered = np.triu(np.ones((tables.layers, tables.layers), dtype=bool))[None, :, :, None]
    latency = np.where(ordered & (tables.bottleneck <= cap), tables.latency, np.inf)
    sizes = sorted({n for n in tables.devices if n <= total})
    members = {n: [m for m, size in enumerate(tables.devices) if size == n] for n in sizes}
    least = {n: latency[..., members[n]].min(axis=3) for n in sizes}
    rests = [np.full((tables.layers + 1, total + 1), np.inf)]
    rests[0][tables.layers, 0] = 0.0
    for s in range(1, max(stages) + 1):
        rests.append(_extend(rests[-1], {n: least[n][tables.row(s)] for n in sizes}))
    ends = [(float(rests[s][0, total]), s) for s in sorted(set(stages))]
    value, count = min(ends)
    if not np.isfinite(value):
        return None
    return _trace(tables, latency, rests, total, count)


def _extend(rest: Table, least: dict[int, Table]) -> Table:
    """One more stage in front: F(s, ·, ·) from F(s-1, ·, ·)."""
    longer = np.full_like(rest, np.inf)
    for n, cost in least.items():
        width = rest.shape[1] - n
        if width > 0:
            sums = cost[:, :, None] + rest[None, 1:, :width]
            np.minimum(longer[:-1, n:], sums.min(axis=1), out=longer[:-1, n:])
    return longer


def _trace(tables: StageTables, latency: Table, rests: list[Table], total: int, count: int) -> Partition:
    """The partition behind F(count, 0, total); ties: shortest first stage, lowest option."""
    devices = np.array(tables.devices)
    first, left = 0, total
    chosen: list[StageChoice] = []
    for s in range(count, 0, -1):
        row = tables.row(s)
        after = np.where(devices <= left, rests[s - 1][1:, np.maximum(left - devices, 0)], np.inf)
        sums = latency[row, first] + after
        last, option = (int(x) for x in np.unravel_index(int(sums.argmin()), sums.shape))
        chosen.append(StageChoice(first, last, option, row + 1))
        first, left = last + 1, left - int(devices[option])
    entries = [(c.in_flight - 1, c.first, c.last, c.option) for c in chosen]
    return Partition(
        tuple(chosen),
        float(sum(tables.latency[e] for e in entries)),
        float(max(tables.bottleneck[e] for e in entries)),
    )
