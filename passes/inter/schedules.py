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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from alpa_mlir.dialect.diagnostics import CompileError

FORWARD = "forward"
BACKWARD = "backward"
WEIGHT = "weight"
PARTS = (FORWARD, BACKWARD, WEIGHT)
EAGER, GPIPE = "eager-1f1b", "gpipe"

Parts = npt.NDArray[np.int64]
"""[tasks, 3]: which of PARTS, of which microbatch, in which stage."""


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


def pipeline_of(stages: Sequence[str], microbatches: int) -> Pipeline:
    """The pipeline whose stage s runs on submesh `stages[s]`; CompileError where submeshes do not come in turn."""
    lanes = list(dict.fromkeys(stages))
    if len(stages) % len(lanes) or any(mesh != lanes[s % len(lanes)] for s, mesh in enumerate(stages)):
        raise CompileError(
            f"{len(stages)} stages on {len(lanes)} submeshes must be dealt out in turn, these lie on "
            f"{', '.join(stages)}"
        )
    return Pipeline(len(stages), len(lanes), microbatches)


def _parts(part: str, microbatches: Parts, stage: int) -> Parts:
    """One part of several microbatches in one stage, in order."""
    return np.stack([np.full_like(microbatches, PARTS.index(part)), microbatches, np.full_like(microbatches, stage)], 1)


def _all(part: str, stages: Sequence[int], pipeline: Pipeline) -> Parts:
    """One part of all microbatches, stage after stage."""
    return np.concatenate([_parts(part, np.arange(pipeline.microbatches), s) for s in stages])


def _by_groups(part: str, stages: Sequence[int], pipeline: Pipeline) -> Parts:
    """One part of all microbatches, group after group, each stage after stage."""
    found = _all(part, stages, pipeline)
    group = np.repeat(np.arange(len(stages)), pipeline.microbatches) + len(stages) * _groups(pipeline)[found[:, 1]]
    return found[np.argsort(group, kind="stable")]


def _groups(pipeline: Pipeline) -> Parts:
    """The group of each microbatch: of nearly equal size, at least as large as there are lanes where there are so many
    microbatches."""
    count = max(1, pipeline.microbatches // pipeline.lanes)
    size, larger = divmod(pipeline.microbatches, count)
    return np.repeat(np.arange(count), size + (np.arange(count) < larger))


def _gpipe(lane: int, pipeline: Pipeline) -> Parts:
    stages = pipeline.stages_of(lane)
    return np.concatenate([_all(FORWARD, stages, pipeline), _all(BACKWARD, stages[::-1], pipeline)])


def _inference(lane: int, pipeline: Pipeline) -> Parts:
    return _by_groups(FORWARD, pipeline.stages_of(lane), pipeline)


def _one_forward_one_backward(lane: int, pipeline: Pipeline, factor: int = 1) -> Parts:
    """1F1B, or (`factor` 2) its eager kind; with several chunks on a lane the interleaved one."""
    stages = pipeline.stages_of(lane)
    forwards, backwards = _by_groups(FORWARD, stages, pipeline), _by_groups(BACKWARD, stages[::-1], pipeline)
    behind = pipeline.lanes - 1 - lane
    group = int(np.count_nonzero(_groups(pipeline) == 0))
    ahead = factor * behind if pipeline.chunks == 1 else 2 * behind + (pipeline.chunks - 1) * group
    ahead = min(ahead, len(forwards))
    steady = len(forwards) - ahead
    alternating = np.stack([forwards[ahead:], backwards[:steady]], 1).reshape(-1, 3)
    return np.concatenate([forwards[:ahead], alternating, backwards[steady:]])


def _zero_bubble(lane: int, pipeline: Pipeline, factor: int) -> Parts:
    m, (stage,) = pipeline.microbatches, pipeline.stages_of(lane)
    ahead, late = min(factor * (pipeline.lanes - 1 - lane), m), min(factor * lane, m)
    behind = {FORWARD: -ahead, BACKWARD: 0, WEIGHT: late}
    rounds = np.arange(-ahead, m + late)
    found = np.stack([_parts(part, rounds - n, stage) for part, n in behind.items()], 1).reshape(-1, 3)
    return found[(found[:, 1] >= 0) & (found[:, 1] < m)]


_ORDERS: dict[str, Callable[[int, Pipeline], Parts]] = {
    "1f1b": _one_forward_one_backward,
    EAGER: partial(_one_forward_one_backward, factor=2),
    GPIPE: _gpipe,
    "interleaved": _one_forward_one_backward,
    "zero-bubble": partial(_zero_bubble, factor=1),
    "zero-bubble-h2": partial(_zero_bubble, factor=2),
    "inference": _inference,
}
KINDS = tuple(_ORDERS)
SPLIT_BACKWARD = ("zero-bubble", "zero-bubble-h2")
"""Kinds that run the weight part apart from the backward part."""
ONE_CHUNK = ("1f1b", EAGER, *SPLIT_BACKWARD)
"""Kinds for lanes of one stage each."""


def lane_parts(kind: str, lane: int, pipeline: Pipeline) -> Parts:
    """The tasks of one lane in order; KeyError for an unknown kind, ValueError for an impossible pipeline."""
    if not 0 <= lane < pipeline.lanes:
        raise ValueError(f"a pipeline of {pipeline.lanes} lanes has no lane {lane}")
    if kind in ONE_CHUNK and pipeline.chunks > 1:
        raise ValueError(f"the schedule {kind} takes one stage per submesh, here are {pipeline.chunks}")
    return _ORDERS[kind](lane, pipeline)


def lane_order(kind: str, lane: int, pipeline: Pipeline) -> tuple[Task, ...]:
    """The same tasks, one by one."""
    return tuple(Task(PARTS[part], m, s) for part, m, s in lane_parts(kind, lane, pipeline).tolist())


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
    part, _, stages = lane_parts(kind, stage % pipeline.lanes, pipeline).T
    begins, ends = part == PARTS.index(FORWARD), part == PARTS.index(last_part(kind))
    changes = (begins.astype(np.int64) - ends)[stages == stage]
    return int(np.cumsum(changes).max(initial=0))
