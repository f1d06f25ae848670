"""alpa-schedule and its checker: every schedule plays, every damaged one is refused, and the step is the same."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from on_devices import assert_close, random_inputs, run_all
from staged_steps import one_device

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import (
    Combine,
    Free,
    Instruction,
    Plan,
    Recv,
    Run,
    Schedule,
    Send,
    Stage,
    check_digest,
    read_plan,
)
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import (
    ARGUMENT,
    Accumulate,
    Argument,
    Fragment,
    Index,
    MeshTensor,
    PlanMain,
    Ref,
    Slice,
    Stack,
    Step,
    Transfer,
    element_bytes,
)
from alpa_mlir.passes.inter.simulate import simulate
from alpa_mlir.passes.schedule import SchedulePass, unit_costs
from alpa_mlir.passes.schedule_check import check_plan
from alpa_mlir.passes.schedule_lists import TICKS, instruction_lists
from alpa_mlir.passes.schedule_timeline import play_plan
from alpa_mlir.passes.split import Split
from alpa_mlir.runtime.execute import run_plan

INPUTS = Path(__file__).parents[2] / "lit_tests" / "split"
PIPELINES = [(p, m) for p in (1, 2, 3, 4) for m in (1, 2, 3, 8)]


class Chain:
    """A pipeline of p stages by hand, with skip connections, an index, a parameter used on two stages, and a norm.

    Forward s reads the slice (s = 0), forward s−1's value and, every other stage, stage 0's value directly;
    the first stage's parameter is also used by the last one; the update passes a scalar down and up again.
    With `lanes` several stages share a submesh; with `apart` the sums come from weight parts.
    """

    def __init__(
        self, stages: int, microbatches: int, backward: bool = True, lanes: int = 0, apart: bool = False
    ) -> None:
        self.stages, self.lanes, self.apart = stages, lanes or stages, apart
        self.steps: list[Step] = []
        sums = self._forward_backward(backward)
        totals = [self._add(Accumulate, "add", operands=(g,), results=(self._type(s),)) for s, g in sums]
        results = [self._update(totals)] if backward else []
        stack = self._add(Stack, 0, operands=(self.last,), results=(self._type(stages - 1, 4 * microbatches),))
        arguments = (Argument(self._type(0), "state", 0), Argument(self._type(0, 4 * microbatches), "batch"))
        self.main = PlanMain(arguments, tuple(self.steps), (*results, stack), (), microbatches)

    def _type(self, stage: int, rows: int = 4) -> MeshTensor:
        return tensor(stage % self.lanes, rows)

    def _add(self, kind, *fields, operands, results) -> Ref:
        number = len(self.steps)
        if kind is Index:
            self.steps.append(Index(number, results))
        else:
            self.steps.append(kind(number, *fields, operands=operands, results=results))
        return Ref(number)

    def _send(self, ref: Ref, stage: int, phase: str) -> Ref:
        source = self._type(0) if ref.is_argument else self.steps[ref.op].results[ref.result]
        if source == self._type(stage):
            return ref
        return self._add(Transfer, phase, operands=(ref,), results=(self._type(stage),))

    def _call(self, stage: int, phase: str, operands: tuple[Ref, ...]) -> Ref:
        mesh, name = f"stage_{stage % self.lanes}", f"stage_{stage}_{phase}"
        return self._add(Fragment, phase, stage, mesh, name, operands=operands, results=(self._type(stage),))

    def _forward_backward(self, backward: bool) -> list[tuple[int, Ref]]:
        weight = Ref(ARGUMENT, 0)
        tied = self._send(weight, self.stages - 1, "prologue") if self.stages > 1 else weight
        piece = self._add(Slice, 0, operands=(Ref(ARGUMENT, 1),), results=(self._type(0),))
        forward = [self._call(0, "forward", (piece, weight))]
        for s in range(1, self.stages):
            index = self._add(Index, operands=(), results=(self._type(s),))
            operands = [self._send(forward[-1], s, "forward"), index]
            operands += [self._send(forward[0], s, "forward")] if s > 1 and s % 2 == 0 else []
            operands += [tied] if s == self.stages - 1 else []
            forward.append(self._call(s, "forward", tuple(operands)))
        self.last = forward[-1]
        sums: list[tuple[int, Ref]] = []
        arriving: tuple[Ref, ...] = ()
        for s in reversed(range(self.stages) if backward else ()):
            operands = (forward[s], *arriving)
            if self.apart:
                made = (self._call(s, "backward", operands),) if s else ()
                sums.append((s, self._call(s, "weight", (forward[s], *arriving, *made))))
            else:
                made = (self._call(s, "backward", operands),)
                sums.append((s, made[0]))
            arriving = (self._send(made[0], s - 1, "backward"),) if s else ()
        return sums

    def _update(self, totals: list[Ref]) -> Ref:
        """Every stage's total comes to stage 0, which updates."""
        meshes = [self.steps[t.op].results[0].mesh for t in totals]
        moved = [t if m == "stage_0" else self._send(t, 0, "update") for t, m in zip(totals, meshes, strict=True)]
        return self._call(0, "update", (Ref(ARGUMENT, 0), *moved))

    def plan(self, kind: str) -> Plan:
        pipeline = tuple(f"stage_{s % self.lanes}" for s in range(self.stages))
        lists = instruction_lists(self.main, kind, pipeline)
        stages = {m: Stage(Mesh(m, (("x", 1),)), (i,)) for i, m in enumerate(lists)}
        return Plan(stages, self.main, tuple(Schedule(m, kind, lane) for m, lane in lists.items()), None, pipeline)


