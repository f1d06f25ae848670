"""Scheduling a split step: which submesh does what, when, for all microbatches of a step.

The kind of schedule gives each stage's order (`alpa_mlir.passes.inter.schedules`), the dataflow of `@main` gives
the rest (`alpa_mlir.passes.schedule_lists`).  The result is checked by playing it
(`alpa_mlir.passes.schedule_check`) and sealed with a digest: a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.plan import Schedule, read_stages, seal, write_schedules
from alpa_mlir.dialect.staged import Fragment, MeshTensor, PlanMain, Ref, element_bytes, read_main
from alpa_mlir.passes.inter.schedules import KINDS
from alpa_mlir.passes.inter.simulate import StageCosts, Timeline, choose, simulate
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.schedule_check import check_schedule
from alpa_mlir.passes.schedule_lists import TICKS, instruction_lists

BACKWARD_SHARE = 2.0 / 3.0
"""Share of a microbatch's time that is backward: two products per product of the forward pass."""


@register
@dataclass(frozen=True)
class SchedulePass(Pass):
    """Write one instruction list per submesh: the module becomes a plan.

    IR before: level 6, possibly localized. IR after: level 7: an `"alpa.schedule"` op per submesh, `alpa.digest`,
    `alpa.level = "plan"`; `alpa.cost` is the simulated length of a step where `alpa.stages` says the stages' seconds.
    Postcondition: `alpa-check-schedule` accepts the module.
    """

    name: ClassVar[str] = "alpa-schedule"

    kind: str = option("auto", "1f1b, gpipe, inference, or auto: the quickest by simulation, then the smallest")
    memory: float = option(0.0, "bytes per device that auto keeps a stage's activations within; 0: no limit")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        if self.kind not in (*KINDS, "auto"):
            raise CompileError(f"unknown schedule {self.kind!r}: expected {', '.join(KINDS)} or auto")
        level = alpa.get_string(module.operation, alpa.LEVEL)
        if level not in ("split", "plan"):
            raise CompileError(
                f"alpa-schedule needs a split module (alpa.level is {level!r}): run alpa-split first",
                module.operation.location,
            )
        main = read_main(module)
        meshes = list(read_stages(module))
        kind = self._kind(module, main, meshes)
        lists = instruction_lists(main, kind, meshes)
        write_schedules(module, [Schedule(mesh, kind, lists[mesh]) for mesh in meshes])
        alpa.set_string(module.operation, alpa.LEVEL, "plan")
        _write_cost(module, main, kind)
        check_schedule(module)
        seal(module)

    def _kind(self, module: ir.Module, main: PlanMain, meshes: Sequence[str]) -> str:
        trains = any(isinstance(s, Fragment) and s.phase == "backward" for s in main.steps)
        if self.kind == "auto":
            if not trains:
                return "inference"
            costs = stage_costs(module, main) or [_ticks(main, mesh, meshes_of(module)) for mesh in meshes]
            return choose(costs, main.microbatches, self.memory or float("inf")).kind
        if trains and self.kind == "inference":
            raise CompileError(
                "schedule=inference cannot run a backward pass: choose 1f1b, gpipe or auto", module.operation.location
            )
        return self.kind


def plan_timeline(module: ir.Module) -> Timeline | None:
    """The simulated step of a plan; None where `alpa.stages` does not say the stages' seconds."""
    main = read_main(module)
    costs = stage_costs(module, main)
    kinds = [
        alpa.get_string(op.operation, "kind") for op in module.body.operations if op.operation.name == "alpa.schedule"
    ]
    return simulate(kinds[0] or "", costs, main.microbatches) if costs and kinds else None


def _write_cost(module: ir.Module, main: PlanMain, kind: str) -> None:
    costs = stage_costs(module, main)
    if costs:
        seconds = simulate(kind, costs, main.microbatches).makespan
        double = ir.F64Type.get(module.context)
        with module.context, ir.Location.unknown():
            module.operation.attributes[alpa.COST] = ir.FloatAttr.get(double, seconds)


def stage_costs(module: ir.Module, main: PlanMain) -> list[StageCosts]:
    """The stages' costs from `microbatch_seconds` and `step_seconds` in `alpa.stages`; empty where not all say so."""
    trains = any(isinstance(s, Fragment) and s.phase == "backward" for s in main.steps)
    backward = BACKWARD_SHARE if trains else 0.0
    costs = []
    for attribute in ir.ArrayAttr(module.operation.attributes[alpa.STAGES]):
        entry = ir.DictAttr(attribute)
        if "microbatch_seconds" not in entry:
            return []
        seconds = float(ir.FloatAttr(entry["microbatch_seconds"]).value)
        update = float(ir.FloatAttr(entry["step_seconds"]).value) if "step_seconds" in entry else 0.0
        mesh = ir.StringAttr(entry["mesh"]).value
        held = residual_bytes(main, mesh, meshes_of(module))
        costs.append(StageCosts(seconds * (1 - backward), seconds * backward, update, activation_bytes=held))
    return costs


def _ticks(main: PlanMain, mesh: str, meshes: dict[str, Mesh]) -> StageCosts:
    held = residual_bytes(main, mesh, meshes)
    return StageCosts(TICKS["forward"], TICKS["backward"], activation_bytes=held)


def residual_bytes(main: PlanMain, mesh: str, meshes: dict[str, Mesh]) -> float:
    """Bytes per device that a stage keeps of one microbatch from its forward to its backward part."""
    kept: dict[Ref, MeshTensor] = {}
    for step in main.steps:
        if isinstance(step, Fragment) and step.mesh == mesh and step.phase == "backward":
            for ref in step.operands:
                source = None if ref.is_argument else main.step(ref.op)
                if isinstance(source, Fragment) and source.mesh == mesh and source.phase == "forward":
                    kept[ref] = main.type_of(ref)
    return sum(local_bytes(kind, meshes[mesh]) for kind in kept.values())


def local_bytes(kind: MeshTensor, mesh: Mesh) -> float:
    """Bytes that one device holds of a value."""
    return prod(kind.sharding.local_shape(kind.shape, mesh)) * element_bytes(kind.element)
