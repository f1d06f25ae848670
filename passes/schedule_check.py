"""Playing a plan's instruction lists, to prove that they can be executed.

Rules, cited in the error texts:

* (S1) each list names only ops of `@main` that its submesh takes part in, and the right microbatch;
* (S2) every run, send, receive and accumulation happens exactly once (per microbatch or per step);
* (S3) what an instruction reads exists on its submesh at that point and has not been freed;
* (S4) a value is freed once, where it is, and never if it is a result of the step;
* (S5) between two submeshes sends and receives come in the same order;
* (S6) in-order execution ends with sends that never block and with sends that block until received;
* (S7) a stage holds the forward results of no more microbatches than its kind of schedule allows (1F1B: p-s in
  stage s of p);
* (S8) at the end a submesh holds the step's results and nothing else.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.plan import ONCE, Combine, Free, Instruction, Plan, Recv, Run, Schedule, Send, read_plan
from alpa_mlir.dialect.staged import Accumulate, Fragment, Index, PlanMain, Ref, Slice, Stack, Step, Transfer
from alpa_mlir.passes.inter.schedules import KINDS, in_flight, last_part
from alpa_mlir.passes.registry import Pass, register
from alpa_mlir.passes.schedule_lists import Use, makes, pipeline_of, uses


@register
@dataclass(frozen=True)
class CheckSchedule(Pass):
    """Check that the instruction lists of a plan can be executed; changes nothing.

    Rules S1 to S8: complete, no use before definition or after free, the same order of messages on both
    sides, no deadlock, microbatches in flight within the schedule's bound.
    """

    name: ClassVar[str] = "alpa-check-schedule"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        check_schedule(module)


def check_schedule(module: ir.Module) -> None:
    """CompileError unless the lists of a plan obey S1 to S8."""
    check_plan(read_plan(module))


def check_plan(plan: Plan) -> None:
    """The same for a decoded plan."""
    if sorted(s.mesh for s in plan.schedules) != sorted(plan.stages):
        raise CompileError("a plan has one alpa.schedule for each submesh (S1)")
    for kind in (s.kind for s in plan.schedules):
        if kind not in KINDS:
            raise CompileError(f"unknown schedule {kind!r}: expected {', '.join(KINDS)} (S1)")
    expected = _expected(plan.main)
    for schedule in plan.schedules:
        _check_list(plan, schedule, expected)
    _check_order(plan)
    for rendezvous in (False, True):
        _play(plan, rendezvous)


def _expected(main: PlanMain) -> dict[str, Counter[Instruction]]:
    """Per submesh all instructions but frees, with their number."""
    found: dict[str, Counter[Instruction]] = {}
    for step in main.steps:
        collects = isinstance(step, (Accumulate, Stack))
        many = collects or main.runs_per_microbatch(step)
        for m in range(main.microbatches) if many else (ONCE,):
            for mesh, instruction in _halves(main, step, m):
                found.setdefault(mesh, Counter())[instruction] += 1
    return found


def _halves(main: PlanMain, step: Step, m: int) -> list[tuple[str, Instruction]]:
    if isinstance(step, Fragment):
        return [(step.mesh, Run(step.id, m))]
    there = step.results[0].mesh
    if isinstance(step, Transfer):
        return [(main.type_of(step.operands[0]).mesh, Send(step.id, m)), (there, Recv(step.id, m))]
    if isinstance(step, (Slice, Index)):
        return [(there, Run(step.id, m))]
    return [(there, Combine(step.id, m))]


def _check_list(plan: Plan, schedule: Schedule, expected: dict[str, Counter[Instruction]]) -> None:
    wanted = expected.get(schedule.mesh, Counter())
    given = Counter(i for i in schedule.instructions if not isinstance(i, Free))
    for instruction, count in given.items():
        if instruction not in wanted:
            raise _error(schedule, f"{_text(instruction)} has no place in @main here (S1)")
        if count != wanted[instruction]:
            raise _error(schedule, f"{_text(instruction)} stands {count} times instead of once (S2)")
    for missing in wanted:
        if missing not in given:
            raise _error(schedule, f"{_text(missing)} is missing (S2)")
    _check_values(plan, schedule)


def _check_values(plan: Plan, schedule: Schedule) -> None:
    """S3, S4, S7 and S8 along one list; receives are taken to arrive."""
    lane = _Lane(plan, schedule)
    for instruction in schedule.instructions:
        lane.step(instruction)
    left = [use for use in lane.held if use[0] not in plan.main.returned]
    if left:
        raise _error(schedule, f"value {_name(left[0])} is never freed (S8)")


@dataclass
class _Lane:
    """The values that a submesh holds while its list is walked."""

    plan: Plan
    schedule: Schedule
    held: dict[Use, None] = field(default_factory=dict)
    gone: set[Use] = field(default_factory=set)
    in_flight: dict[int, set[int]] = field(default_factory=dict)
    allowed: dict[int, int] = field(default_factory=dict)
    last: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Per stage the last part of a microbatch (as far as the stage has it) and the bound of S7."""
        main, kind = self.plan.main, self.schedule.kind
        pipeline = pipeline_of(self.plan.pipeline, main.microbatches)
        for step in main.steps:
            if isinstance(step, Fragment) and step.mesh == self.schedule.mesh and main.runs_per_microbatch(step):
                if self.last.get(step.stage) != last_part(kind):
                    self.last[step.stage] = step.phase
                self.allowed.setdefault(step.stage, in_flight(kind, step.stage, pipeline))

    def step(self, instruction: Instruction) -> None:
        """Check one instruction and apply it."""
        main = self.plan.main
        if isinstance(instruction, Free):
            self._free(instruction)
            return
        for use in uses(main, instruction):
            if use not in self.held:
                why = "after it was freed" if use in self.gone else "before it is there"
                raise _error(self.schedule, f"{_text(instruction)} reads value {_name(use)} {why} (S3)")
        for use in makes(main, instruction):
            if use in self.gone:
                raise _error(self.schedule, f"{_text(instruction)} makes value {_name(use)} after it was freed (S3)")
            self.held[use] = None
        if isinstance(instruction, Run):
            self._count(instruction)

    def _free(self, instruction: Free) -> None:
        use = (instruction.value, instruction.microbatch)
        if use not in self.held:
            raise _error(self.schedule, f"value {_name(use)} is freed where it is not held (S4)")
        if use[0] in self.plan.main.returned:
            raise _error(self.schedule, f"value {_name(use)} is a result of the step, but freed (S4)")
        del self.held[use]
        self.gone.add(use)

    def _count(self, run: Run) -> None:
        step = self.plan.main.step(run.id)
        if not isinstance(step, Fragment) or run.microbatch == ONCE or step.stage not in self.allowed:
            return
        flying = self.in_flight.setdefault(step.stage, set())
        flying.add(run.microbatch)
        if len(flying) > self.allowed[step.stage]:
            allowed = self.allowed[step.stage]
            raise _error(self.schedule, f"{len(flying)} microbatches in flight, at most {allowed} allowed (S7)")
        if step.phase == self.last[step.stage]:
            flying.discard(run.microbatch)