def tensor(lane: int, rows: int = 4) -> MeshTensor:
    return MeshTensor(f"stage_{lane}", (rows,), "f32", Sharding.replicated(1))


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("kind", ["1f1b", "eager-1f1b", "gpipe", "inference"])
def test_schedules_play(kind: str, p: int, m: int) -> None:
    plan = Chain(p, m, backward=kind != "inference").plan(kind)
    check_plan(plan)
    for schedule in plan.schedules:
        calls = [i for i in schedule.instructions if isinstance(i, Run)]
        assert len(calls) >= m


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("v", [2, 3])
def test_schedules_of_several_stages_a_submesh_play(v: int, p: int, m: int) -> None:
    for kind in ("interleaved", "gpipe"):
        plan = Chain(p * v, m, lanes=p).plan(kind)
        check_plan(plan)
        assert len(plan.schedules) == p
    check_plan(Chain(p * v, m, backward=False, lanes=p).plan("inference"))


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("kind", ["zero-bubble", "zero-bubble-h2"])
def test_schedules_with_weight_parts_play(kind: str, p: int, m: int) -> None:
    check_plan(Chain(p, m, apart=True).plan(kind))


def test_a_stage_that_keeps_too_many_microbatches_is_refused() -> None:
    """H2's list under the name of H1, and GPipe's under that of the interleaved schedule."""
    for made, name, chain in (
        ("zero-bubble-h2", "zero-bubble", Chain(3, 8, apart=True)),
        ("gpipe", "interleaved", Chain(6, 8, lanes=3)),
    ):
        plan = chain.plan(made)
        with pytest.raises(CompileError, match=r"microbatches in flight, at most \d+ allowed \(S7\)"):
            check_plan(replace(plan, schedules=tuple(replace(s, kind=name) for s in plan.schedules)))


def test_a_batch_argument_that_is_only_collected() -> None:
    """The batch is returned as it came and summed: no fragment reads it."""
    full, part = tensor(0, 12), tensor(0)
    steps: tuple[Step, ...] = (
        Slice(0, 0, (Ref(ARGUMENT, 0),), (part,)),
        Stack(1, 0, (Ref(0),), (full,)),
        Accumulate(2, "add", (Ref(0),), (part,)),
    )
    main = PlanMain((Argument(full, "batch"),), steps, (Ref(1), Ref(2)), (), 3)
    lists = instruction_lists(main, "inference", ["stage_0"])
    plan = Plan({"stage_0": Stage(Mesh("stage_0", (("x", 1),)), (0,))}, main, (), None)
    check_plan(replace(plan, schedules=(Schedule("stage_0", "inference", lists["stage_0"]),)))
    assert sum(isinstance(i, Run) for i in lists["stage_0"]) == 3


def test_1f1b_alternates_and_holds_little() -> None:
    plan = Chain(3, 6).plan("1f1b")
    main = plan.main
    for s, schedule in enumerate(plan.schedules):
        order = []
        for i in schedule.instructions:
            step = main.step(i.id) if isinstance(i, Run) else None
            if isinstance(step, Fragment) and step.phase in ("forward", "backward"):
                order.append(step.phase[0])
        ahead = 3 - 1 - s
        assert "".join(order) == "f" * ahead + "fb" * (6 - ahead) + "b" * ahead


