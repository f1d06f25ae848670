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

import numpy as np

from alpa_mlir.passes.inter.schedules import (
    BACKWARD,
    EAGER,
    FORWARD,
    GPIPE,
    PARTS,
    SPLIT_BACKWARD,
    WEIGHT,
    Parts,
    Pipeline,
    lane_parts,
    last_part,
)
from alpa_mlir.passes.inter.starts import Seconds, start_times

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


@dataclass(frozen=True)
class Step:
    """A step under a schedule, as far as settings are compared by: its length, the steady rate, the bubble, peak bytes
    per lane."""

    makespan: float
    period: float
    bubble: float
    peak_bytes: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Lane:
    """The tasks of one lane, when they start and finish."""

    stages: range
    tasks: Parts
    start: Seconds
    finish: Seconds


def measure(kind: str, costs: Sequence[StageCosts], microbatches: int, lanes: int = 0) -> Step:
    """Play schedule `kind` of `microbatches` microbatches over a chain of stages on `lanes` lanes (0: one each)."""
    return _measured(kind, costs, _played(kind, costs, microbatches, lanes))


def simulate(kind: str, costs: Sequence[StageCosts], microbatches: int, lanes: int = 0) -> Timeline:
    """The same with its boxes."""
    by_lane = _played(kind, costs, microbatches, lanes)
    spans = list[Span]()
    for number, lane in enumerate(by_lane):
        boxes = zip(lane.tasks.tolist(), lane.start.tolist(), lane.finish.tolist(), strict=True)
        spans += [Span(number, s, PARTS[part], m, start, finish) for (part, m, s), start, finish in boxes]
        spans += _updates(number, costs, lane)
    ordered = tuple(sorted(spans, key=lambda b: (b.lane, b.start, b.finish)))
    step = _measured(kind, costs, by_lane)
    return Timeline(kind, ordered, step.makespan, step.period, step.bubble, step.peak_bytes)


def _played(kind: str, costs: Sequence[StageCosts], microbatches: int, lanes: int) -> list[_Lane]:
    pipeline = Pipeline(len(costs), lanes or len(costs), microbatches)
    orders = [lane_parts(kind, lane, pipeline) for lane in range(pipeline.lanes)]
    duration = np.array([[c.seconds(kind, part) for c in costs] for part in PARTS], dtype=np.float64)
    send = np.array([[c.send_forward for c in costs], [c.send_backward for c in costs]], dtype=np.float64)
    starts = start_times(orders, duration, send)
    return [
        _Lane(pipeline.stages_of(lane), tasks, start, start + duration[tasks[:, 0], tasks[:, 2]])
        for lane, (tasks, start) in enumerate(zip(orders, starts, strict=True))
    ]


def _measured(kind: str, costs: Sequence[StageCosts], lanes: Sequence[_Lane]) -> Step:
    ends = [max([lane.finish.max(), *(u.finish for u in _updates(n, costs, lane))]) for n, lane in enumerate(lanes)]
    period = max(lane.finish[-1] - lane.start[0] for lane in lanes)
    busy = sum(float((lane.finish - lane.start).sum()) for lane in lanes)
    bubble = _bubble(busy, period, len(lanes))
    return Step(float(max(ends)), float(period), float(bubble), tuple(_peak(kind, costs, lane) for lane in lanes))


def idle_share(lanes: Sequence[Sequence[Span]]) -> tuple[float, float]:
    """(period, bubble) of the microbatches' boxes of each lane, in order."""
    period = max((boxes[-1].finish - boxes[0].start for boxes in lanes if boxes), default=0.0)
    busy = sum(b.finish - b.start for boxes in lanes for b in boxes)
    return period, _bubble(busy, period, len(lanes))


def _bubble(busy: float, period: float, lanes: int) -> float:
    """The part of the period that lanes stand idle; `busy`: the seconds that they work, all together."""
    return max(0.0, 1.0 - busy / (period * lanes)) if period > 0 else 0.0


def _updates(number: int, costs: Sequence[StageCosts], lane: _Lane) -> list[Span]:
    """The updates of a lane's stages, one after the other, right after its last task."""
    found, start = list[Span](), float(lane.finish[-1])
    for s in lane.stages:
        if costs[s].update > 0:
            found.append(Span(number, s, "update", -1, start, start + costs[s].update))
            start = found[-1].finish
    return found


def _peak(kind: str, costs: Sequence[StageCosts], lane: _Lane) -> float:
    """Most bytes of a lane at once.

    A microbatch's activations live from the start of its forward part to the end of its backward part, or, as far
    as the weight part wants them, to the end of that.
    """
    part, _, stage = lane.tasks.T
    kept = np.array([c.activation_bytes for c in costs])[stage]
    later = np.array([c.weight_bytes if kind in SPLIT_BACKWARD else 0.0 for c in costs])[stage]
    freed = np.where(part == PARTS.index(WEIGHT), later, kept - later)
    makes = part == PARTS.index(FORWARD)
    ends = makes if kind == "inference" else (part == PARTS.index(BACKWARD)) | (part == PARTS.index(last_part(kind)))
    times = np.concatenate([lane.start[makes], lane.finish[ends]])
    changes = np.concatenate([kept[makes], -freed[ends]])
    most = float(np.cumsum(changes[np.lexsort((changes, times))]).max(initial=0.0))
    return most + sum(costs[s].fixed_bytes for s in lane.stages) + max(costs[s].working_bytes for s in lane.stages)


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
        return ("interleaved", GPIPE)
    return ("1f1b", EAGER, GPIPE, *(SPLIT_BACKWARD if apart else ()))
