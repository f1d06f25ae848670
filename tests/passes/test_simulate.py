"""Schedules and their simulation against closed forms, tick for tick."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from alpa_mlir.passes.inter.schedules import (
    BACKWARD,
    FORWARD,
    KINDS,
    ONE_CHUNK,
    SPLIT_BACKWARD,
    WEIGHT,
    Pipeline,
    Task,
    in_flight,
    lane_order,
)
from alpa_mlir.passes.inter.simulate import Span, StageCosts, Timeline, choose, idle_share, measure, play, simulate
from alpa_mlir.passes.inter.trace import trace_events

PIPELINES = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 8, 16)]
UNITS = StageCosts(1.0, 1.0, weight=1.0, activation_bytes=10.0, fixed_bytes=7.0, weight_bytes=10.0)


def drawn(timeline: Timeline, lane: int) -> str:
    """A lane tick by tick: letter of the part, number of the microbatch (and the stage's chunk where several)."""
    boxes = {int(b.start): f"{b.kind[0].upper()}{b.microbatch}" for b in timeline.lane(lane)}
    return " ".join(boxes.get(t, "..") for t in range(int(timeline.makespan)))


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("kind", ["gpipe", "1f1b", "eager-1f1b"])
@pytest.mark.parametrize(("f", "b"), [(1.0, 2.0), (1.0, 1.0), (3.0, 5.0)])
def test_bubble_of_equal_stages(kind: str, p: int, m: int, f: float, b: float) -> None:
    timeline = simulate(kind, [StageCosts(f, b)] * p, m)
    assert timeline.makespan == timeline.period == (m + p - 1) * (f + b)
    assert timeline.bubble == pytest.approx((p - 1) / (m + p - 1), abs=1e-12)


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize(("f", "b"), [(1.0, 2.0), (1.0, 1.0), (3.0, 5.0)])
@pytest.mark.parametrize("c", [0.25, 0.5, 1.0])
def test_eager_1f1b_waits_for_the_first_and_last_messages_alone(p: int, m: int, f: float, b: float, c: float) -> None:
    """Transfers of c <= (f + b) / 2 seconds cost what the first forward and the last backward one take on their way."""
    costs = [StageCosts(f, b, send_forward=c, send_backward=c)] * p
    eager, plain = simulate("eager-1f1b", costs, m), simulate("1f1b", costs, m)
    assert eager.makespan == (m + p - 1) * (f + b) + 2 * (p - 1) * c
    assert eager.makespan < plain.makespan if p > 1 and m > p else eager.makespan <= plain.makespan


@pytest.mark.parametrize("v", [1, 2, 3, 5])
@pytest.mark.parametrize("m", [1, 3, 4, 5, 8, 11, 16])
@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_interleaving_divides_the_bubble_by_the_chunks(p: int, m: int, v: int) -> None:
    """Narayanan et al. 2021, §2.2, for any m >= p (they ask that p divides m); with less, no worse than 1F1B."""
    chunk = [StageCosts(1.0, 2.0)] * (p * v)
    timeline = simulate("interleaved", chunk, m, p)
    idle = timeline.period - 3.0 * v * m
    if m >= p:
        assert timeline.makespan == timeline.period and idle == 3.0 * (p - 1)
        assert timeline.bubble == pytest.approx((p - 1) / (v * m + p - 1), abs=1e-12)
    else:
        assert 3.0 * (p - 1) <= idle <= 3.0 * v * (p - 1)


def test_interleaved_order_is_megatrons() -> None:
    """Two lanes, two chunks, four microbatches: the order of parts on each lane (stage.microbatch)."""
    words = {
        0: "F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 F0.3 B2.1 F2.2 B0.0 F2.3 B0.1 B2.2 B2.3 B0.2 B0.3",
        1: "F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 F1.2 B1.0 F1.3 B1.1 F3.2 B3.2 F3.3 B3.3 B1.2 B1.3",
    }
    for lane, text in words.items():
        tasks = lane_order("interleaved", lane, Pipeline(4, 2, 4))
        assert " ".join(f"{t.kind[0].upper()}{t.stage}.{t.microbatch}" for t in tasks) == text


@pytest.mark.parametrize(("p", "m"), [(p, m) for p in (1, 2, 3, 4, 6, 8) for m in (3, 5, 6, 8, 16, 33) if m >= p])
def test_zero_bubble_h1_leaves_a_third(p: int, m: int) -> None:
    """Qi et al. 2023, table 2, with equal parts: idle (p-1)·(F + B - W), the memory of 1F1B's first stage."""
    timeline = simulate("zero-bubble", [UNITS] * p, m)
    plain = simulate("1f1b", [UNITS] * p, m)
    assert timeline.period == timeline.makespan == 3 * m + p - 1
    assert plain.period - 3 * m == 3 * (timeline.period - 3 * m)
    assert timeline.bubble == pytest.approx((p - 1) / (3 * m + p - 1), abs=1e-12)
    assert max(timeline.peak_bytes) == max(plain.peak_bytes) == 7.0 + 10.0 * min(p, m)


@pytest.mark.parametrize(("p", "m"), [(p, m) for p in (1, 2, 3, 4, 6, 8) for m in (15, 16, 24, 40) if m >= 2 * p - 1])
def test_zero_bubble_h2_has_none_at_twice_the_memory(p: int, m: int) -> None:
    timeline = simulate("zero-bubble-h2", [UNITS] * p, m)
    assert timeline.period == 3 * m and timeline.bubble == 0.0
    assert timeline.makespan == 3 * m + p - 1
    assert timeline.peak_bytes == (7.0 + 10.0 * (2 * p - 1),) * p


def test_zero_bubble_h1_tick_for_tick() -> None:
    timeline = simulate("zero-bubble", [UNITS] * 3, 4)
    rows = [
        "F0 F1 F2 .. .. B0 W0 F3 B1 W1 B2 W2 B3 W3",
        ".. F0 F1 .. B0 F2 B1 W0 F3 B2 W1 B3 W2 W3",
        ".. .. F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3",
    ]
    assert [drawn(timeline, lane) for lane in range(3)] == rows


@pytest.mark.parametrize(("p", "m"), PIPELINES)
def test_memory_in_flight(p: int, m: int) -> None:
    costs = [StageCosts(1.0, 2.0, activation_bytes=10.0, fixed_bytes=7.0, working_bytes=2.0)] * p
    eager, lazy = simulate("gpipe", costs, m), simulate("1f1b", costs, m)
    for s in range(p):
        assert in_flight("1f1b", s, Pipeline(p, p, m)) == min(p - s, m)
        assert in_flight("eager-1f1b", s, Pipeline(p, p, m)) == min(2 * (p - s) - 1, m)
        assert in_flight("gpipe", s, Pipeline(p, p, m)) == m
        assert in_flight("zero-bubble", s, Pipeline(p, p, m)) == min(p, m)
        assert in_flight("inference", s, Pipeline(p, p, m)) == 1
        assert lazy.peak_bytes[s] == 9.0 + 10.0 * min(p - s, m)
        assert eager.peak_bytes[s] == 9.0 + 10.0 * m


def test_memory_of_chunks_adds_up() -> None:
    """Lane 0 of two has run F0.0 F0.1 F2.0 F2.1 F0.2 before its first backward part; stage 0 alone gets to four."""
    first, third, others = StageCosts(1, 2, 0, 0, 0, 1, 1000), StageCosts(1, 2, 0, 0, 0, 10, 2000), StageCosts(1, 2)
    costs = [first, others, third, others]
    assert [in_flight("interleaved", s, Pipeline(4, 2, 4)) for s in range(4)] == [4, 3, 2, 1]
    assert simulate("interleaved", costs, 4, 2).peak_bytes == (3000 + 3 * 1 + 2 * 10, 0)


def test_the_weight_part_keeps_only_what_it_wants() -> None:
    """The last of four stages leaves three weight parts behind, each keeping 4 of 10 bytes."""
    costs = [StageCosts(1.0, 1.0, weight=1.0, activation_bytes=10.0, weight_bytes=4.0)] * 4
    assert simulate("zero-bubble", costs, 8).peak_bytes[-1] == 3 * 4 + 10
    assert simulate("1f1b", costs, 8).peak_bytes == (40, 30, 20, 10)


def test_the_weight_part_may_want_more_than_was_kept() -> None:
    """Rematerialised: three times 30 bytes wait for their weight parts."""
    costs = [StageCosts(1.0, 1.0, weight=1.0, activation_bytes=10.0, weight_bytes=30.0)] * 4
    assert simulate("zero-bubble", costs, 8).peak_bytes[-1] == 4 * 30


def test_1f1b_tick_for_tick() -> None:
    """Two stages, three microbatches, forward 1 tick, backward 1 tick, drawn by hand."""
    timeline = simulate("1f1b", [StageCosts(1.0, 1.0)] * 2, 3)
    assert [drawn(timeline, lane) for lane in range(2)] == ["F0 F1 .. B0 F2 B1 .. B2", ".. F0 B0 F1 B1 F2 B2 .."]


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_runs_once(kind: str, v: int, p: int, m: int) -> None:
    kinds = {"inference": (FORWARD,)}.get(kind, (FORWARD, BACKWARD, *((WEIGHT,) if kind in SPLIT_BACKWARD else ())))
    pipeline = Pipeline(p * v, p, m)
    for lane in range(p):
        if v > 1 and kind in ONE_CHUNK:
            with pytest.raises(ValueError, match="one stage per submesh, here are"):
                lane_order(kind, lane, pipeline)
            continue
        wanted = sorted(Task(k, i, s) for k in kinds for i in range(m) for s in pipeline.stages_of(lane))
        assert sorted(lane_order(kind, lane, pipeline)) == wanted


def test_impossible_pipelines_are_refused() -> None:
    for stages, lanes, microbatches in ((3, 2, 1), (2, 0, 1), (2, 2, 0)):
        with pytest.raises(ValueError, match="no pipeline has"):
            Pipeline(stages, lanes, microbatches)
    with pytest.raises(ValueError, match="no lane 2"):
        lane_order("1f1b", 2, Pipeline(2, 2, 1))


def test_forward_pipeline_is_paced_by_its_slowest_stage() -> None:
    """sum of stage times + (m-1) * slowest, plus transfers on the way of the first microbatch."""
    times = (1.0, 4.0, 2.0)
    timeline = simulate("inference", [StageCosts(t, 0.0, send_forward=0.5) for t in times], 6)
    assert timeline.makespan == sum(times) + 5 * max(times) + 2 * 0.5


def test_training_with_unequal_stages_against_the_formula_of_the_paper() -> None:
    """GPipe takes sum(t) + (m-1) max(t) where one stage is slowest both ways; 1F1B no more, never below m max(t)."""
    costs = [StageCosts(1.0, 2.0), StageCosts(2.0, 4.0), StageCosts(1.5, 3.0)]
    total = [c.forward + c.backward for c in costs]
    formula = sum(total) + 7 * max(total)
    assert simulate("gpipe", costs, 8).makespan == formula
    assert 8 * max(total) <= simulate("1f1b", costs, 8).makespan <= formula


def test_updates_follow_the_last_part_of_their_lane() -> None:
    timeline = simulate("1f1b", [StageCosts(1.0, 2.0, update=5.0)] * 2, 4)
    assert timeline.makespan == (4 + 1) * 3.0 + 5.0
    last = timeline.lane(1)[-1]
    assert (last.kind, last.microbatch, last.start) == ("update", -1, 13.0)
    chunked = simulate("interleaved", [StageCosts(1.0, 2.0, update=5.0)] * 4, 4, 2)
    assert [(b.stage, b.start) for b in chunked.lane(1) if b.kind == "update"] == [(1, 25.0), (3, 30.0)]


def test_choice_prefers_less_memory_at_equal_time_and_obeys_the_limit() -> None:
    costs = [StageCosts(1.0, 2.0, activation_bytes=1.0)] * 4
    assert choose(costs, 8).kind == "1f1b"
    slow = [StageCosts(1.0, 2.0, send_forward=1.0, send_backward=1.0, activation_bytes=1.0)] * 4
    assert simulate("gpipe", slow, 8).makespan < simulate("1f1b", slow, 8).makespan
    assert choose(slow, 8).kind == "eager-1f1b"
    assert choose(slow, 8, limit=7.0).kind == "eager-1f1b"
    assert choose(slow, 8, limit=6.0).kind == "1f1b"
    far = [StageCosts(1.0, 2.0, send_forward=3.0, send_backward=3.0, activation_bytes=1.0)] * 4
    assert choose(far, 8).kind == "gpipe"
    assert choose(slow, 8, limit=1.0).kind == "1f1b"
    assert choose([UNITS] * 4, 8).kind == "zero-bubble"
    assert choose([StageCosts(1.0, 2.0)] * 8, 8, lanes=4).kind == "interleaved"


def test_contradicting_orders_are_refused() -> None:
    lanes = [["a", "b"], ["c", "d"]]
    with pytest.raises(ValueError, match="wait for each other"):
        play(lanes, dict.fromkeys("abcd", 1.0), {"a": [("d", 0.0)], "c": [("b", 0.0)]})


def test_trace_is_what_chrome_reads() -> None:
    timeline = simulate("1f1b", [StageCosts(0.5, 1.0, update=0.25)] * 2, 2)
    events = json.loads(json.dumps(trace_events(timeline)))["traceEvents"]
    boxes = [e for e in events if e["ph"] == "X"]
    assert len(boxes) == 2 * (2 * 2 + 1)
    assert {(e["name"], e["ts"], e["dur"]) for e in boxes if e["tid"] == 1 and e["cat"] == "forward"} == {
        ("forward 0", 0.5e6, 0.5e6),
        ("forward 1", 2.0e6, 0.5e6),
    }


def needs(task: Task, costs: Sequence[StageCosts]) -> list[tuple[Task, float]]:
    """What a task waits for, as the module says it."""
    m, s = task.microbatch, task.stage
    if task.kind == FORWARD:
        return [(Task(FORWARD, m, s - 1), costs[s - 1].send_forward)] if s else []
    if task.kind == WEIGHT:
        return [(Task(BACKWARD, m, s), 0.0)]
    after = [(Task(BACKWARD, m, s + 1), costs[s + 1].send_backward)] if s + 1 < len(costs) else []
    return [(Task(FORWARD, m, s), 0.0), *after]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_loop_agrees_with_the_plain_one(kind: str, seed: int) -> None:
    """To the last bit, with random stages, transfers, lanes, chunks and numbers of microbatches; memory by walking."""
    draw = random.Random(seed)
    lanes, microbatches = draw.choice((1, 2, 3, 4, 7)), draw.randint(1, 40)
    stages = lanes * (1 if kind in ONE_CHUNK else draw.randint(1, 3))
    parts = ("forward", "backward", "weight", "update", "send_forward", "send_backward")
    sizes = ("activation_bytes", "weight_bytes", "fixed_bytes", "working_bytes")
    # Every other time whole seconds, so that much happens at once.
    seconds = draw.random if seed % 2 else lambda: float(draw.randint(0, 3))
    costs = [
        StageCosts(**{p: seconds() for p in parts}, **{b: float(draw.randint(0, 99)) for b in sizes})
        for _ in range(stages)
    ]
    orders = [lane_order(kind, lane, Pipeline(stages, lanes, microbatches)) for lane in range(lanes)]
    duration = {t: costs[t.stage].seconds(kind, t.kind) for order in orders for t in order}
    start = play(orders, duration, {t: needs(t, costs) for t in duration})
    timeline = simulate(kind, costs, microbatches, lanes)
    boxes = {(b.kind, b.microbatch, b.stage): (b.start, b.finish) for b in timeline.spans if b.kind != "update"}
    assert boxes == {(t.kind, t.microbatch, t.stage): (at, at + duration[t]) for t, at in start.items()}
    period, bubble = idle_share([[b for b in timeline.lane(n) if b.kind != "update"] for n in range(lanes)])
    step = measure(kind, costs, microbatches, lanes)
    assert (step.makespan, step.period) == (max(b.finish for b in timeline.spans), period)
    assert step.bubble == pytest.approx(bubble, abs=1e-12)
    assert step.peak_bytes == timeline.peak_bytes == tuple(held(kind, costs, timeline.lane(n)) for n in range(lanes))


def held(kind: str, costs: Sequence[StageCosts], boxes: Sequence[Span]) -> float:
    """Most bytes of a lane at once, box by box."""
    changes: list[tuple[float, float]] = []
    for box in boxes:
        cost = costs[box.stage]
        kept = cost.weight_bytes if kind in SPLIT_BACKWARD else 0.0
        changes += [(box.start, cost.activation_bytes)] if box.kind == FORWARD else []
        changes += [(box.finish, kept - cost.activation_bytes)] if box.kind == BACKWARD else []
        changes += [(box.finish, -kept)] if box.kind == WEIGHT else []
        changes += [(box.finish, -cost.activation_bytes)] if (kind, box.kind) == ("inference", FORWARD) else []
    now = most = 0.0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    stages = sorted({box.stage for box in boxes})
    return most + sum(costs[s].fixed_bytes for s in stages) + max(costs[s].working_bytes for s in stages)