def test_gpipe_is_refused_as_1f1b() -> None:
    plan = Chain(3, 6).plan("gpipe")
    damaged = replace(plan, schedules=tuple(replace(s, kind="1f1b") for s in plan.schedules))
    with pytest.raises(CompileError, match=r"4 microbatches in flight, at most 3 allowed \(S7\)"):
        check_plan(damaged)


def damage(plan: Plan, mesh: int, edit) -> Plan:
    """The plan with one list edited in place by `edit`."""
    schedules = list(plan.schedules)
    instructions = list(schedules[mesh].instructions)
    edit(instructions)
    schedules[mesh] = replace(schedules[mesh], instructions=tuple(instructions))
    return replace(plan, schedules=tuple(schedules))


@pytest.mark.parametrize("p", [2, 4])
def test_every_missing_or_doubled_instruction_is_refused(p: int) -> None:
    plan = Chain(p, 3).plan("1f1b")
    for mesh, schedule in enumerate(plan.schedules):
        for at, instruction in enumerate(schedule.instructions):
            with pytest.raises(CompileError, match=r"\(S[28]\)"):
                check_plan(damage(plan, mesh, lambda lane, at=at: lane.pop(at)))
            with pytest.raises(CompileError, match=r"\(S[234]\)"):
                check_plan(damage(plan, mesh, lambda lane, at=at, i=instruction: lane.insert(at, i)))


def test_use_before_definition_is_refused() -> None:
    plan = Chain(2, 2).plan("1f1b")

    def recv_last(lane) -> None:
        at = next(n for n, i in enumerate(lane) if isinstance(i, Recv) and i.microbatch == 0)
        lane.append(lane.pop(at))

    with pytest.raises(CompileError, match=r"before it is there \(S3\)"):
        check_plan(damage(plan, 1, recv_last))


def test_free_before_use_is_refused() -> None:
    plan = Chain(2, 2).plan("1f1b")

    def free_early(lane) -> None:
        at = next(n for n, i in enumerate(lane) if isinstance(i, Free) and i.microbatch == 1)
        made = next(
            n for n, i in enumerate(lane) if isinstance(i, Run) and (i.id, i.microbatch) == (lane[at].values[0].op, 1)
        )
        lane.insert(made + 1, lane.pop(at))

    with pytest.raises(CompileError, match=r"after it was freed \(S3\)"):
        check_plan(damage(plan, 0, free_early))


@pytest.mark.parametrize(
    "values, message",
    [
        ((Ref(-1, 0),), r"value -1\.0 is freed where it is not held \(S4\)"),
        ((Ref(10**6, 0),), r"value 1000000\.0 is freed where it is not held \(S4\)"),
        ((Ref(1, 10**12),), r"value 1\.1000000000000 is freed where it is not held \(S4\)"),
        ((Ref(1, -1),), r"value 1\.-1 is freed where it is not held \(S4\)"),
    ],
)
def test_free_of_nothing_is_refused(values: tuple[Ref, ...], message: str) -> None:
    plan = Chain(2, 2).plan("1f1b")
    with pytest.raises(CompileError, match=message):
        check_plan(damage(plan, 0, lambda lane: lane.append(Free(values, -1))))


def test_free_twice_in_one_instruction_is_refused() -> None:
    plan = Chain(2, 2).plan("1f1b")

    def twice(lane) -> None:
        at = next(n for n, i in enumerate(lane) if isinstance(i, Free))
        lane[at] = replace(lane[at], values=lane[at].values + lane[at].values[:1])

    with pytest.raises(CompileError, match=r"is freed twice \(S4\)"):
        check_plan(damage(plan, 0, twice))


def test_crossed_messages_are_refused() -> None:
    """Stage 0 sends microbatch 0 after microbatch 1: the receiver would take one microbatch for the other."""
    plan = Chain(2, 2).plan("gpipe")
    schedule = plan.schedules[0]
    sends = [i for i in schedule.instructions if isinstance(i, Send) and i.microbatch >= 0]
    kept = [i for i in schedule.instructions if not isinstance(i, Free)]
    kept.remove(sends[0])
    kept.insert(kept.index(sends[1]) + 1, sends[0])
    swapped = (*kept, *(i for i in schedule.instructions if isinstance(i, Free)))
    damaged = replace(plan, schedules=(replace(schedule, instructions=swapped), plan.schedules[1]))
    with pytest.raises(CompileError, match=r"stage_0 sends to stage_1 in another order than stage_1 receives \(S5\)"):
        check_plan(damaged)


