"""`alpa-parallelize-pipeline`: from a program to a plan.

Which passes run with which options says `plan_passes.py`, what is tried and in which order `road.py`.
`alpa_mlir.planner.plan` and the command `alpa-mlir-plan` run the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, replace_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.passes.costs.cluster import choose_cluster
from alpa_mlir.passes.inter.meshes import MESH_AXES
from alpa_mlir.passes.memo import remembering_meanwhile
from alpa_mlir.passes.plan_passes import PARTITIONERS, SCHEDULES, PlanOptions, normalize, unstack
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.road import Progress, Road
from alpa_mlir.passes.settings import AUTO, Considered
from alpa_mlir.passes.unroll import UNROLL, UNROLL_LAYERS


def plan(
    module: ir.Module,
    options: PlanOptions,
    remarks: list[Remark] | None = None,
    progress: Progress | None = None,
    stop_after: str = "",
) -> ir.Module:
    """The plan of a program as a new module; the program itself is left alone.

    Notes to the user are appended to `remarks`. `stop_after` names the last pass to run. Raises `CompileError`
    where the program or what is asked of it cannot be.
    """
    notes: list[Remark] = [] if remarks is None else remarks
    road = Road(options, progress, stop_after)
    normal, stopped = _normal(road, module, notes)
    with remembering_meanwhile():
        return normal if stopped else road.choose(normal, notes)


def foresee(module: ir.Module, options: PlanOptions) -> Considered:
    """What `plan` would begin with, in a part of its time: the setting whose step is quickest at prices.

    Its seconds are those of stages whose shardings were not solved, so about right only. Raises `CompileError` where no
    setting can be.
    """
    road = Road(options, None, "")
    normal, _ = _normal(road, module, [])
    with remembering_meanwhile():
        return road.foresee(normal)


def _normal(road: Road, module: ir.Module, notes: list[Remark]) -> tuple[ir.Module, bool]:
    """Level 1 of a program; whether the road ends there."""
    alpa.verify(module)
    normal = clone_module(module)
    stopped = road.run(normal, [normalize(road.options), *unstack(road.options)], notes)
    normal.operation.attributes[alpa.CLUSTER] = road.options.cluster.attribute(normal.context)
    return normal, stopped


@register
@dataclass(frozen=True)
class Parallelize(Pass):
    """All passes from a program to a plan, as `alpa-mlir-plan` runs them, with the same result.

    IR before: level 0 (any StableHLO program). IR after: level 7 (`alpa.level = "plan"`).
    Precondition: `cluster` names a preset, or the module carries `alpa.cluster`.
    """

    name: ClassVar[str] = "alpa-parallelize-pipeline"
    cluster: str = option("", "cluster preset; empty: the module's alpa.cluster")
    nodes: int = option(0, "number of nodes; 0: as the cluster says")
    devices_per_node: int = option(0, "devices of each node; 0: as the cluster says")
    memory: str = option("", "memory per device, for example 16GB; empty: as the cluster says")
    mesh: str = option("", "one stage on this logical mesh, for example 2x4: no search over stages")
    microbatches: int = option(0, "microbatches per step; 0: the best")
    stages: int = option(0, "number of stages; 0: the best")
    layers: int = option(0, "number of layers that stages are made of; 0: chosen")
    schedule: str = option("auto", f"one of {', '.join(SCHEDULES)}")
    partitioner: str = option("local", "explicit collectives (local) or XLA's Shardy (xla)")
    batch_args: str = option("", "numbers of the arguments that hold the batch, e.g. 3,5-7, or none")
    state_args: str = option("", "numbers of the arguments that results replace every step, e.g. 0-2, or none")
    allow_per_microbatch_statistics: bool = option(False, "batch statistics may be those of a microbatch")
    solver: str = option("highs", "mixed-integer solver, any that CVXPY knows")
    remat: str = option(AUTO, "layers whose forward ops run again in the backward pass: auto, none, full or 0-3,5")
    chunks: int = option(0, "stages that share a submesh, with schedule=interleaved; 0: the best")
    constrain: str = option("", "shardings that must be, e.g. arg0=[{x},{}]; y=tensor (docs/constraints.md)")
    unroll: int = option(
        UNROLL,
        "most ops that a loop of a known number of rounds may become (over layers ten times as many), or 0: keep loops",
    )
    unroll_layers: int = option(
        UNROLL_LAYERS,
        "a loop over more layers than this is planned as loops over groups of them, each in one stage; 0: none is",
    )
    unstack: bool = option(True, "keep arrays that hold a slice for each layer in parts")
    axes: int = option(MESH_AXES, "axes of a stage's logical mesh at most: 1, 2 or 3")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Replace the program in `module` by its plan."""
        location = module.operation.location
        for what, given, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("partitioner", self.partitioner, PARTITIONERS),
        ):
            if given not in known:
                raise CompileError(f"the {what} must be one of {', '.join(known)}, got '{given}'", location)
        for what, number in (("microbatches", self.microbatches), ("stages", self.stages), ("layers", self.layers)):
            if number < 0:
                raise CompileError(f"the number of {what} must not be negative, got {number}", location)
        options = PlanOptions(
            choose_cluster(module, self.cluster, self.nodes, self.devices_per_node, self.memory),
            self.mesh,
            self.microbatches,
            self.stages,
            self.layers,
            self.schedule,
            self.partitioner,
            self.batch_args,
            self.state_args,
            self.allow_per_microbatch_statistics,
            self.solver,
            self.remat,
            self.chunks,
            self.constrain,
            unroll=self.unroll,
            axes=self.axes,
            unstack=self.unstack,
            unroll_layers=self.unroll_layers,
        )
        replace_module(module, plan(module, options, remarks))
