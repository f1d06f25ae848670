"""One time for all ranks: how far each rank's clock is from rank 0's, by exchanging messages.

Rank 0 asks a rank for its time again and again.  The answer was written between question and arrival, so the rank's
clock is ahead by (its time - the middle of the two), right to half the time of the exchange (Cristian 1989); the
quickest exchange counts.  Clocks drift, so this is done when the run begins and when it ends, with a straight line
between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDS = 30


@dataclass(frozen=True)
class Reading:
    """At this rank's time `at` its clock was `ahead` seconds ahead of rank 0's."""

    at: float
    ahead: float


def read(world: Any, clock: Callable[[], float] = time.perf_counter) -> Reading:
    """This rank's reading; all ranks call it.  `world` is MPI's communicator, or None for one process."""
    if world is None or world.rank == 0:
        for rank in range(1, 1 if world is None else world.size):
            world.send(_ask(world, rank, clock), rank)
        return Reading(clock(), 0.0)
    question, answer = np.zeros(1), np.zeros(1)
    for _ in range(ROUNDS):
        world.Recv(question, 0)
        answer[0] = clock()
        world.Send(answer, 0)
    return Reading(clock(), float(world.recv(source=0)))


def _ask(world: Any, rank: int, clock: Callable[[], float]) -> float:
    """How far the clock of `rank` is ahead."""
    question, answer = np.zeros(1), np.zeros(1)
    found: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        before = clock()
        world.Send(question, rank)
        world.Recv(answer, rank)
        after = clock()
        found.append((after - before, float(answer[0]) - (before + after) / 2))
    return min(found)[1]


def to_rank_0(first: Reading, last: Reading) -> Callable[[float], float]:
    """From this rank's time to rank 0's."""
    drift = (last.ahead - first.ahead) / (last.at - first.at) if last.at > first.at else 0.0
    return lambda t: t - first.ahead - drift * (t - first.at)
