"""What a pipeline schedule costs: play it against stage times, transfer times and memory.

Tasks on one lane (submesh) run one after the other, in the schedule's order; forward of microbatch m in stage s
starts when stage s-1 is done with it and the activations have crossed; backward likewise from stage s+1;
the weight part follows the backward part.  Times are seconds, memory is bytes per device.

Two lengths are told apart.  The *makespan* is that of a step alone.  The *period* is the longest time between a
lane's first and last task: steps can follow one another at that rate, each lane going on to the next step
while others still work on this one.  The *bubble* is the part of the period that lanes stand idle.
With equal stages it is (p-1)/(m+p-1) for GPipe and both kinds of 1F1B (Narayanan et al. 2021, §2.2), (p-1)/(v·m+p-1)
for interleaved 1F1B; with equal parts (p-1)/(3m+p-1) for zero-bubble H1 and nothing for H2 (Qi et al. 2023, §2).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alpa_mlir.passes.inter.schedules import (
    BACKWARD,
    FORWARD,
    SPLIT_BACKWARD,
    WEIGHT,
    Pipeline,
    Task,
    lane_order,
    last_part,
)

K = TypeVar("K", bound=Hashable)
TIE = 1e-9
"""Lengths that differ by less than this part are equal."""


def play(
    lanes: Sequence[Sequence[K]], duration: Mapping[K, float], after: Mapping[K, Sequence[tuple[K, float]]]
) -> dict[K, float]:
    """Start time of each task: lanes run in order, a task waits for (other task, delay after its finish).

    ValueError where the order of the lanes and the dependencies contradict each other.
    """
    start: dict[K, float] = {}
    position = [0] * len(lanes)
    free = [0.0] * len(lanes)
    moved = True
    while moved:
        moved = False
        for lane, tasks in enumerate(lanes):
            while position[lane] < len(tasks):
                task = tasks[position[lane]]
                needs = after.get(task, ())
                if any(other not in start for other, _ in needs):
                    break
                ready = [start[other] + duration[other] + delay for other, delay in needs]
                start[task] = max([free[lane], *ready])
                free[lane] = start[task] + duration[task]
                position[lane] += 1
                moved = True
    stuck = [tasks[p] for tasks, p in zip(lanes, position, strict=True) if p < len(tasks)]
    if stuck:
        raise ValueError(f"the schedule cannot go on: {stuck} wait for each other")
    return start


@dataclass(frozen=True)
class StageCosts:
    """One stage: seconds of a microbatch's parts, seconds once per step, bytes per device.

    `backward` and `weight` run together where the schedule does not tell them apart. `send_forward` is the time
    of the activations to the next stage, `send_backward` that of their gradients to the stage before.
    `activation_bytes` are kept per microbatch in flight; `weight_bytes` of them until the weight part has run.
    `fixed_bytes` are held all the time, `working_bytes` besides while the stage computes.
    """

    forward: float
    backward: float
    update: float = 0.0
    send_forward: float = 0.0
    send_backward: float = 0.0
    activation_bytes: float = 0.0
    fixed_bytes: float = 0.0
    weight: float = 0.0
    weight_bytes: float = 0.0
    working_bytes: float = 0.0

    def seconds(self, kind: str, part: str) -> float:
        """Duration of a part under a schedule."""
        if part == FORWARD:
            return self.forward
        if kind in SPLIT_BACKWARD:
            return self.backward if part == BACKWARD else self.weight
        return self.backward + self.weight


@dataclass(frozen=True)
class Span:
    """A box of the timeline; `microbatch` is -1 for what runs once per step."""

    lane: int
    stage: int
    kind: str
    microbatch: int
    start: float
    finish: float


@dataclass(frozen=True)
class Move:
    """A transfer of `bytes` from one lane to another, under way from `start` to `finish`."""

    source: int
    target: int
    microbatch: int
    start: float
    finish: float
    bytes: float


@dataclass(frozen=True)
class Timeline:
    """A simulated step: boxes by lane and start, its length, the steady rate, the bubble, peak bytes per lane."""

    kind: str
    spans: tuple[Span, ...]
    makespan: float
    period: float
    bubble: float
    peak_bytes: tuple[float, ...]
    moves: tuple[Move, ...] = ()
    memory: tuple[tuple[tuple[float, float], ...], ...] = ()
    """Where it was followed, per lane (time, bytes held from then on)."""

    def lane(self, number: int) -> tuple[Span, ...]:
        """The boxes of one lane in order."""
        return tuple(s for s in self.spans if s.lane == number)


def simulate(kind: str, costs: Sequence[StageCosts], microbatches: int, lanes: int = 0) -> Timeline:
    """Play schedule `kind` of `microbatches` microbatches over a chain of stages on `lanes` lanes (0: one each)."""
    pipeline = Pipeline(len(costs), lanes or len(costs), microbatches)
    orders = [lane_order(kind, lane, pipeline) for lane in range(pipeline.lanes)]
    duration = {t: costs[t.stage].seconds(kind, t.kind) for order in orders for t in order}
    start = play(orders, duration, {t: _needs(t, costs) for t in duration})
    spans = [
        Span(lane, t.stage, t.kind, t.microbatch, start[t], start[t] + duration[t])
        for lane, order in enumerate(orders)
        for t in order
    ]
    by_lane = [[b for b in spans if b.lane == lane] for lane in range(pipeline.lanes)]
    period, bubble = idle_share(by_lane)
    peaks = tuple(_peak(kind, costs, boxes) for boxes in by_lane)
    for lane, boxes in enumerate(by_lane):
        spans += _updates(lane, costs, pipeline.stages_of(lane), boxes[-1].finish)
    ordered = tuple(sorted(spans, key=lambda b: (b.lane, b.start, b.finish)))
    return Timeline(kind, ordered, max(s.finish for s in ordered), period, bubble, peaks)


def idle_share(lanes: Sequence[Sequence[Span]]) -> tuple[float, float]:
    """(period, bubble) of the microbatches' boxes of each lane, in order."""
    period = max((boxes[-1].finish - boxes[0].start for boxes in lanes if boxes), default=0.0)
    busy = sum(b.finish - b.start for boxes in lanes for b in boxes)
    return period, max(0.0, 1.0 - busy / (period * len(lanes))) if period > 0 else 0.0


