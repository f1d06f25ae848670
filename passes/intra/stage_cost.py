"""What a candidate stage costs: the optimum of the intra-operator program restricted to some layers.

The stage DP asks this for many layer ranges and meshes (Alpa §5.2 profiles them on hardware; here the
cost model answers). A `StageProfiler` reads the module once, keeps one strategy enumerator per mesh, and
remembers optima by the content of the problem: equal layers cost one solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import Remark
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.links import border_links
from alpa_mlir.passes.intra.constraints import AxisMode
from alpa_mlir.passes.intra.graph import StageGraph, build_graph, graph_on
from alpa_mlir.passes.intra.optimize import optimum
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.program import OpRecord, Program
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.restrictions import Restrictions, restrict_uses
from alpa_mlir.passes.intra.sketch import Sketch
from alpa_mlir.passes.intra.sketch_stage import sketch_stage
from alpa_mlir.passes.intra.stage_parts import StageParts, adding, stage_parts
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.intra.too_small import alive

Layers = tuple[int, int]
"""First and last layer (inclusive)."""


@dataclass(frozen=True)
class StageCost:
    """Predicted cost of a stage.

    microbatch_seconds: forward and backward of one microbatch, transfers from other stages included;
    step_seconds: what runs once per step (gradient synchronisation, update, prologue);
    memory_bytes: peak per device; feasible: whether that is within the limit (if not, seconds are infinite
    and memory_bytes is the least possible).
    """

    microbatch_seconds: float
    step_seconds: float
    memory_bytes: float
    feasible: bool


@dataclass
class StageProfiler:
    """Prices stages of one module (level 2 or 3) on submeshes of one cluster."""

    module: ir.Module
    cluster: Cluster
    microbatches: int = 0
    solver: str = "highs"
    whole_sums: bool = False
    uses: tuple[AxisMode, ...] = ()
    """What users want of the axes of every stage's mesh."""
    program: Program = field(init=False)
    restrictions: Restrictions = field(init=False)
    _enumerators: dict[tuple[object, ...], Enumerator] = field(default_factory=dict)
    _sketches: dict[Layers, Sketch] = field(default_factory=dict)
    _graphs: dict[tuple[object, ...], StageGraph] = field(default_factory=dict)
    _costs: dict[tuple[object, ...], tuple[StageCost, tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.program = read_program(self.module, self.microbatches, self.whole_sums)
        self.restrictions = restrict_uses(self.program, self.uses)

    def cost(
        self,
        layers: Layers | Callable[[OpRecord], bool],
        mesh: Mesh,
        in_flight: int = 1,
        memory_limit: float = 0.0,
        first_device: int = 0,
    ) -> StageCost:
        """The cheapest way to run the ops of layers first…last (inclusive) on `mesh`.

        `in_flight` microbatches are alive at once; `memory_limit` in bytes per device (0: what the devices have);
        `first_device`: where in the cluster, as far as it matters.
        """
        return self._solved(self.graph(layers, mesh, in_flight, first_device), memory_limit)[0]

    def parts(
        self, layers: Layers, mesh: Mesh, in_flight: int = 1, memory_limit: float = 0.0, first_device: int = 0
    ) -> StageParts:
        """The feasible stage of `cost` taken apart."""
        labels = self._solved(self.graph(layers, mesh, in_flight, first_device), memory_limit)[1]
        one, two = (self.graph(layers, mesh, n, first_device) for n in (1, 2))
        return stage_parts(one, two, labels, self.program, lambda op: layers[0] <= op.layer <= layers[1])

    def alive(self, layers: Layers, mesh: Mesh, in_flight: int, first_device: int = 0) -> list[Remark]:
        """Notes about the largest values of a stage that holds as little as it can."""
        return alive(self.program, self.graph(layers, mesh, in_flight, first_device))

    def _solved(self, graph: StageGraph, memory_limit: float) -> tuple[StageCost, tuple[int, ...]]:
        limit = memory_limit or float(graph.enumerator.cluster.memory)
        key = (id(graph.enumerator), graph.signature(), limit)
        found = self._costs.get(key)
        if found is None:
            found = self._costs[key] = self._solve(graph, limit)
        return found

    def graph(
        self, layers: Layers | Callable[[OpRecord], bool], mesh: Mesh, in_flight: int, first_device: int = 0
    ) -> StageGraph:
        """The problem that `cost` solves."""
        links = border_links(mesh, self.cluster, first_device)
        part = self.cluster.part_of(first_device)
        shape = (links.content, part.first)
        enumerator = self._enumerators.get(shape)
        if enumerator is None:
            enumerator = self._enumerators[shape] = Enumerator(links, part)
        if not isinstance(layers, tuple):
            return build_graph(self.program, enumerator, layers, -1, in_flight, self.restrictions)
        two, key = (shape, layers, 2), (shape, layers, in_flight)
        if two not in self._graphs:
            self._graphs[two] = graph_on(self.sketch(layers), enumerator)
        if key not in self._graphs:
            graph = self._graphs[two]
            sketch = graph.sketch.keeping(in_flight - 1)
            self._graphs[key] = replace(graph, moments=sketch.moments, sketch=sketch)
        return self._graphs[key]

    def sketch(self, layers: Layers) -> Sketch:
        """A stage with two microbatches in flight, on any mesh."""
        if layers not in self._sketches:
            first, last = layers
            self._sketches[layers] = sketch_stage(
                self.program, lambda op: first <= op.layer <= last, -1, 2, self.restrictions
            )
        return self._sketches[layers]

    def _solve(self, graph: StageGraph, limit: float) -> tuple[StageCost, tuple[int, ...]]:
        try:
            found = optimum(graph, limit, self.solver)
        except DoesNotFit:
            least = float(graph.least_usage().max(initial=0.0))
            return StageCost(float("inf"), float("inf"), least, False), ()
        return StageCost(*split_seconds(graph, found.labels, self.program), found.peak, True), found.labels


def step_seconds(costs: Sequence[StageCost], microbatches: int) -> float:
    """A pipelined step: Σ t_i + max_j ((M−1)·t_j + seconds once per step) (Alpa §5.1, with the per-step part)."""
    slowest = max((microbatches - 1) * c.microbatch_seconds + c.step_seconds for c in costs)
    return sum(c.microbatch_seconds for c in costs) + slowest


def split_seconds(graph: StageGraph, labels: tuple[int, ...], program: Program) -> tuple[float, float]:
    """(seconds of one microbatch, seconds once per step) of a labelling; adding to sums is of the microbatch."""
    repeated, once = graph.seconds(labels, program)
    return repeated / program.microbatches + adding(graph, labels, program), once


def stage_cost(
    module: ir.Module,
    ops: Layers | Callable[[OpRecord], bool],
    mesh: Mesh,
    cluster: Cluster,
    microbatches: int = 0,
    in_flight: int = 1,
    memory_limit: float = 0.0,
) -> StageCost:
    """One-off `StageProfiler(module, cluster, microbatches).cost(ops, mesh, in_flight, memory_limit)`."""
    return StageProfiler(module, cluster, microbatches).cost(ops, mesh, in_flight, memory_limit)
