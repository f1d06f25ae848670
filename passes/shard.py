"""`alpa-shard`: a sharding for every value, chosen by the intra-operator program of each stage.

Reads the module once (`intra/program.py`), makes one optimisation problem per stage (`intra/graph.py`),
solves it exactly (`intra/solve.py`), and writes the choice down (`intra/annotate.py`).  Alpa, OSDI'22, §4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text
from alpa_mlir.dialect.mesh import Mesh, declare_mesh, meshes_of, parse_mesh
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster, module_cluster
from alpa_mlir.passes.costs.cluster_table import parse_bytes
from alpa_mlir.passes.inter.schedules import KINDS, Pipeline, in_flight, kind_played, pipeline_of
from alpa_mlir.passes.intra.annotate import Annotator
from alpa_mlir.passes.intra.constraints import Constraint, Pin, parse_constraints
from alpa_mlir.passes.intra.explain_words import Speaker
from alpa_mlir.passes.intra.milp import check_solver
from alpa_mlir.passes.intra.program import Program
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.restrictions import Restrictions, restrict
from alpa_mlir.passes.intra.stage_cost import StageCost, step_seconds
from alpa_mlir.passes.intra.stages import Solved, StageSpec, solve_stages
from alpa_mlir.passes.intra.written import CONSTRAINT, not_kept, pinned_results, written_pins
from alpa_mlir.passes.registry import Pass, option, register

NAMES = "%5, arg3, names of locations or kinds of ops, separated by ; (* and ? match)"


@dataclass(frozen=True, eq=False)
class Decided:
    """What was decided for a module, and from what."""

    program: Program
    meshes: tuple[tuple[Mesh, tuple[int, ...]], ...]
    specs: tuple[StageSpec, ...]
    cluster: Cluster
    restrictions: Restrictions
    solved: Solved


@register
@dataclass(frozen=True)
class Shard(Pass):
    """Choose the sharding of every value and write it down, with explicit reshards.

    IR before: level 4 (`alpa.stages` says each stage's mesh), or any of levels 1 to 3 with `mesh=`: one stage.
    IR after: level 5: `sdy.sharding` on every argument, op result and function result, `sdy.reshard` wherever an
    operand is wanted in another sharding than its value has; predicted seconds and bytes in `alpa.stages`, `alpa.cost`.
    Precondition: static shapes. Postcondition: `alpa-check-shardings` holds.
    `constrain` and the program's own `sdy.sharding` and `sdy.sharding_constraint` are kept (docs/constraints.md).
    """

    name: ClassVar[str] = "alpa-shard"
    mesh: str = option("", "logical mesh of the only stage, for example 2x4; empty: the stages of the module")
    cluster: str = option("", "cluster preset; empty: the module's alpa.cluster, else cpu")
    memory: str = option("", "memory per device, e.g. 16GB, or 16GB,15GB for each submesh; empty: as the cluster says")
    constrain: str = option("", "what must be, e.g. arg0=[{x},{}]; value(name)=[{!y}]; x=zero2 (docs/constraints.md)")
    solver: str = option("highs", "mixed-integer solver: any that CVXPY knows")
    schedule: str = option("1f1b", f"decides how many microbatches are in flight, one of {', '.join(KINDS)}")
    whole_sums: bool = option(False, "reduce sums over microbatches in each (for XLA's partitioner), not once a step")
    statistics: bool = option(False, "remark the sizes of each reduction and solver call")
    explain: str = option("", f"remark why: {NAMES}")
    most: int = option(0, "explain only so many decisions, the dearest; 0: all")
    what_if: str = option("", "remark what more constraints would cost; several cases are separated by |")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        decided = self.decide(module, remarks)
        program, solved, meshes = decided.program, decided.solved, decided.meshes
        self.speak(decided, remarks)
        for mesh, _ in reversed(meshes):
            declare_mesh(module, mesh)
        Annotator(module, program, solved.choices).run()
        pinned = any(isinstance(c, Pin) for c in decided.restrictions.constraints)
        _write(module, decided.cluster, meshes, solved.costs, program.microbatches, pinned)

    def decide(self, module: ir.Module, remarks: list[Remark]) -> Decided:
        """The choice for all stages, before it is written down."""
        if alpa.get_string(module.operation, alpa.LEVEL) in ("split", "plan"):
            raise CompileError("alpa-shard needs a whole program: this one is split already", module.operation.location)
        check_solver(self.solver)
        constraints = parse_constraints(self.constrain)
        _drop_nested(module, remarks)
        cluster = self._cluster(module)
        meshes = self._meshes(module, cluster)
        pinned = {c.number for c in constraints if isinstance(c, Pin) and c.what == "out"} | pinned_results(module)
        program = read_program(module, whole_sums=self.whole_sums, pinned=frozenset(pinned))
        _remark_indivisible(program, remarks)
        specs = self._specs(module, program, meshes, cluster)
        written = written_pins(program, lambda stage: meshes[stage][0], remarks)
        restrictions = restrict(program, [m for m, _ in meshes], [*written, *constraints])
        solved = solve_stages(program, specs, cluster, self.solver, restrictions)
        if self.statistics:
            where = location_text(module.operation.location)
            remarks.extend(
                Remark(f"stage {s}: {line}", where) for s, one in enumerate(solved.stages) for line in one.found.steps
            )
        remarks.extend(not_kept(written, program, solved.choices, [m for m, _ in meshes]))
        return Decided(program, tuple(meshes), specs, cluster, restrictions, solved)

    def speak(self, decided: Decided, remarks: list[Remark]) -> None:
        """The explanations and what-ifs that are asked for."""
        program, meshes = decided.program, [m for m, _ in decided.meshes]

        def seconds(solved: Solved) -> float:
            return step_seconds(solved.costs, program.microbatches)

        speaker = Speaker(program, decided.solved, self.solver, seconds(decided.solved))
        if self.explain:
            remarks.extend(speaker.explain(self.explain, self.most))
        for case in filter(None, (c.strip() for c in self.what_if.split("|"))):
            more = parse_constraints(case)

            def again(more: Sequence[Constraint] = more) -> Solved:
                restrictions = restrict(program, meshes, [*decided.restrictions.constraints, *more])
                return solve_stages(program, decided.specs, decided.cluster, self.solver, restrictions, decided.solved)

            remarks.extend(speaker.what_if(case, again, seconds))

    def _cluster(self, module: ir.Module) -> Cluster:
        memory = parse_bytes(self.memory) if self.memory and "," not in self.memory else 0
        known = load_cluster(self.cluster) if self.cluster else module_cluster(module) or load_cluster("cpu")
        devices = prod(parse_mesh(self.mesh)) if self.mesh else 0
        if devices and not self.cluster and module_cluster(module) is not None and devices != known.device_count:
            raise CompileError(
                f"the mesh {self.mesh} has {devices} devices, but the cluster has {known.device_count} "
                f"({known.nodes} nodes of {known.devices_per_node}): their numbers must agree",
                module.operation.location,
            )
        if devices and known.nodes == 1:
            known = known.with_sizes(devices_per_node=max(devices, known.devices_per_node))
        return known.with_sizes(memory=memory)

    def _meshes(self, module: ir.Module, cluster: Cluster) -> list[tuple[Mesh, tuple[int, ...]]]:
        """Each stage's mesh and devices."""
        attributes = module.operation.attributes
        if self.mesh:
            shape = parse_mesh(self.mesh)
            return [(Mesh.from_shape("stage_0", shape), tuple(range(prod(shape))))]
        if alpa.STAGES not in attributes:
            raise CompileError(
                "no stages: run alpa-stages first, or give the mesh of a single stage (mesh=2x4)",
                module.operation.location,
            )
        declared = meshes_of(module)
        found = []
        for entry in map(ir.DictAttr, ir.ArrayAttr(attributes[alpa.STAGES])):
            mesh = declared[ir.StringAttr(entry["mesh"]).value]
            devices = tuple(ir.DenseI64ArrayAttr(entry["devices"]))
            if len(devices) != mesh.device_count or max(devices) >= cluster.device_count:
                raise CompileError(
                    f"@{mesh.name} arranges {mesh.device_count} devices, {alpa.STAGES} gives it {list(devices)} "
                    f"of the cluster's {cluster.device_count}",
                    module.operation.location,
                )
            found.append((mesh, devices))
        return found

    def _specs(
        self,
        module: ir.Module,
        program: Program,
        meshes: Sequence[tuple[Mesh, tuple[int, ...]]],
        cluster: Cluster,
    ) -> tuple[StageSpec, ...]:
        backward = any(op.phase == "backward" for op in program.ops)
        if backward and self.schedule not in KINDS:
            raise CompileError(
                f"schedule must be one of {', '.join(KINDS)}, got {self.schedule!r}", module.operation.location
            )
        pipeline = pipeline_of([mesh.name for mesh, _ in meshes], program.microbatches)
        schedule = kind_played(self.schedule, backward, pipeline)
        limits = _limits(module, self._memory(module, meshes, cluster), pipeline)
        return tuple(
            StageSpec(mesh, devices[0], in_flight(schedule, s, pipeline), limits[s])
            for s, (mesh, devices) in enumerate(meshes)
        )

    def _memory(self, module: ir.Module, meshes: Sequence[tuple[Mesh, tuple[int, ...]]], cluster: Cluster) -> list[int]:
        """Bytes per device of each stage's submesh."""
        there = [cluster.part_of(devices[0]).memory for _, devices in meshes]
        if "," not in self.memory:
            return there
        names = list(dict.fromkeys(mesh.name for mesh, _ in meshes))
        given = [parse_bytes(text) for text in self.memory.split(",")]
        if len(given) != len(names):
            raise CompileError(
                f"memory says {len(given)} amounts, there are {len(names)} submeshes", module.operation.location
            )
        return [given[names.index(mesh.name)] for mesh, _ in meshes]


def _limits(module: ir.Module, memory: Sequence[int], pipeline: Pipeline) -> list[float]:
    """Bytes per device for each stage, of its devices' `memory`: stages that share a submesh get what they were planned
    with, and equal shares of what is left."""
    if pipeline.chunks == 1:
        return [float(m) for m in memory]
    limit = float(min(memory))
    entries = stage_entries(module)
    planned = [float(ir.IntegerAttr(e["memory_bytes"]).value) if "memory_bytes" in e else 0.0 for e in entries]
    lanes = [sum(planned[s] for s in pipeline.stages_of(lane)) for lane in range(pipeline.lanes)]
    return [planned[s] + max(0.0, limit - lanes[s % pipeline.lanes]) / pipeline.chunks for s in range(pipeline.stages)]


def _drop_nested(module: ir.Module, remarks: list[Remark]) -> None:
    """Sharding constraints inside the regions of ops bind nothing: such regions run whole on every device."""
    for function in functions(module).values():
        for outer in function.regions[0].blocks[0].operations:
            for op in [o for o in alpa.walk(outer.operation) if o.name == CONSTRAINT]:
                text = f"this sharding constraint is ignored: {outer.operation.name} runs whole on every device"
                remarks.append(Remark(text, location_text(op.location)))
                op.results[0].replace_all_uses_with(op.operands[0])
                op.erase()


def _remark_indivisible(program: Program, remarks: list[Remark]) -> None:
    for op in program.ops:
        if op.factors.reason:
            where = location_text(op.op.location)
            remarks.append(Remark(f"{op.op.name} runs replicated on all devices: {op.factors.reason}", where))


def _write(
    module: ir.Module,
    cluster: Cluster,
    meshes: Sequence[tuple[Mesh, tuple[int, ...]]],
    costs: Sequence[StageCost],
    microbatches: int,
    pinned: bool,
) -> None:
    """Predictions, and beside them what the search reckoned with, unless pins, which it knows nothing of, make them
    differ."""
    context, attributes = module.context, module.operation.attributes
    before = [ir.DictAttr(a) for a in ir.ArrayAttr(attributes[alpa.STAGES])] if alpa.STAGES in attributes else []
    stages = []
    with ir.Location.unknown(context):
        f64 = ir.F64Type.get(context)
        for s, ((mesh, devices), cost) in enumerate(zip(meshes, costs, strict=True)):
            entry = {before[s][i].name: before[s][i].attr for i in range(len(before[s]))} if before else {}
            for name in ("microbatch_seconds", "step_seconds"):
                if name in entry and not pinned:
                    entry[f"searched_{name}"] = entry[name]
            entry["mesh"] = alpa.string(mesh.name, context)
            entry["devices"] = ir.DenseI64ArrayAttr.get(list(devices), context=context)
            entry["microbatch_seconds"] = ir.FloatAttr.get(f64, cost.microbatch_seconds)
            entry["step_seconds"] = ir.FloatAttr.get(f64, cost.step_seconds)
            entry["memory_bytes"] = alpa.i64(ceil(cost.memory_bytes), context)
            stages.append(ir.DictAttr.get(dict(sorted(entry.items())), context=context))
        attributes[alpa.COST] = ir.FloatAttr.get(f64, step_seconds(costs, microbatches))
    attributes[alpa.STAGES] = ir.ArrayAttr.get(stages, context=context)
    if alpa.CLUSTER not in attributes:
        attributes[alpa.CLUSTER] = cluster.attribute(context)
    alpa.set_string(module.operation, alpa.LEVEL, "sharded")