def test_deadlock_of_blocking_sends_is_refused() -> None:
    """Two stages that both send before they receive: fine with buffers, for ever stuck without."""
    one, two = tensor(0), tensor(1)
    steps: tuple[Step, ...] = (
        Fragment(0, "prologue", 0, "stage_0", "a", (), (one,)),
        Fragment(1, "prologue", 1, "stage_1", "b", (), (two,)),
        Transfer(2, "prologue", (Ref(0),), (two,)),
        Transfer(3, "prologue", (Ref(1),), (one,)),
    )
    main = PlanMain((), steps, (Ref(0), Ref(1), Ref(2), Ref(3)))
    stages = {m: Stage(Mesh(m, (("x", 1),)), (i,)) for i, m in enumerate(("stage_0", "stage_1"))}
    good = Schedule("stage_0", "gpipe", (Run(0, -1), Send(2, -1), Recv(3, -1)))
    bad = Schedule("stage_1", "gpipe", (Run(1, -1), Send(3, -1), Recv(2, -1)))
    with pytest.raises(CompileError, match=r"waits for ever with sends that block until received \(S6\)"):
        check_plan(Plan(stages, main, (good, bad), None))
    check_plan(Plan(stages, main, (good, replace(bad, instructions=(Run(1, -1), Recv(2, -1), Send(3, -1)))), None))


def joined_runs(plan: Plan) -> dict[str, int]:
    """How often each stage function is joined to the one before it."""
    runs = [i for s in plan.schedules for i in s.instructions if isinstance(i, Run) and i.joined]
    return dict(Counter(plan.main.step(run.id).function for run in runs))


@pytest.mark.parametrize("stages", [2, 3])
def test_the_last_stage_is_one_program_forward_and_backward(stages: int) -> None:
    """Nobody else waits for its forward, and its backward waits for nobody else."""
    for kind in ("1f1b", "eager-1f1b"):
        assert joined_runs(Chain(stages, 4).plan(kind)) == {f"stage_{stages - 1}_backward": 4}
    assert joined_runs(Chain(stages, 4).plan("gpipe")) == {}


def test_one_stage_with_one_microbatch_is_one_program() -> None:
    assert joined_runs(Chain(1, 1).plan("1f1b")) == {"stage_0_backward": 1, "stage_0_update": 1}
    assert joined_runs(Chain(1, 2).plan("1f1b")) == {"stage_0_backward": 2}
    # With more stages what backward makes is sent before the update.
    assert "stage_0_update" not in joined_runs(Chain(2, 1).plan("1f1b"))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_joining_keeps_the_runs_in_order(pipeline: tuple[int, int]) -> None:
    chain = Chain(*pipeline)
    for kind in ("1f1b", "eager-1f1b", "gpipe"):
        meshes = tuple(f"stage_{s}" for s in range(chain.stages))
        lists = [instruction_lists(chain.main, kind, meshes, join) for join in (False, True)]
        for mesh in meshes:
            apart, together = ([i for i in lanes[mesh] if isinstance(i, Run)] for lanes in lists)
            assert apart == [replace(run, joined=False) for run in together]


def test_a_run_joined_across_a_message_is_refused() -> None:
    plan = Chain(2, 2).plan("1f1b")

    def join(lane: list[Instruction]) -> None:
        at = next(n for n, i in enumerate(lane) if isinstance(i, Run) and isinstance(lane[n - 1], Recv))
        lane[at] = replace(lane[at], joined=True)

    with pytest.raises(CompileError, match=r"cannot be joined to what stands before it \(S9\)"):
        check_plan(damage(plan, 1, join))


def test_random_swaps_are_refused_or_harmless() -> None:
    """What the checker accepts really plays: its verdict agrees with a replay on values."""
    plan = Chain(3, 3).plan("1f1b")
    rng = random.Random(0)
    verdicts = []
    for _ in range(300):
        mesh = rng.randrange(3)
        a, b = sorted(rng.sample(range(len(plan.schedules[mesh].instructions)), 2))

        def swap(lane, a=a, b=b) -> None:
            lane[a], lane[b] = lane[b], lane[a]

        damaged = damage(plan, mesh, swap)
        try:
            check_plan(damaged)
            accepted = True
        except CompileError:
            accepted = False
        if accepted:
            assert replay(damaged) == replay(plan)
        verdicts.append(accepted)
    assert 0 < sum(verdicts) < 300


