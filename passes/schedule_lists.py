"""From a split step and a pipeline schedule to one instruction list per submesh.

Everything a step does is put into one total order of *events*: prologue, then the microbatches' runs
and transfers, then the update.  A transfer is a single event, its send and its receive; the list of a
submesh is the projection of the total order on it.  Executing such lists in order cannot deadlock,
even with sends that block until they are received: the first event not yet done is always at the
head of all lists that take part in it (Lamport's happened-before, 1978).

Microbatch events are ordered by playing the schedule with unit times (forward 1, backward 2, or backward 1 and
weight 1): a transfer happens when its value is made, a run when it starts.  Then neighbouring runs become one program
where they can (`alpa_mlir.passes.schedule_join`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import ONCE, Combine, Free, Instruction, Recv, Run, Send
from alpa_mlir.dialect.staged import Accumulate, Fragment, Index, PlanMain, Ref, Slice, Stack, Step, Transfer
from alpa_mlir.passes.inter.schedules import BACKWARD, FORWARD, Pipeline, lane_order, pipeline_of
from alpa_mlir.passes.inter.simulate import StageCosts, play
from alpa_mlir.passes.schedule_join import Event, joined
from alpa_mlir.passes.schedule_values import Bits, Bundle, Values

TICKS = StageCosts(forward=1.0, backward=1.0, weight=1.0)
"""Unit times: every stage is taken to be equal."""

Job = tuple[int, int]
"""(id of a fragment call, microbatch)."""


def instruction_lists(
    main: PlanMain, kind: str, stages: Sequence[str], join: bool = True
) -> dict[str, tuple[Instruction, ...]]:
    """The instructions of every submesh under schedule `kind`; stage s runs on submesh `stages[s]`.

    `join`: neighbouring runs become one program.  CompileError where the schedule does not suit the pipeline.
    """
    writer = _Writer(main, list(dict.fromkeys(stages)))
    events = total_order(main, kind, stages)
    for group in joined(main, events) if join else [(event,) for event in events]:
        writer.emit(group)
    writer.emit_rest()
    values = Values(main)
    return {mesh: _with_frees(values, _joined(lane)) for mesh, lane in writer.lanes.items()}


def total_order(main: PlanMain, kind: str, stages: Sequence[str]) -> list[Event]:
    """All runs and transfers of a step in one order that respects every dependency."""
    acting = [s for s in main.steps if isinstance(s, (Fragment, Transfer))]
    once = [Event(s, ONCE) for s in acting if not main.runs_per_microbatch(s)]
    before = [e for e in once if e.step.phase == "prologue"]
    after = [e for e in once if e.step.phase != "prologue"]
    return before + _microbatch_order(main, kind, stages) + after


def _microbatch_order(main: PlanMain, kind: str, stages: Sequence[str]) -> list[Event]:
    fragments = [s for s in main.steps if isinstance(s, Fragment) and main.runs_per_microbatch(s)]
    lanes, duration, after = _pipeline(main, kind, pipeline_of(stages, main.microbatches), fragments)
    start = play(lanes, duration, after)
    finish = {job: at + duration[job] for job, at in start.items()}
    timed: list[tuple[tuple[float, int, int, int], Event]] = []
    transfers = [s for s in main.steps if isinstance(s, Transfer) and main.runs_per_microbatch(s)]
    readers = _readers(main, transfers)
    for m in range(main.microbatches):
        for f in fragments:
            timed.append(((start[f.id, m], 1, f.id, m), Event(f, m)))
        for step in transfers:
            timed.append(((_ready(main, step, m, start, finish, readers), 0, step.id, m), Event(step, m)))
    return [event for _, event in sorted(timed, key=lambda pair: pair[0])]


def _fragment(main: PlanMain, number: int) -> Fragment:
    step = main.step(number)
    assert isinstance(step, Fragment)
    return step


def _pipeline(
    main: PlanMain, kind: str, pipeline: Pipeline, fragments: Sequence[Fragment]
) -> tuple[list[list[Job]], dict[Job, float], dict[Job, list[tuple[Job, float]]]]:
    """What `play` needs: the order on each submesh, durations, and dependencies of all microbatches."""
    here: dict[tuple[int, str], list[int]] = {}
    for f in fragments:
        here.setdefault((f.stage, f.phase), []).append(f.id)
    try:
        orders = [lane_order(kind, lane, pipeline) for lane in range(pipeline.lanes)]
    except ValueError as e:
        raise CompileError(str(e)) from None
    lanes = [[(n, t.microbatch) for t in order for n in here.get((t.stage, t.kind), ())] for order in orders]
    duration = {job: TICKS.seconds(kind, _fragment(main, job[0]).phase) for lane in lanes for job in lane}
    sources = {f.id: _sources(main, f.operands) for f in fragments}
    chain = _chain(pipeline, here)
    after = {job: [((n, job[1]), 0.0) for n in (*sources[job[0]], *chain.get(job[0], ()))] for job in duration}
    return lanes, duration, after


def _chain(pipeline: Pipeline, here: dict[tuple[int, str], list[int]]) -> dict[int, list[int]]:
    """The pipeline's own order: forward after the stage before, backward after the stage behind.

    Kept even where no value flows, so that stages without a common value still run in step.
    """
    chain: dict[int, list[int]] = {}
    for phase, way in ((FORWARD, 1), (BACKWARD, -1)):
        ordered = [n for s in range(pipeline.stages)[::way] for n in here.get((s, phase), ())]
        for before, behind in pairwise(ordered):
            chain.setdefault(behind, []).append(before)
    return chain


def _sources(main: PlanMain, operands: Sequence[Ref]) -> list[int]:
    """The per-microbatch fragment calls that operands come from, through transfers."""
    found: list[int] = []
    for ref in operands:
        if main.per_microbatch(ref):
            step = main.step(ref.op)
            found += [step.id] if isinstance(step, Fragment) else _sources(main, step.operands)
    return list(dict.fromkeys(found))


def _readers(main: PlanMain, steps: Sequence[Step]) -> dict[int, list[Step]]:
    """For each of the ops what reads its first result."""
    found: dict[int, list[Step]] = {step.id: [] for step in steps}
    for step in main.steps:
        for op in dict.fromkeys(r.op for r in step.operands if not r.is_argument and r.result == 0):
            if op in found:
                found[op].append(step)
    return found


def _ready(
    main: PlanMain,
    step: Step,
    m: int,
    start: dict[Job, float],
    finish: dict[Job, float],
    readers: Mapping[int, Sequence[Step]],
) -> float:
    """When a transfer happens: its value is made; a slice or number is made when first wanted."""
    sources = _sources(main, step.operands)
    if sources:
        return max(finish[n, m] for n in sources)
    here = readers.get(step.id, ())
    times = [start[s.id, m] for s in here if isinstance(s, Fragment) and (s.id, m) in start]
    times += [_ready(main, s, m, start, finish, readers) for s in here if isinstance(s, Transfer)]
    return min(times, default=float("inf"))


class _Writer:
    """The lists as they grow, and which slices are already cut."""

    def __init__(self, main: PlanMain, meshes: Sequence[str]) -> None:
        self.main = main
        self.lanes: dict[str, list[Instruction]] = {mesh: [] for mesh in meshes}
        self.cut: set[Job] = set()
        self.collected: set[int] = set()
        self.slices = {s.id: [r for r in s.operands if self._is_cut(r)] for s in main.steps}
        """Slices and numbers of the microbatch that an op reads."""
        found: dict[int, dict[str, list[int]]] = {}
        for step in main.steps:
            if isinstance(step, (Accumulate, Stack)):
                made = found.setdefault(step.operands[0].op, {})
                made.setdefault(step.results[0].mesh, []).append(step.id)
        self.collectors = {op: [(mesh, tuple(ids)) for mesh, ids in made.items()] for op, made in found.items()}
        """What collects results of an op, by submesh."""

    def emit(self, group: Sequence[Event]) -> None:
        """Append an event, or runs that are one program, to the lists it takes part in, after the slices it reads."""
        for step, m in group:
            for ref in self.slices[step.id]:
                self._cut(ref, m)
        made: list[Event] = []
        for number, (step, m) in enumerate(group):
            if isinstance(step, Fragment):
                self.lanes[step.mesh].append(Run(step.id, m, joined=number > 0))
            else:
                self.lanes[self.main.type_of(step.operands[0]).mesh].append(Send(step.id, m))
                self.lanes[step.results[0].mesh].append(Recv(step.id, m))
            made.append(Event(step, m))
            # Within a group only sums of a single microbatch are wanted.
            if self.main.microbatches == 1 or number == len(group) - 1:
                self._combine_all(made)
                made = []

    def _combine_all(self, made: Sequence[Event]) -> None:
        for step, m in made:
            if m != ONCE:
                self._combine(step, m)

    def _is_cut(self, ref: Ref) -> bool:
        return not ref.is_argument and isinstance(self.main.step(ref.op), (Slice, Index))

    def _cut(self, ref: Ref, m: int) -> None:
        step = self.main.step(ref.op)
        if (step.id, m) not in self.cut:
            self.cut.add((step.id, m))
            self.lanes[step.results[0].mesh].append(Run(step.id, m))
            self._combine(step, m)

    def _combine(self, made: Step, m: int) -> None:
        """Add the results of `made` to whatever collects them."""
        for mesh, ids in self.collectors.get(made.id, ()):
            self.lanes[mesh].append(Combine(ids, m))
            if ids[0] not in self.collected:
                self.collected.update(ids)

    def emit_rest(self) -> None:
        """What no run reads: slices that are only collected, and collected values of the whole step.

        These come last on the list of their submesh, before the update that reads them.
        """
        for step in self.main.steps:
            if isinstance(step, (Accumulate, Stack)) and step.id not in self.collected:
                rest: list[Instruction] = []
                for m in range(self.main.microbatches):
                    source = step.operands[0]
                    if self.main.per_microbatch(source) and (source.op, m) not in self.cut:
                        self.cut.add((source.op, m))
                        rest.append(Run(source.op, m))
                    rest.append(Combine((step.id,), m))
                self._insert_before_readers(step, rest)

    def _insert_before_readers(self, step: Accumulate | Stack, rest: list[Instruction]) -> None:
        lane = self.lanes[step.results[0].mesh]
        readers = {s.id for s in self.main.steps if Ref(step.id) in s.operands}
        places = (n for n, i in enumerate(lane) if isinstance(i, (Run, Send)) and i.id in readers)
        at = next(places, len(lane))
        lane[at:at] = rest


def _joined(lane: Sequence[Instruction]) -> list[Instruction]:
    """The list with neighbouring accumulations of one microbatch as one instruction."""
    joined: list[Instruction] = []
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    for combining, group in groupby(lane, lambda i: i.microbatch if isinstance(i, Combine) else None):
        if combining is None:
            joined += group
        else:
            every = [i for i in group if isinstance(i, Combine)]
            ids = tuple([n for i in every for n in i.ids]) if len(every) > 1 else every[0].ids
            # One object for all microbatches.
            joined.append(Combine(same.setdefault(ids, ids), combining) if len(every) > 1 else every[0])
    return joined


def _with_frees(values: Values, lane: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The list with every value freed after its last use, and after the accumulations around it; results stay."""
    dead = _last_uses(values, lane)
    written: list[Instruction] = []
    waiting: dict[int, dict[int, int]] = {}
    for n, instruction in enumerate(lane):
        written.append(instruction)
        for (op, m), bits in dead[n]:
            ops = waiting.setdefault(m, {})
            ops[op] = ops.get(op, 0) | bits
        following = lane[n + 1] if n + 1 < len(lane) else None
        if not isinstance(following, Combine) or not isinstance(instruction, Combine):
            written += [Free(values.refs(tuple(waiting[m].items())), m) for m in sorted(waiting)]
            waiting = {}
    return tuple(written)


def _last_uses(values: Values, lane: Sequence[Instruction]) -> list[list[Bits]]:
    """By instruction the values that none after it reads or makes again."""
    dead: list[list[Bits]] = [[] for _ in lane]
    seen: dict[Bundle, int] = {}
    summed: set[int] = set()
    for n in range(len(lane) - 1, -1, -1):
        instruction = lane[n]
        touched = values.uses(instruction)
        # What an accumulation behind it makes is not dead here.
        if not isinstance(instruction, Combine) or id(instruction.ids) not in summed:
            touched = [*touched, *values.makes(instruction)]
        if isinstance(instruction, Combine):
            summed.add(id(instruction.ids))
        for bundle, bits in touched:
            known = seen.get(bundle)
            if known is None:
                known = values.returned.get(bundle[0], 0)
            if bits & ~known:
                dead[n].append((bundle, bits & ~known))
                seen[bundle] = known | bits
    return dead
