"""Playing a plan's instruction lists on the costs written in it: when what happens, and how much is held.

Each submesh executes its list in order.  A run starts when the submesh is free and what it reads is there; a
send does not hold up the sender; transfers from one submesh to another share the link one after the other (their
latencies overlap); a receive costs nothing, its value is waited for where it is first used.  Memory is counted
along the lists: arguments that live on the devices, values between the instruction that makes and the one that
frees them, and while a function runs what it holds inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.plan import ONCE, Combine, Free, Instruction, Plan, Recv, Run, Schedule, Send
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.dialect.staged import Fragment, MeshTensor, PlanMain, Ref, Slice
from alpa_mlir.passes.inter.simulate import Move, Span, Timeline, idle_share
from alpa_mlir.passes.schedule_lists import Use, makes, uses


@dataclass(frozen=True)
class PlanCosts:
    """Seconds of a run, a transfer or an accumulation by `alpa.id`, and of a transfer the latency in them; bytes held
    inside and donations by function."""

    seconds: Mapping[int, float]
    latency: Mapping[int, float]
    working: Mapping[str, float]
    donated: Mapping[str, Mapping[int, int]]


def read_costs(module: ir.Module, main: PlanMain) -> PlanCosts | None:
    """What `alpa-price` wrote; None where it did not run."""
    found = functions(module)
    seconds: dict[int, float] = {}
    latency: dict[int, float] = {}
    working: dict[str, float] = {}
    donated: dict[str, dict[int, int]] = {}
    for step in main.steps:
        if isinstance(step, Fragment):
            function = found[step.function]
            if alpa.COST not in function.attributes:
                return None
            cost = ir.DictAttr(function.attributes[alpa.COST])
            parts = ir.DictAttr(cost["seconds"])
            seconds[step.id] = sum(float(ir.FloatAttr(parts[i].attr).value) for i in range(len(parts)))
            working[step.function] = float(ir.IntegerAttr(cost["working_bytes"]).value)
            donated[step.function] = _donations(function)
    for op in alpa.walk(found["main"]):
        if alpa.COST in op.attributes:
            cost, number = ir.DictAttr(op.attributes[alpa.COST]), alpa.get_int(op, alpa.ID) or 0
            seconds[number] = float(ir.FloatAttr(cost["seconds"]).value)
            latency[number] = float(ir.FloatAttr(cost["start"]).value) if "start" in cost else 0.0
    return PlanCosts(seconds, latency, working, donated)


def _donations(function: ir.Operation) -> dict[int, int]:
    """Result number -> number of the argument whose buffer it takes over."""
    entries = enumerate(argument_attributes(function))
    return {int(ir.IntegerAttr(e[alpa.DONATE]).value): i for i, e in entries if alpa.DONATE in e}


def play_plan(plan: Plan, costs: PlanCosts) -> Timeline:
    """The timeline of one step of a plan whose lists are sound (`alpa-check-schedule`)."""
    player = _Player(plan, costs)
    lanes = [_Lane(n, s, _Memory(plan, s.mesh, costs)) for n, s in enumerate(plan.schedules)]
    moved = True
    while moved:
        moved = False
        for lane in lanes:
            while lane.at < len(lane.instructions) and player.execute(lane, lane.instructions[lane.at]):
                lane.follow()
                moved = True
    spans = [span for lane in lanes for span in lane.spans]
    busy = [[s for s in lane.spans if s.microbatch >= 0] for lane in lanes]
    ends = [s.finish for s in spans] + [m.finish for m in player.moves]
    period, bubble = idle_share(busy)
    kind = plan.schedules[0].kind if plan.schedules else ""
    peaks, curves = tuple(lane.memory.most for lane in lanes), tuple(tuple(lane.memory.curve) for lane in lanes)
    return Timeline(kind, tuple(spans), max(ends, default=0.0), period, bubble, peaks, tuple(player.moves), curves)


@dataclass
class _Lane:
    number: int
    schedule: Schedule
    memory: _Memory
    at: int = 0
    free: float = 0.0
    spans: list[Span] = field(default_factory=list)

    @property
    def instructions(self) -> tuple[Instruction, ...]:
        return self.schedule.instructions

    def follow(self) -> None:
        """Go on to the next instruction, with what the last one did to memory."""
        instruction = self.instructions[self.at]
        began = self.spans[-1].start if isinstance(instruction, Run) and self.spans else self.free
        self.memory.step(instruction, began, self.free)
        self.at += 1


class _Player:
    """When values are ready, transfers arrive, and channels between submeshes are free."""

    def __init__(self, plan: Plan, costs: PlanCosts) -> None:
        self.plan, self.main, self.costs = plan, plan.main, costs
        self.lane_of = {s.mesh: n for n, s in enumerate(plan.schedules)}
        self.ready: dict[tuple[int, Use], float] = {}
        self.arrivals: dict[tuple[int, int], float] = {}
        self.channels: dict[tuple[int, int], float] = {}
        self.begun: set[int] = set()
        self.moves: list[Move] = []

    def execute(self, lane: _Lane, instruction: Instruction) -> bool:
        """Do one instruction; False where the time of what it needs is not known yet."""
        if isinstance(instruction, Recv):
            arrival = self.arrivals.get((instruction.id, instruction.microbatch))
            if arrival is None:
                return False
            self._make(lane, instruction, arrival)
        elif isinstance(instruction, Send):
            self._send(lane, instruction)
        elif isinstance(instruction, (Run, Combine)):
            self._run(lane, instruction)
        return True

    def _there(self, lane: _Lane, instruction: Instruction) -> float:
        return max((self.ready[lane.number, use] for use in uses(self.main, instruction)), default=0.0)

    def _make(self, lane: _Lane, instruction: Instruction, at: float) -> None:
        for use in makes(self.main, instruction):
            self.ready[lane.number, use] = at

    def _run(self, lane: _Lane, instruction: Run | Combine) -> None:
        step, seconds = self.main.step(instruction.id), self.costs.seconds.get(instruction.id, 0.0)
        if isinstance(instruction, Combine) and instruction.id not in self.begun:
            # The first microbatch's value is the total so far.
            self.begun.add(instruction.id)
            seconds = 0.0
        start = max(lane.free, self._there(lane, instruction))
        if seconds == 0 and not isinstance(step, Fragment):
            self._make(lane, instruction, start)
            return
        lane.free = start + seconds
        self._make(lane, instruction, lane.free)
        stage, kind = (step.stage, step.phase) if isinstance(step, Fragment) else (-1, "accumulate")
        last = lane.spans[-1] if lane.spans else None
        if kind == "accumulate" and last is not None and (last.kind, last.finish) == (kind, start):
            lane.spans[-1] = replace(last, finish=lane.free)
        else:
            lane.spans.append(Span(lane.number, stage, kind, instruction.microbatch, start, lane.free))

    def _send(self, lane: _Lane, send: Send) -> None:
        step = self.main.step(send.id)
        pair = (lane.number, self.lane_of[step.results[0].mesh])
        start = max(self._there(lane, send), self.channels.get(pair, 0.0))
        finish = start + self.costs.seconds.get(send.id, 0.0)
        self.channels[pair] = finish - self.costs.latency.get(send.id, 0.0)
        self.arrivals[send.id, send.microbatch] = finish
        self.moves.append(Move(*pair, send.microbatch, start, finish, step.results[0].bytes))


class _Memory:
    """Bytes of the values on one device of a submesh while its list is walked, the most so far, and their course."""

    def __init__(self, plan: Plan, mesh: str, costs: PlanCosts) -> None:
        self.main, self.costs, self.stage = plan.main, costs, plan.stages[mesh]
        self.now = self.most = sum(self._bytes(plan.main.arguments[i].type) for i in resident(plan.main, mesh))
        self.held: dict[Use, float] = {}
        self.curve: list[tuple[float, float]] = [(0.0, self.now)]
        self.sizes: dict[Ref, float] = {}

    def _size(self, ref: Ref) -> float:
        """Bytes of a value of the step, looked up once for all microbatches."""
        if ref not in self.sizes:
            self.sizes[ref] = self._bytes(self.main.type_of(ref))
        return self.sizes[ref]

    def _bytes(self, kind: MeshTensor) -> float:
        return kind.bytes / self.stage.mesh.extent(kind.sharding.axes)

    def step(self, instruction: Instruction, began: float, ended: float) -> None:
        """Take one instruction into account that runs from `began` to `ended`."""
        before = self.now
        if isinstance(instruction, Free):
            self.now -= self.held.pop((instruction.value, instruction.microbatch), 0.0)
        else:
            self._make(instruction, began)
        if self.now != before:
            self.curve.append((ended, self.now))

    def _make(self, instruction: Run | Send | Recv | Combine, began: float) -> None:
        step = None if isinstance(instruction, Send) else self.main.step(instruction.id)
        if isinstance(instruction, Run) and isinstance(step, Fragment):
            busy = self.now + self.costs.working[step.function]
            self.most = max(self.most, busy)
            self.curve.append((began, busy))
            self._adopt(step, instruction.microbatch)
        for use in makes(self.main, instruction):
            if use not in self.held:
                self.held[use] = self._size(use[0])
                self.now += self.held[use]
        self.most = max(self.most, self.now)

    def _adopt(self, step: Fragment, microbatch: int) -> None:
        """Results in the buffers of operands: the operand's bytes become the result's."""
        for result, operand in self.costs.donated[step.function].items():
            ref = step.operands[operand]
            use = (ref, microbatch if self.main.per_microbatch(ref) else ONCE)
            self.held[Ref(step.id, result), microbatch] = 0.0 if ref.is_argument else self.held.pop(use, 0.0)


def resident(main: PlanMain, mesh: str) -> list[int]:
    """The arguments of the program that live on a submesh: state, and what something other than a slice reads."""
    read = {r.result for s in main.steps if not isinstance(s, Slice) for r in s.operands if r.is_argument}
    read |= {r.result for r in main.results if r.is_argument}
    read |= {i for i, a in enumerate(main.arguments) if a.role == "state"}
    return [i for i in sorted(read) if main.arguments[i].type.mesh == mesh]
