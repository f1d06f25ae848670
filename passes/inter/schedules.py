"""Pipeline schedules: in which order a submesh runs the microbatches' parts of its stages.

A pipeline has S stages on p *lanes* (submeshes), stage s on lane s mod p; with S = v·p a lane holds v
*chunks* of the model.  Each microbatch has a forward part in every stage, and, in training, a backward part
(the gradient of the stage's inputs, which the stage before waits for) and a weight part (the gradients of
its parameters, which nobody waits for).  Schedules that do not tell them apart run both as `backward`.

* **GPipe** (Huang et al. 2019): all forwards, then all backwards; a stage keeps m microbatches.
* **1F1B** (PipeDream-Flush, Narayanan et al. 2021; also Alpa §5): stage s runs p-1-s forwards ahead, then
  alternates one forward, one backward; it keeps at most min(p-s, m) microbatches and has GPipe's bubble.
* **eager 1F1B** (Zhuang et al. 2023, §4; also JaxPP): stage s runs 2(p-1-s) forwards ahead.  Between two stages
  a value then has the time of one more part to cross, where 1F1B waits for it; it keeps min(2(p-s)-1, m) microbatches.
* **interleaved 1F1B** (Narayanan et al. 2021): lane r runs 2(p-1-r) + (v-1)g parts ahead, microbatches in
  groups of g >= p that pass one chunk after the other; the bubble is 1/v of 1F1B's.
* **zero-bubble H1, H2** (Qi et al. 2023): 1F1B with the weight part apart and late: stage s runs k(p-1-s)
  forwards ahead and leaves k·s weight parts behind.  k = 1 is H1: a third of the bubble (parts of equal length)
  with at most p microbatches kept; k = 2 is H2: no bubble with at most 2p-1.
* **inference**: forwards only.

A schedule is only an order per lane; times come from `alpa_mlir.passes.inter.simulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

FORWARD = "forward"
BACKWARD = "backward"
WEIGHT = "weight"


@dataclass(frozen=True, order=True)
class Task:
    """One part of one microbatch in one stage."""

    kind: str
    microbatch: int
    stage: int


@dataclass(frozen=True)
class Pipeline:
    """`stages` on `lanes` submeshes, stage s on lane s mod `lanes`, fed with `microbatches`."""

    stages: int
    lanes: int
    microbatches: int

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.microbatches < 1 or self.stages < 1 or self.stages % self.lanes:
            raise ValueError(f"no pipeline has {self.stages} stages, {self.lanes} lanes, {self.microbatches} batches")

    @property
    def chunks(self) -> int:
        """Stages of each lane."""
        return self.stages // self.lanes

    def stages_of(self, lane: int) -> range:
        """The stages of one lane, in order."""
        return range(lane, self.stages, self.lanes)


def _gpipe(lane: int, pipeline: Pipeline) -> Iterator[Task]:
    stages = pipeline.stages_of(lane)
    yield from (Task(FORWARD, m, s) for s in stages for m in range(pipeline.microbatches))
    yield from (Task(BACKWARD, m, s) for s in reversed(stages) for m in range(pipeline.microbatches))


def _inference(lane: int, pipeline: Pipeline) -> Iterator[Task]:
    for group in _groups(pipeline):
        yield from (Task(FORWARD, m, s) for s in pipeline.stages_of(lane) for m in group)


def _one_forward_one_backward(lane: int, pipeline: Pipeline, factor: int = 1) -> Iterator[Task]:
    """1F1B, or (`factor` 2) its eager kind; with several chunks on a lane the interleaved one."""
    groups, stages = _groups(pipeline), pipeline.stages_of(lane)
    forwards = [Task(FORWARD, m, s) for group in groups for s in stages for m in group]
    backwards = [Task(BACKWARD, m, s) for group in groups for s in reversed(stages) for m in group]
    behind = pipeline.lanes - 1 - lane
    ahead = factor * behind if pipeline.chunks == 1 else 2 * behind + (pipeline.chunks - 1) * len(groups[0])
    ahead = min(ahead, len(forwards))
    yield from forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        yield from (forward, backward)
    yield from backwards[len(forwards) - ahead :]


def _groups(pipeline: Pipeline) -> list[range]:
    """The microbatches in groups of nearly equal size, at least as many as there are lanes where there are so many."""
    count = max(1, pipeline.microbatches // pipeline.lanes)
    size, larger = divmod(pipeline.microbatches, count)
    ends = [g * size + min(g, larger) for g in range(count + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


def _zero_bubble(lane: int, pipeline: Pipeline, factor: int) -> Iterator[Task]:
    m, (stage,) = pipeline.microbatches, pipeline.stages_of(lane)
    ahead, late = min(factor * (pipeline.lanes - 1 - lane), m), min(factor * lane, m)
    yield from (Task(FORWARD, k, stage) for k in range(ahead))
    for k in range(m):
        if ahead + k < m:
            yield Task(FORWARD, ahead + k, stage)
        yield Task(BACKWARD, k, stage)
        if k >= late:
            yield Task(WEIGHT, k - late, stage)
    yield from (Task(WEIGHT, k, stage) for k in range(m - late, m))


_ORDERS: dict[str, Callable[[int, Pipeline], Iterator[Task]]] = {
    "1f1b": _one_forward_one_backward,
    "eager-1f1b": partial(_one_forward_one_backward, factor=2),
    "gpipe": _gpipe,
    "interleaved": _one_forward_one_backward,
    "zero-bubble": partial(_zero_bubble, factor=1),
    "zero-bubble-h2": partial(_zero_bubble, factor=2),
    "inference": _inference,
}
KINDS = tuple(_ORDERS)
SPLIT_BACKWARD = ("zero-bubble", "zero-bubble-h2")
"""Kinds that run the weight part apart from the backward part."""
ONE_CHUNK = ("1f1b", "eager-1f1b", *SPLIT_BACKWARD)
"""Kinds for lanes of one stage each."""


def lane_order(kind: str, lane: int, pipeline: Pipeline) -> tuple[Task, ...]:
    """The tasks of one lane in order; KeyError for an unknown kind, ValueError for an impossible pipeline."""
    if not 0 <= lane < pipeline.lanes:
        raise ValueError(f"a pipeline of {pipeline.lanes} lanes has no lane {lane}")
    if kind in ONE_CHUNK and pipeline.chunks > 1:
        raise ValueError(f"the schedule {kind} takes one stage per submesh, here are {pipeline.chunks}")
    return tuple(_ORDERS[kind](lane, pipeline))


def last_part(kind: str) -> str:
    """The part of a microbatch that ends a stage's need of what its forward part left."""
    return WEIGHT if kind in SPLIT_BACKWARD else BACKWARD


def kind_played(asked: str, backward: bool, pipeline: Pipeline) -> str:
    """The kind of schedule where `asked` was asked for: forward only, or interleaved where stages share submeshes."""
    kind = asked if backward else "inference"
    return "interleaved" if pipeline.chunks > 1 and kind in ONE_CHUNK else kind


def in_flight(kind: str, stage: int, pipeline: Pipeline) -> int:
    """The most microbatches whose activations a stage keeps at once, counted on its lane's order of tasks."""
    if kind == "inference":
        return 1
    now = most = 0
    for task in lane_order(kind, stage % pipeline.lanes, pipeline):
        if task.stage == stage and task.kind in (FORWARD, last_part(kind)):
            now += 1 if task.kind == FORWARD else -1
            most = max(most, now)
    return most
