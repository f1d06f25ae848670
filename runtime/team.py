"""What the ranks of a job do as one: wait for each other, let rank 0 decide, tell what they have."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime.guard import FAILED, Watchdog, leave
from alpa_mlir.runtime.transport.base import wait_until


def together(world: Any) -> None:
    """Wait for all ranks without spinning; whoever fails meanwhile ends the job.

    Comes before collectives of MPI: a rank that is early would wait there with all of a core.
    """
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.005)


class Team:
    """All ranks of a job, seen from one of them; `world` is MPI's communicator, or None for one process.

    `progress`, once there are messages, moves them while this rank waits.
    """

    def __init__(self, world: Any, watchdog: Watchdog) -> None:
        self.world = world
        self.rank = 0 if world is None else int(world.rank)
        self.size = 1 if world is None else int(world.size)
        self.progress: Callable[[], None] = lambda: None
        self._watchdog = watchdog

    def meet(self) -> None:
        """Return when all ranks have called it."""
        if self.world is not None:
            together(self.world)

    def on_rank_0(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, None elsewhere; where it is refused, all ranks leave and rank 0 says why."""
        refused, made = False, None
        if self.rank == 0:
            try:
                made = make()
            except CompileError as e:
                if self.world is None:
                    raise
                print(e, file=sys.stderr, flush=True)
                refused = True
        self.meet()  # a blocking broadcast would take the cores from rank 0
        if self.told(refused):
            leave(FAILED)
        return made

    def told(self, value: Any) -> Any:
        """What rank 0 has."""
        return value if self.world is None else self.world.bcast(value)

    def everyone(self, mine: Any) -> list[Any]:
        """What each rank has."""
        self.meet()
        return [mine] if self.world is None else cast("list[Any]", self.world.allgather(mine))

    def any_of(self, mine: bool, what: str) -> bool:
        """Whether any rank says yes: the same answer for all, who are asked at the same place."""
        if self.world is None:
            return mine
        asked, found = np.array([int(mine)]), np.zeros(1, int)
        self._wait(self.world.Iallreduce(asked, found), what)
        return bool(found[0])

    def await_all(self, what: str) -> None:
        """Return when all ranks have come so far; messages move meanwhile, and a rank that is late is noticed."""
        if self.world is not None:
            self._wait(self.world.Ibarrier(), what)

    def _wait(self, request: Any, what: str) -> None:
        wait_until(request.Test, self.progress, self._watchdog, what)
