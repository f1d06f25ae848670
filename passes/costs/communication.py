"""Seconds of collectives and of resharding inside a mesh, as linear functions of the tensor's size.

Ring algorithms on n devices, with link bandwidth B (bytes/s per device), start s and hop h (seconds);
L are the bytes one device holds *before* the step, R those it holds *after* it:

    C1  several axes form one ring of n = product of their sizes; its link is that of the joint groups
    C2  all_reduce      s + 2(n-1)h + 2(n-1)/n · L/B
    C3  reduce_scatter  s +  (n-1)h +  (n-1)/n · L/B
    C4  all_gather      s +  (n-1)h +  (n-1)/n · R/B
    C5  all_to_all      s +  (n-1)h +  (n-1)/n · L/B;
        where only neighbours are joined, so that parts are handed on, ⌊n²/4⌋/n · L/B
    C16 permute         s +        h +            L/B, as often as C5 where parts are handed on
    C17 where each device of a node is joined to k others that share its links' bandwidth, B is that of min(k, n-1)
        links and C16's that of one; in C5 the parts for the n-1-k others go meanwhile at the speed to them
    C6  slice           half of R / memory bandwidth (fused into what reads it, as rule C12)
    C7  a reshard costs the sum of the steps that `reshard_steps` plans and the localiser emits

(Thakur, Rabenseifner, Gropp 2005; NCCL's bus-bandwidth definitions.) All are affine in the bytes of
the whole tensor, so one pair (seconds, seconds per byte) per pair of shardings prices every tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.links import AxisLink, MeshLinks
from alpa_mlir.passes.local.steps import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, PERMUTE, SLICE, Step, reshard_steps

Matrix = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Affine:
    """`seconds + per_byte · bytes of the whole tensor`."""

    seconds: float
    per_byte: float

    def at(self, size: float) -> float:
        """Seconds for a tensor of `size` bytes."""
        return self.seconds + self.per_byte * size


def step_cost(step: Step, links: MeshLinks) -> Affine:
    """What one step of a reshard costs (rules C2 to C6)."""
    mesh = links.mesh
    if step.kind == SLICE:
        return Affine(0.0, 0.5 / mesh.extent(step.after.axes) / links.memory_bandwidth)
    n = mesh.extent(step.axes)
    link = links.joint(step.axes)
    held = step.after if step.kind == ALL_GATHER else step.before
    share = 1.0 / mesh.extent(held.axes)
    rounds = {ALL_REDUCE: 2 * (n - 1), PERMUTE: 1}.get(step.kind, n - 1)
    return Affine(link.start + rounds * link.hop, _seconds_sent(step.kind, n, rounds, link) / n * share)


def _seconds_sent(kind: str, n: int, rounds: int, link: AxisLink) -> float:
    """Seconds to send what a device sends, each of the n parts of what it holds having a byte (rules C2 to C5, C16)."""
    if kind not in (ALL_TO_ALL, PERMUTE):
        return rounds / link.bandwidth
    if link.ring:
        return max(n if kind == PERMUTE else rounds, n * n // 4) / link.bandwidth
    if kind == PERMUTE:
        return n / (link.pair or link.bandwidth)
    apart, far = link.apart
    return max((rounds - apart) / link.bandwidth, apart / far if apart else 0.0)


def reshard_cost(source: Sharding, target: Sharding, links: MeshLinks) -> Affine:
    """What changing one sharding into another costs (rule C7); infinite where a whole value would become partial."""
    if set(target.partial) - set(source.partial):
        return Affine(float("inf"), 0.0)
    parts = [step_cost(step, links) for step in reshard_steps(source, target, links.mesh)]
    return Affine(sum(p.seconds for p in parts), sum(p.per_byte for p in parts))


def transfer_cost(target: Sharding, links: MeshLinks) -> Affine:
    """A value arriving from another stage (rule C8): every byte crosses once, split over all devices of
    the mesh, and is gathered over those axes that `target` does not use (the size of rule C4, without its start)."""
    mesh = links.mesh
    n, local = mesh.device_count, 1.0 / mesh.extent(target.axes)
    free = tuple(name for name, size in mesh.axes if size > 1 and name not in target.axes)
    inside = links.joint(free).bandwidth if free else links.outside.bandwidth
    return Affine(links.outside.start, 1.0 / n / links.outside.bandwidth + (local - 1.0 / n) / inside)


@dataclass
class ReshardTable:
    """Reshard costs of a mesh, computed once per pair of shardings; shardings are numbered on first use."""

    links: MeshLinks
    _numbers: dict[Sharding, int] = field(default_factory=dict)
    _shardings: list[Sharding] = field(default_factory=list)
    _pairs: dict[tuple[int, int], Affine] = field(default_factory=dict)
    _costs: dict[tuple[Sharding, Sharding], Affine] = field(default_factory=dict)
    _blocks: dict[tuple[bytes, bytes], tuple[Matrix, Matrix]] = field(default_factory=dict)

    def number(self, sharding: Sharding) -> int:
        """The number of a sharding in this table."""
        found = self._numbers.get(sharding)
        if found is None:
            found = self._numbers[sharding] = len(self._shardings)
            self._shardings.append(sharding)
        return found

    def sharding(self, number: int) -> Sharding:
        """The sharding of a number."""
        return self._shardings[number]

    def pair(self, source: int, target: int) -> Affine:
        """Cost between two numbered shardings."""
        found = self._pairs.get((source, target))
        if found is None:
            found = self._pairs[source, target] = self._cost(self._shardings[source], self._shardings[target])
        return found

    def _cost(self, source: Sharding, target: Sharding) -> Affine:
        """The cost of a pair; dimensions that neither splits make no difference."""
        split = [pair for pair in zip(source.dims, target.dims, strict=True) if pair != ((), ())]
        before, after = tuple([a for a, _ in split]), tuple([b for _, b in split])
        key = (Sharding(before, source.partial), Sharding(after, target.partial))
        found = self._costs.get(key)
        if found is None:
            found = self._costs[key] = reshard_cost(*key, self.links)
        return found

    def matrix(self, sources: Ids, targets: Ids, size: float) -> Matrix:
        """Seconds [len(sources), len(targets)] of resharding a tensor of `size` bytes."""
        key = (sources.tobytes(), targets.tobytes())
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = self._block(sources, targets)
        result: Matrix = block[0] + size * block[1]
        return result

    def _block(self, sources: Ids, targets: Ids) -> tuple[Matrix, Matrix]:
        rows, where_row = np.unique(sources, return_inverse=True)
        columns, where_column = np.unique(targets, return_inverse=True)
        pairs = [[self.pair(int(s), int(t)) for t in columns] for s in rows]
        seconds = np.array([[p.seconds for p in row] for row in pairs])
        per_byte = np.array([[p.per_byte for p in row] for row in pairs])
        grid = np.ix_(where_row, where_column)
        return seconds[grid], per_byte[grid]