def _needs(task: Task, costs: Sequence[StageCosts]) -> list[tuple[Task, float]]:
    m, s = task.microbatch, task.stage
    if task.kind == FORWARD:
        return [(Task(FORWARD, m, s - 1), costs[s - 1].send_forward)] if s else []
    if task.kind == WEIGHT:
        return [(Task(BACKWARD, m, s), 0.0)]
    needs = [(Task(FORWARD, m, s), 0.0)]
    if s + 1 < len(costs):
        needs.append((Task(BACKWARD, m, s + 1), costs[s + 1].send_backward))
    return needs


def _updates(lane: int, costs: Sequence[StageCosts], stages: Sequence[int], start: float) -> list[Span]:
    """The updates of a lane's stages, one after the other, right after its last task."""
    found = []
    for s in stages:
        if costs[s].update > 0:
            found.append(Span(lane, s, "update", -1, start, start + costs[s].update))
            start = found[-1].finish
    return found


def _peak(kind: str, costs: Sequence[StageCosts], boxes: Sequence[Span]) -> float:
    """Most bytes of a lane at once.

    A microbatch's activations live from the start of its forward part to the end of its backward part, or, as far
    as the weight part wants them, to the end of that.
    """
    ends = {FORWARD} if kind == "inference" else {BACKWARD, last_part(kind)}
    changes: list[tuple[float, float]] = []
    for box in boxes:
        cost = costs[box.stage]
        kept = cost.weight_bytes if kind in SPLIT_BACKWARD else 0.0
        if box.kind == FORWARD:
            changes.append((box.start, cost.activation_bytes))
        if box.kind in ends:
            freed = kept if box.kind == WEIGHT else cost.activation_bytes - kept
            changes.append((box.finish, -freed))
    now = most = 0.0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    stages = sorted({box.stage for box in boxes})
    return most + sum(costs[s].fixed_bytes for s in stages) + max(costs[s].working_bytes for s in stages)


def choose(costs: Sequence[StageCosts], microbatches: int, limit: float = float("inf"), lanes: int = 0) -> Timeline:
    """The quickest training schedule within `limit` bytes per device; ties go to less memory, then to 1F1B.

    Where none fits, the one that needs the least memory.
    """
    kinds = training_kinds(len(costs), lanes or len(costs), any(c.weight > 0 for c in costs))
    played = [simulate(kind, costs, microbatches, lanes) for kind in kinds]
    fitting = [t for t in played if max(t.peak_bytes) <= limit]
    if not fitting:
        return min(played, key=lambda t: max(t.peak_bytes))
    quickest = min(t.makespan for t in fitting)
    return min((t for t in fitting if t.makespan <= quickest * (1 + TIE)), key=lambda t: max(t.peak_bytes))


def training_kinds(stages: int, lanes: int, apart: bool) -> tuple[str, ...]:
    """The kinds that suit the stages and lanes, the usual one first; `apart`: the weight part's time is known."""
    if stages == 1:
        return ("1f1b",)
    if lanes != stages:
        return ("interleaved", "gpipe")
    return ("1f1b", "eager-1f1b", "gpipe", *(SPLIT_BACKWARD if apart else ()))
