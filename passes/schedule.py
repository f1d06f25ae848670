"""Scheduling a split step: which submesh does what, when, for all microbatches of a step.

The kind of schedule gives each submesh's order (`alpa_mlir.passes.inter.schedules`), the dataflow of `@main` gives
the rest (`alpa_mlir.passes.schedule_lists`).  The result is checked by playing it (`alpa_mlir.passes.schedule_check`),
timed by playing it on the costs that `alpa-price` wrote (`alpa_mlir.passes.schedule_timeline`), and sealed with a
digest: a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.plan import (
    Plan,
    Schedule,
    read_pipeline,
    read_plan,
    read_stages,
    seal,
    stage_entries,
    write_schedules,
)
from alpa_mlir.dialect.staged import Fragment, PlanMain
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.costs.limits import fullest, memory_limits
from alpa_mlir.passes.inter.schedules import KINDS, SPLIT_BACKWARD
from alpa_mlir.passes.inter.simulate import TIE, Timeline
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.schedule_check import check_plan
from alpa_mlir.passes.schedule_lists import TICKS, instruction_lists
from alpa_mlir.passes.schedule_timeline import PlanCosts, play_plan, read_costs


@register
@dataclass(frozen=True)
class SchedulePass(Pass):
    """Write one instruction list per submesh: the module becomes a plan.

    IR before: level 6, possibly localized. IR after: level 7: an `"alpa.schedule"` op per submesh, `alpa.digest`,
    `alpa.level = "plan"`; where `alpa-price` ran also `alpa.cost`, the simulated length of a step in seconds, and
    `peak_bytes` in `alpa.stages`, the simulated peak of the stage's submesh.
    Postcondition: `alpa-check-schedule` accepts the module.
    """

    name: ClassVar[str] = "alpa-schedule"

    kind: str = option("auto", f"{', '.join(KINDS)}, or auto: the quickest by simulation, then the smallest")
    memory: float = option(0.0, "bytes per device that auto keeps within; 0: as the cluster says")
    join: bool = option(True, "neighbouring stage functions of a submesh become one program where they can (J1 to J4)")

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
        costs = read_costs(module, main)
        plans = {kind: scheduled(module, main, kind, self.join) for kind in self._kinds(module, main)}
        kind = next(iter(plans)) if len(plans) == 1 else self._quickest(module, plans, costs)
        write_schedules(module, plans[kind].schedules)
        alpa.set_string(module.operation, alpa.LEVEL, "plan")
        check_plan(plans[kind])
        timeline = play_plan(plans[kind], costs) if costs is not None else None
        if timeline is not None:
            _write_cost(module, timeline)
        _played.clear()
        _played[seal(module)] = timeline

    def _kinds(self, module: ir.Module, main: PlanMain) -> tuple[str, ...]:
        """The kinds to choose from; CompileError where the one asked for does not suit the functions."""
        phases = {s.phase for s in main.steps if isinstance(s, Fragment)}
        trains, apart = bool(phases & {"backward", "weight"}), "weight" in phases
        location = module.operation.location
        if self.kind == "auto":
            pipeline = read_pipeline(module)
            whole = ("1f1b", "eager-1f1b", "gpipe") if len(set(pipeline)) == len(pipeline) else ("interleaved", "gpipe")
            return (SPLIT_BACKWARD if apart else whole) if trains else ("inference",)
        if self.kind == "inference" and trains:
            raise CompileError("schedule=inference cannot run a backward pass: choose another or auto", location)
        if apart and self.kind not in SPLIT_BACKWARD:
            raise CompileError(
                f"schedule={self.kind} runs the backward pass whole, but alpa-split cut it in two: "
                "run alpa-split without weight-apart",
                location,
            )
        return (self.kind,)

    def _quickest(self, module: ir.Module, plans: dict[str, Plan], costs: PlanCosts | None) -> str:
        """Of the plans that fit the quickest, of equally quick ones the smallest; else the one that needs least."""
        limits = memory_limits(module)
        if self.memory:
            limits = (self.memory,) * len(limits)
        played = {kind: play_plan(plan, costs or unit_costs(plan.main, kind)) for kind, plan in plans.items()}
        peaks = {kind: max(timeline.peak_bytes) for kind, timeline in played.items()}
        over = {kind: fullest(timeline.peak_bytes, limits) for kind, timeline in played.items()}
        fitting = [kind for kind, (needed, there) in over.items() if needed <= there]
        least = min((played[kind].makespan for kind in fitting), default=0.0)
        quick = [kind for kind in fitting if played[kind].makespan <= least * (1 + TIE)]
        return min(quick or list(played), key=lambda kind: peaks[kind])


def scheduled(module: ir.Module, main: PlanMain, kind: str, join: bool = True) -> Plan:
    """A split module with the instruction lists of a kind of schedule; `main` is its step, or one of fewer
    microbatches."""
    pipeline = read_pipeline(module)
    lists = instruction_lists(main, kind, pipeline, join)
    schedules = tuple(Schedule(mesh, kind, lane) for mesh, lane in lists.items())
    return Plan(read_stages(module), main, schedules, None, pipeline)


def plan_timeline(module: ir.Module) -> Timeline | None:
    """The simulated step of a plan; None where `alpa-price` did not say what its functions cost."""
    plan = read_plan(module)
    costs = read_costs(module, plan.main)
    return play_plan(plan, costs) if costs is not None else None


def unit_costs(main: PlanMain, kind: str) -> PlanCosts:
    """Costs where none are known: equal stages (forward 1, backward and weight 1), nothing held inside functions."""
    fragments: Sequence[Fragment] = [s for s in main.steps if isinstance(s, Fragment)]
    seconds = {s.id: TICKS.seconds(kind, s.phase) for s in fragments if main.runs_per_microbatch(s)}
    names = [s.function for s in fragments]
    return PlanCosts(seconds, {}, dict.fromkeys(names, 0.0), {name: {} for name in names})


def _write_cost(module: ir.Module, timeline: Timeline) -> None:
    context = module.context
    peaks = dict(zip(dict.fromkeys(read_pipeline(module)), timeline.peak_bytes, strict=True))
    with ir.Location.unknown(context):
        module.operation.attributes[alpa.COST] = ir.FloatAttr.get(ir.F64Type.get(context), timeline.makespan)
        entries = []
        for before in stage_entries(module):
            entry = {before[i].name: before[i].attr for i in range(len(before))}
            entry["peak_bytes"] = alpa.i64(ceil(peaks[ir.StringAttr(entry["mesh"]).value]), context)
            entries.append(ir.DictAttr.get(dict(sorted(entry.items())), context))
        module.operation.attributes[alpa.STAGES] = ir.ArrayAttr.get(entries, context)


_played: dict[str, Timeline | None] = {}
"""The simulated step of the plan that was sealed last, by its digest."""


def sealed_timeline(module: ir.Module) -> Timeline | None:
    """`plan_timeline` of a plan as it was when it was sealed."""
    sealed = alpa.get_string(module.operation, alpa.DIGEST) or ""
    return _played[sealed] if sealed in _played else plan_timeline(module)
