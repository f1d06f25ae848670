"""Scheduling a split step: which submesh does what, when, for all microbatches of a step.

The kind of schedule gives each stage's order (`alpa_mlir.passes.inter.schedules`), the dataflow of `@main` gives
the rest (`alpa_mlir.passes.schedule_lists`).  The result is checked by playing it
(`alpa_mlir.passes.schedule_check`) and sealed with a digest: a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.plan import Schedule, read_pipeline, seal, stage_entries, write_schedules
from alpa_mlir.dialect.staged import Fragment, MeshTensor, PlanMain, Ref, element_bytes, read_main
from alpa_mlir.passes.inter.schedules import KINDS, SPLIT_BACKWARD
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

    kind: str = option("auto", f"{', '.join(KINDS)}, or auto: the quickest by simulation, then the smallest")
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
        pipeline = read_pipeline(module)
        kind = self._kind(module, main, pipeline)
        lists = instruction_lists(main, kind, pipeline)
        write_schedules(module, [Schedule(mesh, kind, lane) for mesh, lane in lists.items()])
        alpa.set_string(module.operation, alpa.LEVEL, "plan")
        _write_cost(module, main, kind)
        check_schedule(module)
        seal(module)

    def _kind(self, module: ir.Module, main: PlanMain, pipeline: Sequence[str]) -> str:
        phases = {s.phase for s in main.steps if isinstance(s, Fragment)}
        location = module.operation.location
        if self.kind == "auto":
            if not phases & {"backward", "weight"}:
                return "inference"
            costs = stage_costs(module, main) or [_ticks(main, s, meshes_of(module)) for s in enumerate(pipeline)]
            return choose(costs, main.microbatches, self.memory or float("inf"), len(set(pipeline))).kind
        if self.kind == "inference" and phases & {"backward", "weight"}:
            raise CompileError("schedule=inference cannot run a backward pass: choose another or auto", location)
        if "weight" in phases and self.kind not in SPLIT_BACKWARD:
            raise CompileError(
                f"schedule={self.kind} runs the backward pass whole, but alpa-split cut it in two: "
                "run alpa-split without weight-apart",
                location,
            )
        return self.kind


def plan_timeline(module: ir.Module) -> Timeline | None:
    """The simulated step of a plan; None where `alpa.stages` does not say the stages' seconds."""
    main = read_main(module)
    costs = stage_costs(module, main)
    kinds = [
        alpa.get_string(op.operation, "kind") for op in module.body.operations if op.operation.name == "alpa.schedule"
    ]
    lanes = len(set(read_pipeline(module)))
    return simulate(kinds[0] or "", costs, main.microbatches, lanes) if costs and kinds else None


def _write_cost(module: ir.Module, main: PlanMain, kind: str) -> None:
    costs = stage_costs(module, main)
    if costs:
        seconds = simulate(kind, costs, main.microbatches, len(set(read_pipeline(module)))).makespan
        double = ir.F64Type.get(module.context)
        with module.context, ir.Location.unknown():
            module.operation.attributes[alpa.COST] = ir.FloatAttr.get(double, seconds)


def stage_costs(module: ir.Module, main: PlanMain) -> list[StageCosts]:
    """The stages' costs from `microbatch_seconds` and `step_seconds` in `alpa.stages`; empty where not all say so."""
    phases = {s.phase for s in main.steps if isinstance(s, Fragment)}
    backward = BACKWARD_SHARE if phases & {"backward", "weight"} else 0.0
    weight = backward / 2 if "weight" in phases else 0.0
    costs = []
    for number, entry in enumerate(stage_entries(module)):
        if "microbatch_seconds" not in entry:
            return []
        seconds = float(ir.FloatAttr(entry["microbatch_seconds"]).value)
        update = float(ir.FloatAttr(entry["step_seconds"]).value) if "step_seconds" in entry else 0.0
        mesh = ir.StringAttr(entry["mesh"]).value
        held = residual_bytes(main, number, meshes_of(module)[mesh])
        parts = (seconds * (1 - backward), seconds * (backward - weight), update)
        costs.append(StageCosts(*parts, weight=seconds * weight, activation_bytes=held))
    return costs


def _ticks(main: PlanMain, stage: tuple[int, str], meshes: dict[str, Mesh]) -> StageCosts:
    return replace(TICKS, activation_bytes=residual_bytes(main, stage[0], meshes[stage[1]]))


def residual_bytes(main: PlanMain, stage: int, mesh: Mesh) -> float:
    """Bytes per device that a stage keeps of one microbatch from its forward part to those behind it."""
    kept: dict[Ref, MeshTensor] = {}
    for step in main.steps:
        if isinstance(step, Fragment) and step.stage == stage and step.phase in ("backward", "weight"):
            for ref in step.operands:
                source = None if ref.is_argument else main.step(ref.op)
                if isinstance(source, Fragment) and (source.stage, source.phase) == (stage, "forward"):
                    kept[ref] = main.type_of(ref)
    return sum(local_bytes(kind, mesh) for kind in kept.values())


def local_bytes(kind: MeshTensor, mesh: Mesh) -> float:
    """Bytes that one device holds of a value."""
    return prod(kind.sharding.local_shape(kind.shape, mesh)) * element_bytes(kind.element)
