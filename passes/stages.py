"""`alpa-stages`: which layers form a stage, and on which submesh it runs.

The stage dynamic program (`inter/dp.py`: Alpa, OSDI'22, §5.2) chooses cuts and submeshes together, with the optimum
of the intra-operator program as the cost of a stage (`inter/search.py`).  The decision is written as
`alpa.stage` on ops and arguments (`inter/placement.py`) and as one `sdy.mesh` per stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text
from alpa_mlir.dialect.mesh import Mesh, parse_mesh
from alpa_mlir.dialect.plan import read_pipeline, read_stages, stage_entries
from alpa_mlir.passes.costs.cluster import Cluster, choose_cluster
from alpa_mlir.passes.inter.borders import placed
from alpa_mlir.passes.inter.chosen import Stage, write_chosen
from alpa_mlir.passes.inter.dataflow import CONTRACTIONS, contracts
from alpa_mlir.passes.inter.given import GivenStage, GivenStages
from alpa_mlir.passes.inter.in_flight import InFlight
from alpa_mlir.passes.inter.interleave import CHUNKS, interleavings, near_shapes
from alpa_mlir.passes.inter.layout import read_layout
from alpa_mlir.passes.inter.listed import ListedStages
from alpa_mlir.passes.inter.meshes import MESH_AXES, submesh_shapes
from alpa_mlir.passes.inter.placement import place
from alpa_mlir.passes.inter.pricing import Pricer
from alpa_mlir.passes.inter.schedules import KINDS, SPLIT_BACKWARD, in_flight, kind_played, pipeline_of
from alpa_mlir.passes.inter.search import StageSearch
from alpa_mlir.passes.inter.sum_pieces import merge
from alpa_mlir.passes.intra.constraints import AxisMode, parse_constraints
from alpa_mlir.passes.intra.stage_cost import StageProfiler
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.rematerialize import Rematerialize

MANY_ROUNDS = 8
"""Microbatches per stage that more than fill a pipeline."""
LITTLE_LESS = 0.8
"""The part of a cluster's memory that is called a little less."""