def _check_order(plan: Plan) -> None:
    """S5: per ordered pair of submeshes the sequence of sends equals that of receives."""
    sent: dict[tuple[str, str], list[tuple[int, int]]] = {}
    received: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for schedule in plan.schedules:
        for i in schedule.instructions:
            if isinstance(i, (Send, Recv)):
                step = plan.main.step(i.id)
                pair = (plan.main.type_of(step.operands[0]).mesh, step.results[0].mesh)
                (sent if isinstance(i, Send) else received).setdefault(pair, []).append((i.id, i.microbatch))
    for (source, target), order in sent.items():
        if received.get((source, target)) != order:
            raise CompileError(f"{source} sends to {target} in another order than {target} receives (S5)")


def _play(plan: Plan, rendezvous: bool) -> None:
    """S6: walk all lists side by side until they end or none can go on."""
    lanes = [deque(i for i in s.instructions if isinstance(i, (Run, Send, Recv))) for s in plan.schedules]
    heads = {s.mesh: lane for s, lane in zip(plan.schedules, lanes, strict=True)}
    arrived: set[tuple[int, int]] = set()
    moved = True
    while moved:
        moved = False
        for lane in lanes:
            while lane and _can_go(plan, heads, lane[0], arrived, rendezvous):
                lane.popleft()
                moved = True
    for schedule, lane in zip(plan.schedules, lanes, strict=True):
        if lane:
            sends = "sends that block until received" if rendezvous else "sends that never block"
            raise _error(schedule, f"{_text(lane[0])} waits for ever with {sends} (S6)")


def _can_go(
    plan: Plan,
    heads: dict[str, deque[Run | Send | Recv]],
    head: Run | Send | Recv,
    arrived: set[tuple[int, int]],
    rendezvous: bool,
) -> bool:
    message = (head.id, head.microbatch)
    if isinstance(head, Recv):
        return message in arrived
    if isinstance(head, Send):
        target = heads[plan.main.step(head.id).results[0].mesh]
        if rendezvous and (not target or target[0] != Recv(head.id, head.microbatch)):
            return False
        arrived.add(message)
    return True


def _error(schedule: Schedule, message: str) -> CompileError:
    return CompileError(f"schedule of {schedule.mesh}: {message}")


def _text(instruction: Instruction) -> str:
    if isinstance(instruction, Free):
        return f"free of {_name((instruction.value, instruction.microbatch))}"
    word = {Run: "run", Send: "send", Recv: "receive", Combine: "accumulation"}[type(instruction)]
    when = "once per step" if instruction.microbatch == ONCE else f"of microbatch {instruction.microbatch}"
    return f"{word} {instruction.id} {when}"


def _name(use: Use) -> str:
    ref: Ref = use[0]
    return f"{ref.op}.{ref.result}" + ("" if use[1] == ONCE else f" of microbatch {use[1]}")
