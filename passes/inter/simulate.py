"""What a pipeline schedule costs: play it against stage times, transfer times and memory.

Tasks on one stage run one after the other, in the schedule's order; forward of microbatch m on stage s
starts when stage s−1 is done with it and the activations have crossed; backward likewise from stage
s+1.  With equal stage times the bubble (idle share of all stages' time) is (p−1)/(m+p−1) for GPipe
and 1F1B alike (Narayanan et al. 2021, §2.2).  Times are seconds, memory is bytes per device.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from alpa_mlir.passes.inter.schedules import BACKWARD, FORWARD, TRAINING, Task, stage_order

K = TypeVar("K", bound=Hashable)
Node = tuple[int, Task]


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
    """One stage: seconds of a microbatch's forward and backward, seconds once per step, bytes per device.

    `send_forward` is the time of the activations to the next stage, `send_backward` that of their
    gradients from this stage to the one before; `activation_bytes` are kept per microbatch in flight.
    """

    forward: float
    backward: float
    update: float = 0.0
    send_forward: float = 0.0
    send_backward: float = 0.0
    activation_bytes: float = 0.0
    fixed_bytes: float = 0.0


@dataclass(frozen=True)
class Span:
    """A box of the timeline; `microbatch` is -1 for what runs once per step."""

    stage: int
    kind: str
    microbatch: int
    start: float
    finish: float


@dataclass(frozen=True)
class Timeline:
    """A simulated step: boxes by stage and start, length of the step, bubble of the pipelined part, peak bytes."""

    kind: str
    spans: tuple[Span, ...]
    makespan: float
    bubble: float
    peak_bytes: tuple[float, ...]

    def stage(self, number: int) -> tuple[Span, ...]:
        """The boxes of one stage in order."""
        return tuple(s for s in self.spans if s.stage == number)


def simulate(kind: str, costs: Sequence[StageCosts], microbatches: int) -> Timeline:
    """Play schedule `kind` of `microbatches` microbatches over a chain of stages."""
    lanes = [[(s, t) for t in stage_order(kind, s, len(costs), microbatches)] for s in range(len(costs))]
    nodes = [node for lane in lanes for node in lane]
    duration = {(s, t): costs[s].forward if t.kind == FORWARD else costs[s].backward for s, t in nodes}
    start = play(lanes, duration, {n: _needs(n, costs, kind) for n in nodes})
    spans = [Span(s, t.kind, t.microbatch, start[s, t], start[s, t] + duration[s, t]) for s, t in nodes]
    pipelined = max(s.finish for s in spans)
    busy = sum(duration.values())
    bubble = 1.0 - busy / (pipelined * len(costs)) if pipelined > 0 else 0.0
    peaks = tuple(_peak(cost, [b for b in spans if b.stage == s]) for s, cost in enumerate(costs))
    spans += _updates(costs, spans)
    ordered = sorted(spans, key=lambda b: (b.stage, b.start, b.finish))
    return Timeline(kind, tuple(ordered), max(s.finish for s in spans), bubble, peaks)


def _updates(costs: Sequence[StageCosts], spans: Sequence[Span]) -> list[Span]:
    """Each stage's update, right after its last task."""
    done = {s: max(b.finish for b in spans if b.stage == s) for s in range(len(costs))}
    return [Span(s, "update", -1, done[s], done[s] + cost.update) for s, cost in enumerate(costs) if cost.update > 0]


def _needs(node: Node, costs: Sequence[StageCosts], kind: str) -> list[tuple[Node, float]]:
    s, task = node
    if task.kind == FORWARD:
        return [((s - 1, task), costs[s - 1].send_forward)] if s else []
    needs: list[tuple[Node, float]] = [((s, Task(FORWARD, task.microbatch)), 0.0)]
    if s + 1 < len(costs):
        needs.append(((s + 1, task), costs[s + 1].send_backward))
    return needs


def _peak(cost: StageCosts, spans: Sequence[Span]) -> float:
    """Most bytes at once: a microbatch's activations live from its forward to the end of its backward."""
    ends = {b.microbatch: b.finish for b in spans if b.kind == FORWARD}
    ends |= {b.microbatch: b.finish for b in spans if b.kind == BACKWARD}
    starts = {b.microbatch: b.start for b in spans if b.kind == FORWARD}
    events = sorted([(t, 1) for t in starts.values()] + [(t, -1) for t in ends.values()])
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return cost.fixed_bytes + most * cost.activation_bytes


def choose(costs: Sequence[StageCosts], microbatches: int, limit: float = float("inf")) -> Timeline:
    """The quickest training schedule within `limit` bytes per device; ties go to less memory, then to 1F1B.

    Where none fits, the one that needs the least memory.
    """
    played = [simulate(kind, costs, microbatches) for kind in TRAINING]
    fitting = [t for t in played if max(t.peak_bytes) <= limit]
    if not fitting:
        return min(played, key=lambda t: max(t.peak_bytes))
    return min(fitting, key=lambda t: (t.makespan, max(t.peak_bytes)))


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """The timeline as a Chrome/Perfetto trace (Trace Event Format, complete events, microseconds)."""
    stages = sorted({s.stage for s in timeline.spans})
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": s, "args": {"name": f"stage {s}"}} for s in stages
    ]
    for span in timeline.spans:
        name = span.kind if span.microbatch < 0 else f"{span.kind} {span.microbatch}"
        times = {"ts": span.start * 1e6, "dur": (span.finish - span.start) * 1e6}
        events.append({"ph": "X", "name": name, "cat": span.kind, "pid": 0, "tid": span.stage, **times})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"schedule": timeline.kind}}
