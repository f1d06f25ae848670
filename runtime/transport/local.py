"""Copies between devices of one process: no message, only a note of what is to be copied.

A tile that arrives whole from one device goes from device to device (`take`); a tile put together from several
boxes is assembled in host memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alpa_mlir.runtime.transport.base import Array, Held, Transport, Window


class LocalTransport(Transport):
    """The transport of a rank to itself; it moves everything when it is received."""

    def __init__(self) -> None:
        self._posted: dict[int, tuple[Held, Window]] = {}

    def post_send(self, held: Held, window: Window, receiver: int, tag: int) -> None:
        """See `Transport`; the receiver is this process itself."""
        self._posted[tag] = (held, window)

    def take(self, tag: int) -> Held:
        """The array that was posted, without its window: for tiles that move whole."""
        return self._posted.pop(tag)[0]

    def post_receive(self, target: Array, sender: int, tag: int) -> Callable[[], bool]:
        """See `Transport`; done once the box was posted and its array is computed."""
        done = False

        def test() -> bool:
            nonlocal done
            if done:
                return True
            if tag not in self._posted:
                return False
            held, window = self._posted[tag]
            if not is_ready(held):
                return False
            target[...] = np.asarray(held)[window]
            del self._posted[tag]
            done = True
            return True

        return test

    def progress(self) -> None:
        """Nothing moves by itself."""

    def idle(self) -> bool:
        """Whether everything posted was received."""
        return not self._posted


def is_ready(held: Held) -> bool:
    """Whether the contents can be read without waiting."""
    return isinstance(held, np.ndarray) or held.is_ready()
