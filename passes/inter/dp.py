"""Cutting layers into stages on submeshes: the dynamic program of the Alpa paper (OSDI'22, §5.2, eq. 2-4).

    T* = min over partitions of  Σ t_i + max_j b_j,     b_j = (M-1)·t_j + u_j

t_i is the latency of one microbatch in stage i (forward and backward), u_i what stage i does once per step
(gradient synchronisation and update); with u = 0 this is the paper's objective.  For a cap c on the
bottleneck the latency alone is additive:

    F(s, k, d) = min over last layer j, option m of  t(k, j, m) + F(s-1, j+1, d-n_m),    b(k, j, m) ≤ c

is the least latency of layers k … L-1 in s stages on exactly d devices.  d and n_m are vectors: one number per
group of equal devices, an option takes all its devices from one group.  A stage followed by s-1 others keeps s
microbatches in flight under 1F1B, so its tables have an axis for that number: memory makes entries infinite.

The caps are visited downwards.  Latency only grows on the way, so a partition that beats the best known cost B has a
bottleneck below B - latency: that is the next cap, and the search ends where no entry is below it (D1).
With a tolerance ε it ends as soon as nothing can beat (1-ε)·B: the result is proven to be within ε of the
optimum.  (The paper enumerates all caps upwards; the answer is the same, most caps are skipped.)

Under a cap the layers before a stage, and those after it, need some number of devices at the least: no F is
computed outside what they leave (D2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alpa_mlir.passes.intra.compiled import compiled

Table = NDArray[np.float64]
Counts = tuple[int, ...]
"""Devices of each group."""
RELATIVE = 1e-9
"""Costs closer than this are one: the result is optimal up to this factor."""


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

    `devices[m]` is the number of devices that option m takes from each group.
    """

    latency: Table
    bottleneck: Table
    devices: tuple[Counts, ...]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.latency.shape[1])

    def row(self, stages_left: int) -> int:
        """The index q-1 of a stage that has `stages_left` stages from itself to the end."""
        return min(stages_left, int(self.latency.shape[0])) - 1

    @cached_property
    def members(self) -> dict[Counts, list[int]]:
        """The options by the devices they take, in order of devices."""
        found: dict[Counts, list[int]] = {}
        for m, size in enumerate(self.devices):
            found.setdefault(size, []).append(m)
        return dict(sorted(found.items()))


def partition_layers(
    tables: StageTables, total: Counts, stages: Sequence[int], tolerance: float = 0.0
) -> Partition | None:
    """The cheapest partition that uses exactly `total` devices in one of the given numbers of stages.

    No partition costs less than (1 - tolerance) times the one returned. None where there is no feasible one.
    """
    scaled, whole = _in_units(tables, total)
    if whole is None:
        return None
    ordered = np.triu(np.ones((tables.layers, tables.layers), dtype=bool))[None, :, :, None]
    possible = ordered & np.isfinite(tables.latency)
    finite = np.where(possible, tables.bottleneck, np.inf)
    floor = float(finite.min(initial=np.inf))
    best: Partition | None = None
    cap = np.inf
    while np.isfinite(floor):
        latency = np.where(possible & (tables.bottleneck <= cap), tables.latency, np.inf)
        found = _Sweep(scaled, latency, whole, max(stages)).partition(sorted(set(stages)))
        if found is None:
            break
        if best is None or found.cost < best.cost:
            best = found
        cap = (1 - max(tolerance, RELATIVE)) * best.cost - found.latency
        if cap < floor or cap >= found.bottleneck:
            break
    return best


