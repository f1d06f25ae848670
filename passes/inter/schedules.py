"""Pipeline schedules: in which order a stage runs the microbatches' forward and backward parts.

* **GPipe** (Huang et al. 2019): all forwards, then all backwards; a stage keeps M microbatches.
* **1F1B** (PipeDream-Flush, Narayanan et al. 2021; also Alpa §5): stage s of p runs p−1−s forwards
  ahead, then alternates one forward, one backward; it keeps at most min(p−s, M) microbatches and has
  the same bubble as GPipe.
* **inference**: forwards only.

A schedule is only an order per stage; times come from `alpa_mlir.passes.inter.simulate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FORWARD = "forward"
BACKWARD = "backward"


@dataclass(frozen=True, order=True)
class Task:
    """One part (`forward` or `backward`) of one microbatch on the stage whose list holds the task."""

    kind: str
    microbatch: int


def _gpipe(stage: int, stages: int, microbatches: int) -> list[Task]:
    forwards = [Task(FORWARD, m) for m in range(microbatches)]
    return forwards + [Task(BACKWARD, m) for m in range(microbatches)]


def _one_forward_one_backward(stage: int, stages: int, microbatches: int) -> list[Task]:
    ahead = min(stages - 1 - stage, microbatches)
    order = [Task(FORWARD, m) for m in range(ahead)]
    for m in range(microbatches - ahead):
        order += [Task(FORWARD, ahead + m), Task(BACKWARD, m)]
    return order + [Task(BACKWARD, m) for m in range(microbatches - ahead, microbatches)]


def _inference(stage: int, stages: int, microbatches: int) -> list[Task]:
    return [Task(FORWARD, m) for m in range(microbatches)]


_ORDERS: dict[str, Callable[[int, int, int], list[Task]]] = {
    "1f1b": _one_forward_one_backward,
    "gpipe": _gpipe,
    "inference": _inference,
}
KINDS = tuple(_ORDERS)
TRAINING = ("1f1b", "gpipe")
"""Kinds that run a backward part, best first where they cost the same."""


def stage_order(kind: str, stage: int, stages: int, microbatches: int) -> tuple[Task, ...]:
    """The tasks of one stage in order; KeyError for an unknown kind, ValueError for an impossible pipeline."""
    if not 0 <= stage < stages or microbatches < 1:
        raise ValueError(f"no stage {stage} in a pipeline of {stages} stages and {microbatches} microbatches")
    return tuple(_ORDERS[kind](stage, stages, microbatches))


def in_flight(kind: str, stage: int, stages: int, microbatches: int) -> int:
    """The most microbatches whose activations a stage keeps at once, counted on its order of tasks."""
    if kind == "inference":
        return 1
    now = most = 0
    for task in stage_order(kind, stage, stages, microbatches):
        now += 1 if task.kind == FORWARD else -1
        most = max(most, now)
    return most