@register
@dataclass(frozen=True)
class Stages(Pass):
    """Cut the layers into stages and give each a submesh: `alpa.stage` on ops and arguments.

    IR before: level 3 (`alpa.level = "layered"`). IR after: level 4 (`"staged"`), with `alpa.cluster`, `alpa.stages`,
    one `sdy.mesh @stage_s` per stage and, where stages were searched, `alpa.cost`.
    Precondition: `cluster` names a preset, or the module carries `alpa.cluster`.
    A module that says its stages itself (`alpa.stages` of mesh, devices and perhaps layers) keeps them.
    Postcondition: unless stages were given, all devices are used (of a mixed cluster all of some groups); forward data
    flows to equal or higher stages, backward data to equal or lower ones; every argument has one home stage. With
    schedule=interleaved stage s of S lies on submesh s mod p of p equal ones. A folded program (`inter/fold.py`) gets
    the stages of the whole one, its ops none.
    """

    name: ClassVar[str] = "alpa-stages"
    cluster: str = option("", "cluster preset; empty: the module's alpa.cluster")
    nodes: int = option(0, "number of nodes; 0: as the cluster says")
    devices_per_node: int = option(0, "devices of each node; 0: as the cluster says")
    memory: str = option("", "memory per device, for example 16GB; empty: as the cluster says")
    stages: int = option(0, "number of stages; 0: the best")
    mesh: str = option("", "one stage on this logical mesh, for example 2x4: no search")
    schedule: str = option("1f1b", f"decides how many microbatches are in flight, one of {', '.join(KINDS)}")
    chunks: int = option(0, "stages that share a submesh, with schedule=interleaved; 0: the best")
    solver: str = option("highs", "mixed-integer solver of the stages' intra-operator programs")
    whole_sums: bool = option(False, "reduce sums over microbatches in each (for XLA's partitioner), not once a step")
    meshes: str = option("", "logical meshes that stages may have, for example 8,2x4; empty: all that suit the cluster")
    axes: int = option(MESH_AXES, "axes of a stage's logical mesh at most: 1, 2 or 3")
    constrain: str = option(
        "", "how axes are used in every stage, for example x=zero2; other constraints say nothing here"
    )
    rough: bool = option(False, "compare plans: cost stages by prices, not by optima; say which meshes were of use")
    remat: bool = option(False, "with rough: choose which layers of each stage are to run again (alpa.remat says)")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        self._check(module)
        cluster = self._cluster(module)
        layout = read_layout(module)
        layers = layout.count
        seconds = None
        if alpa.STAGES in module.operation.attributes:
            stages = self._given(module, cluster, layers)
        elif self.mesh:
            stages = self._estimated(module, cluster, [_single_stage(self.mesh, cluster, layers, self.stages)])
        else:
            interleaved = self.schedule == "interleaved" and has_backward(module)
            search = self._interleave if interleaved else self._search
            stages, seconds = search(module, cluster, layers)
        if layout.whole:
            place(module, [next(s for s, stage in enumerate(stages) if k <= stage.last) for k in range(layers)])
            merge(module)
        write_chosen(module, cluster, placed(stages, cluster), seconds)

    def _check(self, module: ir.Module) -> None:
        level = alpa.get_string(module.operation, alpa.LEVEL)
        location = module.operation.location
        if level != "layered":
            raise CompileError(
                f"alpa-stages needs a layered module (run alpa-layers first), got level {level or 'source'}", location
            )
        if self.schedule not in KINDS:
            raise CompileError(f"schedule must be one of {', '.join(KINDS)}, got '{self.schedule}'", location)
        if not 1 <= self.axes <= 3:
            raise CompileError(f"a logical mesh has 1, 2 or 3 axes, got axes={self.axes}", location)
        if min(self.stages, self.chunks) < 0:
            what, given = ("stages", self.stages) if self.stages < 0 else ("chunks", self.chunks)
            raise CompileError(f"the number of {what} must not be negative, got {given}", location)

    def _cluster(self, module: ir.Module) -> Cluster:
        return choose_cluster(module, self.cluster, self.nodes, self.devices_per_node, self.memory)

    def _full(self, module: ir.Module, cluster: Cluster) -> tuple[Cluster, float]:
        """The cluster with all of its memory, and how much to keep within (0: all): prices for a little less memory are
        those for all of it, which are known."""
        if not self.memory:
            return cluster, 0.0
        full = choose_cluster(module, self.cluster, self.nodes, self.devices_per_node, "")
        return (full, float(cluster.memory)) if cluster.memory >= LITTLE_LESS * full.memory else (cluster, 0.0)

    def _uses(self) -> tuple[AxisMode, ...]:
        return tuple(c for c in parse_constraints(self.constrain) if isinstance(c, AxisMode))

    def _given(self, module: ir.Module, cluster: Cluster, layers: int) -> list[Stage]:
        """The stages that the module came with; those that do not say their layers get equal numbers of them."""
        location = module.operation.location
        if self.mesh or self.stages:
            raise CompileError(
                "the module says its stages itself (alpa.stages): give neither stages nor mesh", location
            )
        submeshes, entries = read_stages(module), stage_entries(module)
        count = len(entries)
        if count > layers:
            raise _too_few_layers(module, count, layers)
        even = [(s * layers // count, (s + 1) * layers // count - 1) for s in range(count)]
        said = [tuple(ir.DenseI64ArrayAttr(e["layers"])) if "layers" in e else even[s] for s, e in enumerate(entries)]
        expected = 0
        for number, (first, last) in enumerate(said):
            if first != expected or last < first or last >= layers:
                raise CompileError(
                    f"stage {number} has layers {first} to {last}: stages hold the layers 0 to {layers - 1} in order, "
                    "at least one each",
                    location,
                )
            expected = last + 1
        if expected != layers:
            raise CompileError(f"no stage holds layers {expected} to {layers - 1}", location)
        most = max(d for stage in submeshes.values() for d in stage.devices)
        if most >= cluster.device_count:
            raise CompileError(f"a stage has device {most}, the cluster has {cluster.device_count} devices", location)
        found = [submeshes[mesh] for mesh in read_pipeline(module)]
        stages = [Stage(a, b, stage.mesh, stage.devices) for (a, b), stage in zip(said, found, strict=True)]
        return self._estimated(module, cluster, stages)

    def _estimated(self, module: ir.Module, cluster: Cluster, stages: list[Stage]) -> list[Stage]:
        """Given stages with what they would cost as the planner would shard them, if all of them fit; what one stage
        costs is of use only where settings are compared."""
        if len(stages) == 1 and not self.rough:
            return stages
        profiler = self._profiler(module, cluster)
        microbatches = profiler.program.microbatches
        pipeline = pipeline_of([s.mesh.name for s in stages], microbatches)
        kind = kind_played(self.schedule, has_backward(module), pipeline)
        limits = [cluster.part_of(s.devices[0]).memory / pipeline.chunks for s in stages]

        def flying(microbatches: int) -> list[int]:
            # More than fill the pipeline change nothing, but where all are in flight.
            most = microbatches if kind == "gpipe" else MANY_ROUNDS * pipeline.stages
            known = replace(pipeline, microbatches=min(microbatches, most))
            return [in_flight(kind, s, known) for s in range(len(stages))]

        if self.rough:
            pricer = self._pricer(module, profiler)
            listed = {part.first: ListedStages(pricer, part) for part in cluster.parts}
            if self.remat:
                again = _all_again(module)
                pricer = self._pricer(again, self._profiler(again, cluster))
                listed = {part.first: ListedStages(pricer, part, listed[part.first]) for part in cluster.parts}
            asked = [
                GivenStage((s.first, s.last), s.mesh, limit, listed[cluster.part_of(s.devices[0]).first])
                for s, limit in zip(stages, limits, strict=True)
            ]
            given = GivenStages(asked, flying, microbatches)
            try:
                found = given.priced(module.operation.location)
            finally:
                _write_useful(module, (), (given.floor(), 0.0), given.ahead())
            if self.remat:
                _write_again(module, given.layers_again())
            return [replace(s, cost=cost, parts=parts) for s, (cost, parts) in zip(stages, found, strict=True)]
        solved = [
            ((s.first, s.last), s.mesh, n, limit, s.devices[0])
            for s, n, limit in zip(stages, flying(microbatches), limits, strict=True)
        ]
        costs = [profiler.cost(*s) for s in solved]
        if not all(c.feasible for c in costs):
            return stages
        parts = [profiler.parts(*s) for s in solved]
        return [replace(s, cost=c, parts=p) for s, c, p in zip(stages, costs, parts, strict=True)]

    def _profiler(self, module: ir.Module, cluster: Cluster) -> StageProfiler:
        return StageProfiler(module, cluster, 0, self.solver, self.whole_sums, self._uses())

    @staticmethod
    def _pricer(module: ir.Module, profiler: StageProfiler) -> Pricer:
        layout = read_layout(module)
        return Pricer(profiler.program, layout, lambda: profiler.sketch((0, layout.layers - 1)))

    def _search(self, module: ir.Module, cluster: Cluster, layers: int) -> tuple[list[Stage], float]:
        location, devices = module.operation.location, cluster.device_count
        if self.stages > devices:
            raise CompileError(
                f"{self.stages} stages need at least {self.stages} devices, there are {devices}", location
            )
        if self.stages > layers:
            raise _too_few_layers(module, self.stages, layers)
        counts = [self.stages] if self.stages else list(range(1, min(layers, devices) + 1))
        flying = _in_flight(module, self.schedule)
        shapes = tuple(parse_mesh(text) for text in self.meshes.split(",") if text)
        full, memory = self._full(module, cluster)
        uses, fewest = self._uses(), min(counts)
        search = StageSearch(
            module, full, flying, memory, self.solver, self.whole_sums, shapes, self.rough, self.axes, uses, fewest
        )
        if self.remat:
            search = replace(search, module=_all_again(module), kept=search)
        try:
            search.check_state()
            found = search.run(counts)
        finally:
            if self.rough:
                _write_useful(module, search.useful, (search.floor, search.eager), search.ahead)
        if self.remat:
            _write_again(module, search.layers_again(found))
        meshes = [search.mesh(c.option, f"stage_{s}") for s, c in enumerate(found.stages)]
        stages, devices_of_stages = [], search.place(found)
        assert devices_of_stages is not None
        for choice, mesh, devices_of in zip(found.stages, meshes, devices_of_stages, strict=True):
            known = (search.cost_of(choice), search.parts_of(choice))
            stages.append(Stage(choice.first, choice.last, mesh, devices_of, *known))
        return stages, found.cost

    def _interleave(self, module: ir.Module, cluster: Cluster, layers: int) -> tuple[list[Stage], float]:
        """Stages that take turns on equal submeshes; their seconds are those of the simulated step."""
        if len(cluster.parts) > 1:
            raise CompileError(
                f"an interleaved pipeline needs equal devices, cluster {cluster.name} has {len(cluster.parts)} groups",
                module.operation.location,
            )
        solved = self._profiler(module, cluster)
        profiler = ListedStages(self._pricer(module, solved), cluster) if self.rough else solved
        on_offer = submesh_shapes(cluster, self.axes)
        wanted = [parse_mesh(text) for text in self.meshes.split(",") if text]
        shapes = [shape for shape in on_offer if shape in wanted] or on_offer
        every = interleavings(profiler, cluster, shapes, layers, solved.program.microbatches, self.stages, self.chunks)
        if self.rough:
            _write_useful(module, near_shapes(every, cluster.device_count), (0.0, 0.0))
        if not every:
            asked = (
                f"{self.stages or 'any number of'} stages, {self.chunks or f'{CHUNKS[0]} to {CHUNKS[-1]}'} a submesh"
            )
            few = " (it has at least two submeshes, each of two stages or more)" if 0 < self.stages < 4 else ""
            raise CompileError(
                f"no interleaved pipeline ({asked}) of {layers} layers suits {cluster.device_count} devices within "
                f"{cluster.memory / 1e6:.6g} MB each{few}",
                module.operation.location,
            )
        found = every[0]
        size = found.mesh.device_count
        meshes = [Mesh(f"stage_{lane}", found.mesh.axes) for lane in range(found.lanes)]
        stages = []
        for s, (first, last) in enumerate(found.stages):
            lane = s % found.lanes
            devices = tuple(range(lane * size, (lane + 1) * size))
            stages.append(Stage(first, last, meshes[lane], devices, found.costs[s], found.parts[s]))
        return stages, found.step.makespan


def _write_useful(
    module: ir.Module,
    shapes: Sequence[tuple[int, ...]],
    floors: tuple[float, float],
    ahead: Sequence[float] = (),
) -> None:
    """For other settings: the logical meshes that were of use, and the seconds that a step takes at least."""
    alpa.set_string(module.operation, alpa.MESHES, ",".join("x".join(map(str, shape)) for shape in shapes))
    with ir.Location.unknown(module.context):
        module.operation.attributes[alpa.FLOOR] = ir.DenseF64ArrayAttr.get(list(floors))
        module.operation.attributes[alpa.AHEAD] = ir.DenseF64ArrayAttr.get(list(ahead))


def _all_again(module: ir.Module) -> ir.Module:
    """A module of which all layers run again."""
    again = clone_module(module)
    Rematerialize().apply(again, [])
    return again


def _write_again(module: ir.Module, layers: Sequence[int]) -> None:
    """The layers that are to run again."""
    module.operation.attributes[alpa.REMAT] = ir.DenseI64ArrayAttr.get(list(layers), module.context)


def _too_few_layers(module: ir.Module, stages: int, layers: int) -> CompileError:
    """The error for more stages than layers; a loop over layers, the usual reason, gets a note."""
    ops = [op.operation for op in functions(module)["microbatch"].regions[0].blocks[0].operations]
    notes = [
        Remark(
            f"all of this {op.name} is one layer: it stays a loop (see unroll)",
            location_text(op.location),
            "note",
        )
        for op in ops
        if op.name not in CONTRACTIONS and contracts(op) and alpa.get_string(op, alpa.PHASE) == "forward"
    ]
    what = f"{layers} layer{'s' if layers != 1 else ''}"
    return CompileError(f"{stages} stages cannot be made of {what}", module.operation.location, notes)


def _in_flight(module: ir.Module, schedule: str) -> InFlight:
    """What the search reckons with: the weight parts that zero-bubble schedules leave behind keep little else."""
    microbatches = alpa.get_int(module.operation, alpa.MICROBATCHES) or 1
    known = "1f1b" if schedule in SPLIT_BACKWARD else schedule
    return InFlight(known if has_backward(module) else "inference", microbatches)


def has_backward(module: ir.Module) -> bool:
    """Whether a layered module has a backward pass."""
    body = functions(module)["microbatch"].regions[0].blocks[0]
    return any(alpa.get_string(op, alpa.PHASE) == "backward" for op in body.operations)


def _single_stage(text: str, cluster: Cluster, layers: int, stages: int) -> Stage:
    shape = parse_mesh(text)
    if prod(shape) != cluster.device_count:
        raise CompileError(
            f"the mesh {text} has {prod(shape)} devices, but the cluster has {cluster.device_count} "
            f"({cluster.nodes} nodes of {cluster.devices_per_node}): their numbers must agree"
        )
    if len(cluster.parts) > 1:
        raise CompileError(
            f"the mesh {text} makes one stage of all devices, but cluster {cluster.name} has {len(cluster.parts)} "
            "groups of different ones"
        )
    if stages > 1:
        raise CompileError(f"the mesh {text} makes one stage, but stages={stages}")
    return Stage(0, layers - 1, Mesh.from_shape("stage_0", shape), tuple(range(cluster.device_count)))
