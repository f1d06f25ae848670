"""Playing a plan's instruction lists on the costs written in it: when what happens, and how much is held.

Each submesh executes its list in order.  A run starts when the submesh is free and what it reads is there; a
send does not hold up the sender; transfers from one submesh to another share the link one after the other (their
latencies overlap); a receive costs nothing, its value is waited for where it is first used.  Memory is counted
along the lists: arguments that live on the devices, values between the instruction that makes and the one that
frees them, and while a function runs what it holds inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.once import Once
from alpa_mlir.dialect.plan import ONCE, Combine, Free, Instruction, Plan, Recv, Run, Schedule, Send
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.dialect.staged import Fragment, MeshTensor, PlanMain, Ref, Slice
from alpa_mlir.passes.inter.simulate import Move, Span, Timeline, idle_share
from alpa_mlir.passes.schedule_values import Bundle, Values, positions

ACCUMULATE = "accumulate"
"""The kind of spans that are no stage function's."""


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
    values = Values(plan.main)
    player = _Player(plan, costs, values)
    lanes = [_Lane(n, s, _Memory(plan, s.mesh, costs, values)) for n, s in enumerate(plan.schedules)]
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

    def accumulate(self, microbatch: int, start: float, finish: float) -> None:
        """A span of accumulation, as part of the last one where that ended then."""
        last = self.spans[-1] if self.spans else None
        if finish == start:
            return
        if last is not None and (last.kind, last.finish) == (ACCUMULATE, start):
            self.spans[-1] = replace(last, finish=finish)
        else:
            self.spans.append(Span(self.number, -1, ACCUMULATE, microbatch, start, finish))

    def follow(self) -> None:
        """Go on to the next instruction, with what the last one did to memory."""
        instruction = self.instructions[self.at]
        began = self.spans[-1].start if isinstance(instruction, Run) and self.spans else self.free
        self.memory.step(instruction, began, self.free)
        self.at += 1


class _Sums(NamedTuple):
    """Accumulations of results of one op, which come once per microbatch or not: their seconds, and what they make."""

    op: int
    often: bool
    seconds: list[float]
    sums: list[Bundle]