def replay(plan: Plan) -> list[object]:
    """The step's results as expressions, executing the lists on symbolic values (independent of the checker)."""
    lanes = {s.mesh: deque(s.instructions) for s in plan.schedules}
    values: dict[str, dict] = {m: {} for m in lanes}
    wires: dict[tuple[int, int], object] = {}
    progress = True
    while progress:
        progress = False
        for mesh, lane in lanes.items():
            while lane and not (isinstance(lane[0], Recv) and (lane[0].id, lane[0].microbatch) not in wires):
                execute(plan.main, lane.popleft(), values[mesh], wires)
                progress = True
    assert not any(lanes.values())
    return [values[plan.main.type_of(r).mesh][r, -1] for r in plan.main.results]


def execute(main: PlanMain, instruction: Instruction, held: dict, wires: dict) -> None:
    """One instruction on one submesh's values."""
    if isinstance(instruction, Free):
        for value in instruction.values:
            del held[value, instruction.microbatch]
        return
    m = instruction.microbatch
    for number in instruction.ids if isinstance(instruction, Combine) else (instruction.id,):
        if isinstance(instruction, Recv):
            held[Ref(number), m] = wires[number, m]
            continue
        operands = [
            ("argument", r.result) if r.is_argument else held[r, m if main.per_microbatch(r) else -1]
            for r in main.step(number).operands
        ]
        if isinstance(instruction, Send):
            wires[number, m] = operands[0]
        elif isinstance(instruction, Run):
            held[Ref(number), m] = (number, m, *operands)
        else:
            held.setdefault((Ref(number), -1), {})[m] = operands[0]


def sharded(name: str):
    return parse_module((INPUTS / name).read_text(), make_context())


@pytest.mark.parametrize("kind", ["1f1b", "eager-1f1b", "gpipe", "auto"])
def test_plan_equals_one_device(kind: str) -> None:
    module = sharded("clipped.mlir")
    original = one_device(module)
    values = random_inputs(original, np.random.default_rng(1))
    expected = run_all([original], [values])[0]
    Split().apply(module, [])
    SchedulePass(kind=kind).apply(module, [])
    assert_close(run_plan(print_module(module), values), expected, kind)


def test_plan_is_sealed_verified_and_reproducible() -> None:
    texts = []
    for _ in range(2):
        module = sharded("mlp.mlir")
        Split().apply(module, [])
        SchedulePass().apply(module, [])
        assert module.operation.verify()
        alpa.verify(module)
        texts.append(print_module(module))
    assert texts[0] == texts[1]
    again = parse_module(texts[0], make_context())
    check_digest(again)
    plan = read_plan(again)
    assert {s.kind for s in plan.schedules} == {"1f1b"}
    check_plan(plan)


@pytest.mark.parametrize(
    ("kind", "v", "ticks"),
    [
        ("1f1b", 1, 8 + 3),
        ("eager-1f1b", 1, 8 + 3),
        ("gpipe", 1, 8 + 3),
        ("interleaved", 2, 2 * 8 + 3),
        ("zero-bubble", 1, 8 + 1),
    ],
)
def test_a_plans_lists_played_with_unit_times_give_the_closed_forms(kind: str, v: int, ticks: int) -> None:
    """Four submeshes, eight microbatches of 3 ticks: idle 3 (p - 1), a third of that for zero-bubble."""
    plan = Chain(4 * v, 8, lanes=4, apart=kind == "zero-bubble").plan(kind)
    timeline = play_plan(plan, unit_costs(plan.main, kind))
    if kind == "zero-bubble":  # stage 0 has no backward part here: one tick less for each microbatch
        assert timeline.period == simulate(kind, [replace(TICKS, backward=0.0), *[TICKS] * 3], 8).period
    else:
        assert timeline.makespan == timeline.period == 3.0 * ticks
    assert len(timeline.moves) == sum(isinstance(i, Send) for s in plan.schedules for i in s.instructions)


@pytest.mark.parametrize(
    ("element", "size"), [("f32", 4), ("bf16", 2), ("i1", 1), ("ui32", 4), ("f8E4M3FN", 1), ("complex<f32>", 8)]
)
def test_element_bytes(element: str, size: int) -> None:
    assert element_bytes(element) == size


def test_refuses_what_it_cannot_schedule() -> None:
    module = sharded("mlp.mlir")
    with pytest.raises(CompileError, match="run alpa-split first"):
        SchedulePass().apply(module, [])
    Split().apply(module, [])
    with pytest.raises(CompileError, match="cannot run a backward pass"):
        SchedulePass(kind="inference").apply(module, [])
    with pytest.raises(CompileError, match="unknown schedule 'zigzag'"):
        SchedulePass(kind="zigzag").apply(module, [])
