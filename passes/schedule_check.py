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
* (S8) at the end a submesh holds the step's results and nothing else;
* (S9) a joined run is of a stage function and follows another, of the same microbatch where there are several, with
  nothing between them but frees and, of a single microbatch, accumulations.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.once import Once
from alpa_mlir.dialect.plan import ONCE, Combine, Free, Instruction, Plan, Recv, Run, Schedule, Send, read_plan
from alpa_mlir.dialect.staged import Fragment, Index, PlanMain, Ref, Slice, Step, Transfer
from alpa_mlir.passes.inter.schedules import KINDS, in_flight, last_part, pipeline_of
from alpa_mlir.passes.registry import Pass, register
from alpa_mlir.passes.schedule_values import Bundle, Values, positions

Part = tuple[type[Instruction], int]
"""What an instruction does with which op of `@main`."""


@register
@dataclass(frozen=True)
class CheckSchedule(Pass):
    """Check that the instruction lists of a plan can be executed; changes nothing.

    Rules S1 to S9: complete, no use before definition or after free, the same order of messages on both
    sides, no deadlock, microbatches in flight within the schedule's bound, joined runs side by side.
    """

    name: ClassVar[str] = "alpa-check-schedule"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        check_schedule(module)


def check_schedule(module: ir.Module) -> None:
    """CompileError unless the lists of a plan obey S1 to S9."""
    check_plan(read_plan(module))


def check_plan(plan: Plan, *, blocking: bool = True) -> None:
    """The same for a decoded plan; without `blocking` S6 is asked for with sends that never block alone."""
    if sorted(s.mesh for s in plan.schedules) != sorted(plan.stages):
        raise CompileError("a plan has one alpa.schedule for each submesh (S1)")
    for kind in (s.kind for s in plan.schedules):
        if kind not in KINDS:
            raise CompileError(f"unknown schedule {kind!r}: expected {', '.join(KINDS)} (S1)")
    expected, values = _expected(plan.main), Values(plan.main)
    for schedule in plan.schedules:
        _check_complete(plan.main, schedule, expected.get(schedule.mesh, {}))
        _check_values(plan, schedule, values)
        _check_joined(plan.main, schedule)
    _check_order(plan)
    for rendezvous in (False, True) if blocking else (False,):
        _play(plan, rendezvous)


def _expected(main: PlanMain) -> dict[str, dict[Part, None]]:
    """Per submesh what it does, in the order of `@main`."""
    found: dict[str, dict[Part, None]] = {}
    for step in main.steps:
        for mesh, kind in _halves(main, step):
            found.setdefault(mesh, {})[kind, step.id] = None
    return found


def _halves(main: PlanMain, step: Step) -> list[tuple[str, type[Instruction]]]:
    if isinstance(step, Fragment):
        return [(step.mesh, Run)]
    there = step.results[0].mesh
    if isinstance(step, Transfer):
        return [(main.type_of(step.operands[0]).mesh, Send), (there, Recv)]
    return [(there, Run if isinstance(step, (Slice, Index)) else Combine)]


def _check_complete(main: PlanMain, schedule: Schedule, wanted: dict[Part, None]) -> None:
    """S1 and S2 for one list."""
    given = _microbatches(schedule)
    for (kind, number), found in given.items():
        allowed = _wanted(main, kind, number) if (kind, number) in wanted else range(0)
        for m in found if set(found) - set(allowed) else ():
            if m not in allowed:
                raise _error(schedule, f"{_text(kind, number, m)} has no place in @main here (S1)")
        if len(set(found)) < len(found):
            m, count = Counter(found).most_common(1)[0]
            raise _error(schedule, f"{_text(kind, number, m)} stands {count} times instead of once (S2)")
    for kind, number in wanted:
        missing = set(_wanted(main, kind, number)) - set(given.get((kind, number), ()))
        if missing:
            raise _error(schedule, f"{_text(kind, number, min(missing))} is missing (S2)")


def _microbatches(schedule: Schedule) -> dict[Part, list[int]]:
    """By what a list does, frees apart, the microbatches for which it does it."""
    found: dict[Part, list[int]] = {}
    sums: dict[int, tuple[tuple[int, ...], list[int]]] = {}
    for i in schedule.instructions:
        if isinstance(i, Combine):
            # Microbatches share the list of what they add.
            sums.setdefault(id(i.ids), (i.ids, []))[1].append(i.microbatch)
        elif not isinstance(i, Free):
            found.setdefault((type(i), i.id), []).append(i.microbatch)
    for numbers, microbatches in sums.values():
        for number in numbers:
            found.setdefault((Combine, number), []).extend(microbatches)
    return found


def _wanted(main: PlanMain, kind: type[Instruction], number: int) -> Sequence[int]:
    """The microbatches for which an op is done."""
    many = kind is Combine or main.runs_per_microbatch(main.step(number))
    return range(main.microbatches) if many else (ONCE,)