def _in_units(tables: StageTables, total: Counts) -> tuple[StageTables, Counts | None]:
    """The same problem with each group's devices counted in the largest unit that all options share."""
    sizes = np.array([size for size in tables.devices if all(n <= t for n, t in zip(size, total, strict=True))])
    if not sizes.size:
        return tables, None
    units = [int(u) for u in np.gcd.reduce(sizes, axis=0)]
    if any(t % u if u else t for t, u in zip(total, units, strict=True)):
        return tables, None
    units = [u or 1 for u in units]
    # Rounded up, so that an option that is too large for the group stays so.
    devices = tuple(tuple(-(-n // u) for n, u in zip(size, units, strict=True)) for size in tables.devices)
    return StageTables(tables.latency, tables.bottleneck, devices), tuple(
        t // u for t, u in zip(total, units, strict=True)
    )


class _Sweep:
    """F for one cap: `latency` is infinite where the cap or memory forbids an entry."""

    def __init__(self, tables: StageTables, latency: Table, total: Counts, stages: int) -> None:
        self.tables, self.latency, self.total = tables, latency, total
        self.members = {n: m for n, m in tables.members.items() if all(a <= b for a, b in zip(n, total, strict=True))}
        self.least = {n: latency[..., m].min(axis=3) for n, m in self.members.items()}
        self.after, self.before = self._needs()
        layers = tables.layers
        start = np.full((layers + 1, *(t + 1 for t in total)), np.inf)
        start[(layers, *(0 for _ in total))] = 0.0
        self.rests = [start]
        if self.after[0] <= sum(total):
            for s in range(1, min(stages, layers) + 1):
                self.rests.append(self._extend(self.rests[-1], tables.row(s)))

    def _needs(self) -> tuple[list[float], list[float]]:
        """Devices (of all groups) that layers k … L-1, and layers 0 … k-1, need at the least (D2)."""
        layers = self.tables.layers
        fewest = np.full((layers, layers), np.inf)
        for n, cost in self.least.items():
            fewest = np.where(np.isfinite(cost).any(axis=0), np.minimum(fewest, sum(n)), fewest)
        after = [0.0] * (layers + 1)
        before = [0.0] * (layers + 1)
        for k in range(layers - 1, -1, -1):
            after[k] = float(np.min(fewest[k, k:] + np.array(after[k + 1 :])))
        for k in range(1, layers + 1):
            before[k] = float(np.min(fewest[:k, k - 1] + np.array(before[:k])))
        return after, before

    def _extend(self, rest: Table, row: int) -> Table:
        """One more stage in front: F(s, ·, ·) from F(s-1, ·, ·)."""
        longer = np.full_like(rest, np.inf)
        if len(self.total) == 1:
            for taken, costs in self.least.items():
                _lengthen(longer, rest, costs[row], taken[0], np.array(self.after), np.array(self.before))
            return longer
        for n, costs in self.least.items():
            cost = costs[row]
            for j in range(self.tables.layers):
                first = np.flatnonzero(np.isfinite(cost[: j + 1, j]))
                if not first.size:
                    continue
                low, high = int(first[0]), int(first[-1]) + 1
                source = tuple(slice(0, t + 1 - a) for t, a in zip(self.total, n, strict=True))
                target = tuple(slice(a, t + 1) for t, a in zip(self.total, n, strict=True))
                sums = cost[low:high, j].reshape(-1, *(1 for _ in n)) + rest[j + 1][source]
                window = longer[(slice(low, high), *target)]
                np.minimum(window, sums, out=window)
        return longer

    def partition(self, stages: Sequence[int]) -> Partition | None:
        """The partition of least latency (ties: fewest stages) in one of the given numbers of stages."""
        ends = [(float(self.rests[s][(0, *self.total)]), s) for s in stages if s < len(self.rests)]
        value, count = min(ends, default=(np.inf, 0))
        return self._trace(count) if np.isfinite(value) else None

    def _trace(self, count: int) -> Partition:
        """The partition behind F(count, 0, total); ties: shortest first stage, lowest option."""
        first, left = 0, self.total
        chosen: list[StageChoice] = []
        for s in range(count, 0, -1):
            row = self.tables.row(s)
            sums = np.full(self.latency.shape[2:], np.inf)
            for n, options in self.members.items():
                if all(a <= b for a, b in zip(n, left, strict=True)):
                    place = tuple(b - a for a, b in zip(n, left, strict=True))
                    after = np.array([rest[place] for rest in self.rests[s - 1][1:]])
                    sums[:, options] = self.latency[row, first][:, options] + after[:, None]
            last, option = (int(x) for x in np.unravel_index(int(sums.argmin()), sums.shape))
            chosen.append(StageChoice(first, last, option, row + 1))
            first, left = last + 1, tuple(b - a for a, b in zip(self.tables.devices[option], left, strict=True))
        entries = [(c.in_flight - 1, c.first, c.last, c.option) for c in chosen]
        return Partition(
            tuple(chosen),
            float(sum(self.tables.latency[e] for e in entries)),
            float(max(self.tables.bottleneck[e] for e in entries)),
        )


@compiled
def _lengthen(longer: Table, rest: Table, cost: Table, devices: int, after: Table, before: Table) -> None:
    """Lower `longer` to what one more stage on so many devices, of one group, in front of `rest` costs, where the
    layers behind it and those ahead of it get what they need (D2)."""
    layers, total = len(cost), rest.shape[1] - 1
    for j in range(layers):
        ahead = np.inf
        for i in range(j + 1):
            if np.isfinite(cost[i, j]):
                ahead = min(ahead, before[i])
        if not total - devices - ahead >= after[j + 1]:
            continue
        for i in range(j + 1):
            if np.isfinite(cost[i, j]):
                for d in range(int(after[j + 1]), int(total - devices - ahead) + 1):
                    found = cost[i, j] + rest[j + 1, d]
                    longer[i, d + devices] = min(found, longer[i, d + devices])
