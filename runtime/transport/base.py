"""What carries tiles between submeshes: the interface, the buffers, and how to wait without blocking.

A transport never blocks: `post_send` queues a box of a device's array, `post_receive` says where a box is to
land, `progress` moves what is ready.  Waiting is a loop of `progress` and short sleeps with back-off, because
a thread that spins in MPI takes the core from XLA's threads.  A send keeps its array until the peer has it:
a buffer that XLA reuses while it is being sent would arrive corrupted.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from alpa_mlir.runtime.guard import Watchdog

ALIGNMENT = 64
"""XLA takes a host buffer over without a copy when it is aligned to this many bytes."""

Window = tuple[slice, ...]
Array = np.ndarray[Any, np.dtype[Any]]
Held: TypeAlias = jax.Array | Array
"""What a device holds: its own array, or a host view that keeps the memory from being reused."""


class Transport(ABC):
    """Boxes from rank to rank, each known by (sender, receiver, tag); tags are unique within a step."""

    @abstractmethod
    def post_send(self, held: Held, window: Window, receiver: int, tag: int) -> None:
        """Queue the box `window` of a one-device array for a rank; `held` must not be donated before it has left."""

    @abstractmethod
    def post_receive(self, target: Array, sender: int, tag: int) -> Callable[[], bool]:
        """Let a box land in `target`; the result tells whether it has."""

    @abstractmethod
    def progress(self) -> None:
        """Move what can move; returns at once."""

    @abstractmethod
    def idle(self) -> bool:
        """Whether every posted send has left."""


def wait_until(done: Callable[[], bool], progress: Callable[[], None], watchdog: Watchdog, what: str) -> None:
    """Return when `done()`; meanwhile `progress()`.  First spins a little, then sleeps up to 0.3 ms."""
    watchdog.wait(what)
    pause, spins = 1e-5, 0
    while not done():
        progress()
        spins += 1
        time.sleep(0 if spins < 20 else pause)
        if spins >= 20:
            pause = min(2 * pause, 3e-4)


class BufferPool:
    """Aligned host buffers that are used again once no array lives on them.

    A device array made from such a buffer shares its memory and keeps a reference to it, so the reference
    count tells when the buffer is free (touching fresh pages would cost more than the message).
    """

    def __init__(self) -> None:
        self._blocks: dict[int, list[Array]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A free buffer as an array of this shape and type; its contents are arbitrary."""
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        blocks = self._blocks.setdefault(size, [])
        # Views refer to the block itself.  Unused, it has two references: the list's and getrefcount's argument.
        found = next((i for i in range(len(blocks)) if sys.getrefcount(blocks[i]) == 2), None)
        if found is None:
            found = len(blocks)
            blocks.append(np.empty(size + ALIGNMENT, np.uint8))
        start = -blocks[found].ctypes.data % ALIGNMENT
        return blocks[found][start : start + size].view(dtype).reshape(shape)