class _Player:
    """When values are ready, transfers arrive, and channels between submeshes are free."""

    def __init__(self, plan: Plan, costs: PlanCosts, values: Values) -> None:
        self.plan, self.main, self.costs, self.values = plan, plan.main, costs, values
        self.lane_of = {s.mesh: n for n, s in enumerate(plan.schedules)}
        self.ready: list[dict[Bundle, float]] = [{} for _ in plan.schedules]
        """Per submesh when the values of a bundle are there: all at once."""
        self.arrivals: dict[tuple[int, int], float] = {}
        self.channels: dict[tuple[int, int], float] = {}
        self.begun: set[int] = set()
        self.collected: dict[int, tuple[int, bool, float]] = {}
        self.again = Once[tuple[int, ...], _Sums | None]()
        self.added: set[int] = set()
        """Lists of accumulations (kept by `again`) that were done for some microbatch."""
        self.moves: list[Move] = []

    def execute(self, lane: _Lane, instruction: Instruction) -> bool:
        """Do one instruction; False where the time of what it needs is not known yet."""
        if isinstance(instruction, Recv):
            arrival = self.arrivals.get((instruction.id, instruction.microbatch))
            if arrival is None:
                return False
            self.ready[lane.number][instruction.id, instruction.microbatch] = arrival
        elif isinstance(instruction, Send):
            self._send(lane, instruction)
        elif isinstance(instruction, Run):
            self._run(lane, instruction)
        elif isinstance(instruction, Combine):
            self._combine(lane, instruction)
        return True

    def _there(self, lane: _Lane, instruction: Instruction) -> float:
        ready = self.ready[lane.number]
        return max([ready[bundle] for bundle, _ in self.values.uses(instruction)], default=0.0)

    def _run(self, lane: _Lane, run: Run) -> None:
        step, start = self.main.step(run.id), max(lane.free, self._there(lane, run))
        ready = start
        if isinstance(step, Fragment):
            ready = lane.free = start + self.costs.seconds.get(run.id, 0.0)
            lane.spans.append(Span(lane.number, step.stage, step.phase, run.microbatch, start, ready))
        self.ready[lane.number][run.id, run.microbatch] = ready

    def _combine(self, lane: _Lane, combine: Combine) -> None:
        """Accumulations one after the other; neighbours in time are one span."""
        ready, microbatch = self.ready[lane.number], combine.microbatch
        free = began = lane.free
        again = self.again.of(combine.ids, self._evenly)
        if again is not None and id(combine.ids) in self.added:
            # All wait for the same op, and then for one another.
            there = ready[again.op, microbatch if again.often else ONCE]
            if there > free:
                lane.accumulate(microbatch, began, free)
                began = free = there
            *_, lane.free = ends = list(accumulate(again.seconds, initial=free))
            ready.update(zip(again.sums, ends[1:], strict=True))
            lane.accumulate(microbatch, began, lane.free)
            return
        self.added.add(id(combine.ids))
        for number in combine.ids:
            op, often, seconds = self._collected(number)
            there = ready[op, microbatch if often else ONCE] if op >= 0 else 0.0
            if number not in self.begun:
                # The first microbatch's value is the total so far.
                self.begun.add(number)
                seconds = 0.0
            if seconds and there > free:
                lane.accumulate(microbatch, began, free)
                began = free = there
            free += seconds
            ready[number, ONCE] = max(free, there)
        lane.accumulate(microbatch, began, free)
        lane.free = free

    def _evenly(self, ids: Sequence[int]) -> _Sums | None:
        """Accumulations that take some time each, of results of one op; None where they are not."""
        found = [self._collected(number) for number in ids]
        op, often, _ = found[0]
        if op < 0 or any(f[:2] != (op, often) or f[2] <= 0.0 for f in found):
            return None
        return _Sums(op, often, [seconds for _, _, seconds in found], [(number, ONCE) for number in ids])

    def _collected(self, number: int) -> tuple[int, bool, float]:
        """The op whose result an accumulation adds (-1: an argument), whether once per microbatch; its seconds."""
        if number not in self.collected:
            ref = self.main.step(number).operands[0]
            seconds = self.costs.seconds.get(number, 0.0)
            self.collected[number] = (ref.op, self.main.per_microbatch(ref), seconds)
        return self.collected[number]

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

    def __init__(self, plan: Plan, mesh: str, costs: PlanCosts, values: Values) -> None:
        self.main, self.costs, self.stage = plan.main, costs, plan.stages[mesh]
        self.now = self.most = sum(self._bytes(plan.main.arguments[i].type) for i in resident(plan.main, mesh))
        self.values = values
        self.held: dict[Bundle, int] = {}
        self.adopted: dict[Bundle, dict[int, float]] = {}
        """Bytes of results that lie in buffers of operands."""
        self.curve: list[tuple[float, float]] = [(0.0, self.now)]
        self.sizes: dict[tuple[int, int], float] = {}
        self.begun: dict[int, tuple[int, ...]] = {}
        """What accumulations have made: the next microbatch's make nothing new."""

    def _size(self, op: int, bits: int) -> float:
        """Bytes of results of an op, looked up once for all microbatches."""
        if (op, bits) not in self.sizes:
            self.sizes[op, bits] = sum(self._bytes(self.main.type_of(Ref(op, k))) for k in positions(bits))
        return self.sizes[op, bits]

    def _bytes(self, kind: MeshTensor) -> float:
        return kind.bytes / self.stage.mesh.extent(kind.sharding.axes)

    def step(self, instruction: Instruction, began: float, ended: float) -> None:
        """Take one instruction into account that runs from `began` to `ended`."""
        before = self.now
        if isinstance(instruction, Free):
            for bundle, bits in self.values.frees(instruction):
                self.now -= self._take(bundle, bits)
        else:
            self._make(instruction, began)
        if self.now != before:
            self.curve.append((ended, self.now))

    def _make(self, instruction: Run | Send | Recv | Combine, began: float) -> None:
        step = None if isinstance(instruction, Combine) else self.main.step(instruction.id)
        adopted: dict[int, float] = {}
        if isinstance(instruction, Run) and isinstance(step, Fragment):
            busy = self.now + self.costs.working[step.function]
            self.most = max(self.most, busy)
            self.curve.append((began, busy))
            adopted = self._adopt(step, instruction.microbatch)
        if isinstance(instruction, Combine):
            if id(instruction.ids) in self.begun:
                return
            self.begun[id(instruction.ids)] = instruction.ids
        for bundle, bits in self.values.makes(instruction):
            if bundle not in self.held:
                self.held[bundle] = bits
                self.now += self._size(bundle[0], bits)
                if adopted:
                    self.adopted[bundle] = adopted
                    self.now -= sum([self._size(bundle[0], 1 << k) for k in adopted])
        self.most = max(self.most, self.now)

    def _adopt(self, step: Fragment, microbatch: int) -> dict[int, float]:
        """Bytes of results in the buffers of operands: those of the operand, which has none any more."""
        found = {}
        for result, operand in self.costs.donated[step.function].items():
            ref = step.operands[operand]
            bundle = (ref.op, microbatch if self.main.per_microbatch(ref) else ONCE)
            found[result] = 0.0 if ref.is_argument else self._take(bundle, 1 << ref.result)
        return found

    def _take(self, bundle: Bundle, bits: int) -> float:
        """The bytes of values that are held no longer."""
        here = bits & self.held.get(bundle, 0)
        if not here:
            return 0.0
        self.held[bundle] &= ~here
        adopted = self.adopted.get(bundle)
        if adopted is None:
            return self._size(bundle[0], here)
        return sum([adopted[k] if k in adopted else self._size(bundle[0], 1 << k) for k in positions(here)])


def resident(main: PlanMain, mesh: str) -> list[int]:
    """The arguments of the program that live on a submesh: state, and what something other than a slice reads."""
    read = {r.result for s in main.steps if not isinstance(s, Slice) for r in s.operands if r.is_argument}
    read |= {r.result for r in main.results if r.is_argument}
    read |= {i for i, a in enumerate(main.arguments) if a.role == "state"}
    return [i for i in sorted(read) if main.arguments[i].type.mesh == mesh]
