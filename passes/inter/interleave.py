"""Stages for an interleaved schedule: S = v·p stages on p equal submeshes, stage s on submesh s mod p.

All submeshes have the same size and logical shape, so a good cut is an even one: contiguous layers whose longest
stage is as short as possible, with the cost of single layers (each an optimum of the intra-operator program, memory
left aside) as weights.  For every number of submeshes, chunks and shape that can be, the stages of the even cut are
then priced as they are and the schedule is simulated; the shortest step within memory wins.  Where plans are
compared, stages cost their prices first (`listed.py`): what is much worse than the best need not be tried exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.inter.estimates import pipeline_costs
from alpa_mlir.passes.inter.listed import ListedStages
from alpa_mlir.passes.inter.schedules import Pipeline, in_flight
from alpa_mlir.passes.inter.simulate import Step, measure
from alpa_mlir.passes.intra.stage_cost import Layers, StageCost, StageProfiler
from alpa_mlir.passes.intra.stage_parts import StageParts

CHUNKS = (2, 3, 4)
"""Stages per submesh that are tried where none are given."""
KIND = "interleaved"
NEAR, FEW = 0.2, 3
"""Shapes whose prices make a step longer than the best by more than this part of it are of no use, nor are those after
the first FEW, or after the best on MANY devices: each takes an optimum for every layer and every stage."""
MANY = 256
"""From so many devices on interleaving is tried only where the user asks for it."""
INFINITE = float("inf")


@dataclass(frozen=True)
class Interleaving:
    """A cut into stages of `mesh` on `lanes` submeshes: layers, cost and parts of each stage, and the step."""

    stages: tuple[Layers, ...]
    mesh: Mesh
    lanes: int
    costs: tuple[StageCost, ...]
    parts: tuple[StageParts, ...]
    step: Step


def even_cut(weights: Sequence[float], stages: int) -> tuple[Layers, ...]:
    """Contiguous groups of layers, at least one each, whose heaviest is lightest; ties: short groups first."""
    count = len(weights)
    sums = [0.0]
    for w in weights:
        sums.append(sums[-1] + w)
    best = {(0, count): 0.0}
    cut: dict[tuple[int, int], int] = {}
    for left in range(1, stages + 1):
        for first in range(count - left, -1, -1):
            options = [
                (max(sums[end] - sums[first], best[left - 1, end]), end)
                for end in range(first + 1, count - left + 2)
                if (left - 1, end) in best
            ]
            if options:
                best[left, first], cut[left, first] = min(options)
    ends = [0]
    for left in range(stages, 0, -1):
        ends.append(cut[left, ends[-1]])
    return tuple((a, b - 1) for a, b in pairwise(ends))


def interleavings(
    profiler: StageProfiler | ListedStages,
    cluster: Cluster,
    shapes: Sequence[tuple[int, ...]],
    layers: int,
    microbatches: int,
    stages: int,
    chunks: int,
) -> list[Interleaving]:
    """Interleavings into `stages` stages (0: any number), `chunks` a submesh (0: any of CHUNKS), the best first.

    Empty where no number of submeshes suits or nothing fits in memory. `shapes` are the submeshes on offer.
    """
    found: list[Interleaving] = []
    for shape in shapes:
        mesh = Mesh.from_shape("stage", shape)
        lanes, rest = divmod(cluster.device_count, mesh.device_count)
        possible = [v for v in ([chunks] if chunks else CHUNKS) if stages in (0, v * lanes) and v * lanes <= layers]
        if rest or lanes < 2 or not possible:
            continue
        weights = [profiler.cost((k, k), mesh, 1, INFINITE).microbatch_seconds for k in range(layers)]
        for v in possible:
            cut = even_cut(weights, v * lanes)
            one = _priced(profiler, cluster, cut, mesh, Pipeline(v * lanes, lanes, microbatches))
            found += [one] if one is not None else []
    return sorted(found, key=lambda i: i.step.makespan)


def near_shapes(found: Sequence[Interleaving], devices: int) -> list[tuple[int, ...]]:
    """The first few shapes of interleavings (the best first) that are nearly as good as the best."""
    most = (1 + NEAR) * found[0].step.makespan if found else 0.0
    return list(dict.fromkeys(i.mesh.shape for i in found if i.step.makespan <= most))[: FEW if devices < MANY else 1]


def _priced(
    profiler: StageProfiler | ListedStages,
    cluster: Cluster,
    cut: tuple[Layers, ...],
    mesh: Mesh,
    pipeline: Pipeline,
) -> Interleaving | None:
    """The cut with its step; each stage may use the whole memory, or, where that is too much, its share."""
    for limit in (float(cluster.memory), cluster.memory / pipeline.chunks):
        flying = [in_flight(KIND, s, pipeline) for s in range(len(cut))]
        costs = [profiler.cost(layers, mesh, q, limit) for layers, q in zip(cut, flying, strict=True)]
        if not all(c.feasible for c in costs):
            return None
        parts = [profiler.parts(layers, mesh, q, limit) for layers, q in zip(cut, flying, strict=True)]
        step = measure(KIND, pipeline_costs(parts), pipeline.microbatches, pipeline.lanes)
        if max(step.peak_bytes) <= cluster.memory:
            return Interleaving(cut, mesh, pipeline.lanes, tuple(costs), tuple(parts), step)
    return None
