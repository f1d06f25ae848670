"""When the parts of a pipeline's microbatches run, as a compiled loop: what `simulate.play` finds, many times faster.

The same additions in the same order, so the same numbers to the last bit (a test compares them). A part is known by its
place in the arrays of `schedules.lane_parts`: which part (0 forward, 1 backward, 2 weight), microbatch, stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.inter.schedules import Parts
from alpa_mlir.passes.intra.compiled import compiled

Seconds = npt.NDArray[np.float64]


def start_times(orders: Sequence[Parts], duration: Seconds, send: Seconds) -> list[Seconds]:
    """For each lane when its tasks start, in their order.

    `duration[part, stage]` of a task; `send[part, stage]` what its result needs to the next stage (forward) or the one
    before (backward). ValueError where the order of the lanes and the dependencies contradict each other.
    """
    ends = np.cumsum([0, *map(len, orders)])
    tasks = np.concatenate(orders)
    microbatches = int(tasks[:, 1].max()) + 1
    start, reached = _play(tasks, ends, microbatches, duration, send)
    stuck = [tasks[at].tolist() for at, end in zip(reached, ends[1:], strict=True) if at < end]
    if stuck:
        raise ValueError(f"the schedule cannot go on: {stuck} (part, microbatch, stage) wait for each other")
    return np.split(start, ends[1:-1])


@compiled
def _play(
    tasks: Parts, ends: Parts, microbatches: int, duration: Seconds, send: Seconds
) -> tuple[Seconds, npt.NDArray[np.int64]]:
    """Start times of the tasks of all lanes, and how far each lane came."""
    lanes, stages = len(ends) - 1, duration.shape[1]
    start, free = np.zeros(len(tasks)), np.zeros(lanes)
    at = ends[:-1].copy()
    finish = np.full((3, stages, microbatches), np.nan)
    moved = True
    while moved:
        moved = False
        for lane in range(lanes):
            while at[lane] < ends[lane + 1]:
                part, m, s = tasks[at[lane]]
                ready = free[lane]
                # A comparison with what has not run yet (NaN) is False, so its finish is put in as it is.
                if part == 0 and s > 0:
                    before = finish[0, s - 1, m] + send[0, s - 1]
                    ready = ready if ready >= before else before
                if part == 2:
                    before = finish[1, s, m]
                    ready = ready if ready >= before else before
                if part == 1:
                    before = finish[0, s, m]
                    ready = ready if ready >= before else before
                    if s + 1 < stages:
                        before = finish[1, s + 1, m] + send[1, s + 1]
                        ready = before if np.isnan(before) or before > ready else ready
                if np.isnan(ready):
                    break
                start[at[lane]] = ready
                free[lane] = finish[part, s, m] = ready + duration[part, s]
                at[lane] += 1
                moved = True
    return start, at
