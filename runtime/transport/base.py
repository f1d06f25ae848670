"""What carries tiles between submeshes: the interface, and how to wait without blocking.

A transport moves boxes between *endpoints*: ranks, where the memory is the host's, or devices with memory of their own.
It never blocks: `post_send` queues a box of an array, `post_receive` says where a box is to land, `progress` moves
what is ready.  Waiting is a loop of `progress` and short sleeps with back-off, because a thread that spins in MPI takes
the core from XLA's threads.  A send keeps its array until the peer has it: a buffer that XLA reuses while it is being
sent would arrive corrupted.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from alpa_mlir.runtime.guard import Watchdog

SPINS = 20
SHORTEST_SLEEP, LONGEST_SLEEP = 1e-5, 3e-4
Window = tuple[slice, ...]
Array = np.ndarray[Any, np.dtype[Any]]
Buffer: TypeAlias = Any
"""Memory in which boxes land: a numpy array, or one with its interface on a device."""
Held: TypeAlias = jax.Array | Buffer
"""What is sent from: a device's own array, or memory that is kept from being reused."""
Test = Callable[[], bool]
"""Whether something is done; may be asked again and again, and after it was true."""


class Message(NamedTuple):
    """A box on its way; `tag` is unique among those that are under way from this sender to this receiver.

    `lead`: it may go in strips, one for each place in its first `lead` dimensions, which are contiguous at both ends.
    """

    sender: int
    receiver: int
    tag: int
    lead: int = 0


class Transport(ABC):
    """Boxes from endpoint to endpoint."""

    @abstractmethod
    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        """Queue the box `window` of `held`, to leave when all of `after` are done and it is computed."""

    @abstractmethod
    def post_receive(self, target: Buffer, message: Message) -> Test:
        """Let a box land in `target`; the result tells whether it has."""

    @abstractmethod
    def progress(self) -> None:
        """Move what can move; returns at once."""

    @abstractmethod
    def idle(self) -> bool:
        """Whether every posted send has left."""

    @abstractmethod
    def secured(self) -> bool:
        """Whether what was posted can no longer be overwritten by a donation, be it on its way or not."""

    def moves(self) -> bool:
        """Whether something is under way that moves by `progress` alone."""
        return not self.idle()

    def rest(self, seconds: float) -> bool:
        """Sleep before looking again for a message: so long, or until one comes where that can be told.

        Whether one comes.
        """
        return sleep(seconds)

    @property
    def tells(self) -> bool:
        """Whether `rest` ends when a message comes."""
        return False

    def together(self, edge: tuple[str, str], *, hold: bool = False) -> AbstractContextManager[None]:
        """What is posted inside starts as one, on the edge between two submeshes; all ranks in the same order.

        `hold`: it starts with what is posted next on that edge.
        """
        return nullcontext()


def sleep(seconds: float) -> bool:
    """Sleep, and hear nothing."""
    time.sleep(seconds)
    return False


def wait_until(
    done: Test,
    progress: Callable[[], None],
    watchdog: Watchdog,
    what: str,
    busy: Test | None = None,
    rest: Callable[[float], bool] = sleep,
    longest: float = LONGEST_SLEEP,
    spins: int = SPINS,
) -> None:
    """Return when `done()`; meanwhile `progress()`.  First spins a little, then sleeps up to `longest` at a time.

    Looking often costs a core that computes its time, and looking seldom costs one that idles its: while `busy()` the
    sleeps are long, afterwards a tenth of the time since then, or since `rest` heard that a message comes.
    """
    watchdog.wait(what)
    since = time.monotonic()
    while not done():
        progress()
        if done():
            return
        if spins:
            spins -= 1
            time.sleep(0)
            continue
        now = time.monotonic()
        if busy is not None and busy():
            since, pause = now, longest
        else:
            pause = min(longest, max(SHORTEST_SLEEP, (now - since) / 10))
        if rest(pause):
            since = time.monotonic()
