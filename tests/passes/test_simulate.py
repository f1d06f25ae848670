"""Schedules and their simulation against closed forms, tick for tick."""

from __future__ import annotations

import json

import pytest

from alpa_mlir.passes.inter.schedules import BACKWARD, FORWARD, KINDS, Task, in_flight, stage_order
from alpa_mlir.passes.inter.simulate import StageCosts, choose, play, simulate, trace_events

PIPELINES = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 8, 16)]


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("f", "b"), [(1.0, 2.0), (1.0, 1.0), (3.0, 5.0)])
def test_bubble_of_equal_stages(kind: str, p: int, m: int, f: float, b: float) -> None:
    timeline = simulate(kind, [StageCosts(f, b)] * p, m)
    assert timeline.makespan == (m + p - 1) * (f + b)
    assert timeline.bubble == pytest.approx((p - 1) / (m + p - 1), abs=1e-12)


@pytest.mark.parametrize(("p", "m"), PIPELINES)
def test_memory_in_flight(p: int, m: int) -> None:
    costs = [StageCosts(1.0, 2.0, activation_bytes=10.0, fixed_bytes=7.0)] * p
    eager, lazy = simulate("gpipe", costs, m), simulate("1f1b", costs, m)
    for s in range(p):
        assert in_flight("1f1b", s, p, m) == min(p - s, m)
        assert in_flight("gpipe", s, p, m) == m
        assert lazy.peak_bytes[s] == 7.0 + 10.0 * min(p - s, m)
        assert eager.peak_bytes[s] == 7.0 + 10.0 * m


def test_1f1b_tick_for_tick() -> None:
    """Two stages, three microbatches, forward 1 tick, backward 1 tick, drawn by hand."""
    timeline = simulate("1f1b", [StageCosts(1.0, 1.0)] * 2, 3)
    drawn = {0: "F0 F1 .. B0 F2 B1 .. B2", 1: ".. F0 B0 F1 B1 F2 B2 .."}
    for s, row in drawn.items():
        boxes = {int(b.start): f"{b.kind[0].upper()}{b.microbatch}" for b in timeline.stage(s)}
        assert " ".join(boxes.get(t, "..") for t in range(8)) == row


@pytest.mark.parametrize(("p", "m"), PIPELINES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_runs_once(kind: str, p: int, m: int) -> None:
    kinds = (FORWARD,) if kind == "inference" else (FORWARD, BACKWARD)
    for s in range(p):
        assert sorted(stage_order(kind, s, p, m)) == sorted(Task(k, i) for k in kinds for i in range(m))


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


def test_update_follows_the_last_backward() -> None:
    timeline = simulate("1f1b", [StageCosts(1.0, 2.0, update=5.0)] * 2, 4)
    assert timeline.makespan == (4 + 1) * 3.0 + 5.0
    last = timeline.stage(1)[-1]
    assert (last.kind, last.microbatch, last.start) == ("update", -1, 13.0)


def test_choice_prefers_less_memory_at_equal_time_and_obeys_the_limit() -> None:
    costs = [StageCosts(1.0, 2.0, activation_bytes=1.0)] * 4
    assert choose(costs, 8).kind == "1f1b"
    slow = [StageCosts(1.0, 2.0, send_forward=1.0, send_backward=1.0, activation_bytes=1.0)] * 4
    assert simulate("gpipe", slow, 8).makespan < simulate("1f1b", slow, 8).makespan
    assert choose(slow, 8).kind == "gpipe"
    assert choose(slow, 8, limit=5.0).kind == "1f1b"
    assert choose(slow, 8, limit=1.0).kind == "1f1b"


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