def _check_values(plan: Plan, schedule: Schedule, values: Values) -> None:
    """S3, S4, S7 and S8 along one list; receives are taken to arrive."""
    lane = _Lane(plan, schedule, values)
    for instruction in schedule.instructions:
        lane.step(instruction)
    for bundle, bits in lane.held.items():
        left = bits & ~values.returned.get(bundle[0], 0)
        if left:
            raise _error(schedule, f"value {_name(bundle, left)} is never freed (S8)")


def _check_joined(main: PlanMain, schedule: Schedule) -> None:
    """S9 along one list."""
    before: Run | None = None
    for i in schedule.instructions:
        if isinstance(i, Run) and i.joined:
            calls = before is not None and all(isinstance(main.step(r.id), Fragment) for r in (before, i))
            if before is None or not calls or (before.microbatch != i.microbatch and main.microbatches > 1):
                raise _error(schedule, f"{_what(i)} cannot be joined to what stands before it (S9)")
        if isinstance(i, Run):
            before = i
        elif not isinstance(i, Free) and not (isinstance(i, Combine) and main.microbatches == 1):
            before = None


@dataclass
class _Lane:
    """The values that a submesh holds while its list is walked."""

    plan: Plan
    schedule: Schedule
    values: Values
    held: dict[Bundle, int] = field(default_factory=dict)
    gone: dict[Bundle, int] = field(default_factory=dict)
    in_flight: dict[int, set[int]] = field(default_factory=dict)
    allowed: dict[int, int] = field(default_factory=dict)
    last: dict[int, str] = field(default_factory=dict)
    named: Once[tuple[Ref, ...], None] = field(default_factory=Once)
    """What frees name, as far as checked."""
    steady: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """What accumulations make that nothing of the whole step was freed since."""

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
        if isinstance(instruction, Free):
            self._free(instruction)
            return
        for bundle, bits in self.values.uses(instruction):
            missing = bits & ~self.held.get(bundle, 0)
            if missing:
                why = "after it was freed" if missing & -missing & self.gone.get(bundle, 0) else "before it is there"
                self._refuse(f"{_what(instruction)} reads value {_name(bundle, missing)} {why} (S3)")
        sums = instruction.ids if isinstance(instruction, Combine) else None
        for bundle, bits in () if sums is not None and id(sums) in self.steady else self.values.makes(instruction):
            again = bits & self.gone.get(bundle, 0)
            if again:
                self._refuse(f"{_what(instruction)} makes value {_name(bundle, again)} after it was freed (S3)")
            self.held[bundle] = self.held.get(bundle, 0) | bits
        if sums is not None:
            self.steady[id(sums)] = sums
        if isinstance(instruction, Run):
            self._count(instruction)

    def _refuse(self, message: str) -> NoReturn:
        raise _error(self.schedule, message)

    def _free(self, instruction: Free) -> None:
        self.named.of(instruction.values, lambda _: self._check_names(instruction))
        if instruction.microbatch == ONCE:
            self.steady.clear()
        for bundle, bits in self.values.frees(instruction):
            held = self.held.get(bundle, 0)
            if bits & ~held:
                self._refuse(f"value {_name(bundle, bits & ~held)} is freed where it is not held (S4)")
            returned = bits & self.values.returned.get(bundle[0], 0)
            if returned:
                self._refuse(f"value {_name(bundle, returned)} is a result of the step, but freed (S4)")
            self.held[bundle] = held & ~bits
            self.gone[bundle] = self.gone.get(bundle, 0) | bits

    def _check_names(self, instruction: Free) -> None:
        """S4: what is freed are different values, of ops that there are."""
        known: set[Ref] = set()
        for ref in instruction.values:
            what = f"value {_ref_name(ref, instruction.microbatch)} is freed"
            if not 0 <= ref.result < self.values.results.get(ref.op, 0):
                self._refuse(f"{what} where it is not held (S4)")
            if ref in known:
                self._refuse(f"{what} twice (S4)")
            known.add(ref)

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
            raise _error(schedule, f"{_what(lane[0])} waits for ever with {sends} (S6)")


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


def _what(instruction: Run | Send | Recv | Combine) -> str:
    number = instruction.ids[0] if isinstance(instruction, Combine) else instruction.id
    return _text(type(instruction), number, instruction.microbatch)


def _text(kind: type[Instruction], number: int, microbatch: int) -> str:
    word = {Run: "run", Send: "send", Recv: "receive", Combine: "accumulation"}[kind]
    return f"{word} {number} " + ("once per step" if microbatch == ONCE else f"of microbatch {microbatch}")


def _name(bundle: Bundle, bits: int) -> str:
    """The first of some values of a bundle."""
    op, microbatch = bundle
    return _ref_name(Ref(op, positions(bits)[0]), microbatch)


def _ref_name(ref: Ref, microbatch: int) -> str:
    return f"{ref.op}.{ref.result}" + ("" if microbatch == ONCE else f" of microbatch {microbatch}")
