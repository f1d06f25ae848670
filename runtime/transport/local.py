"""Copies within one process: no message, only a note of what is to be copied.

A tile that arrives whole from one device goes from device to device (`take`); one that is put together from several
boxes is assembled in the memory where it lands.
"""

from __future__ import annotations

from collections.abc import Sequence

from alpa_mlir.runtime.transport.base import Buffer, Held, Message, Test, Transport, Window
from alpa_mlir.runtime.transport.memory import Memory


class LocalTransport(Transport):
    """The transport between endpoints of one process; it moves everything when it is received."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._posted: dict[Message, tuple[Held, Window, Sequence[Test]]] = {}

    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        """See `Transport`."""
        self._posted[message] = (held, window, after)

    def take(self, message: Message) -> Held:
        """The array that was posted, without its window: for tiles that move whole."""
        return self._posted.pop(message)[0]

    def post_receive(self, target: Buffer, message: Message) -> Test:
        """See `Transport`; done once the box was posted, its array is computed, and it is copied."""
        copied: Test | None = None

        def test() -> bool:
            nonlocal copied
            if copied is None and message in self._posted:
                held, window, after = self._posted[message]
                if all(done() for done in after):
                    copied = self._memory.copy(target, held, window)
                    if copied is not None:
                        del self._posted[message]
            return copied is not None and copied()

        return test

    def progress(self) -> None:
        """Nothing moves by itself."""

    def idle(self) -> bool:
        """Whether everything posted was received."""
        return not self._posted

    def secured(self) -> bool:
        """See `Transport`."""
        for message, (held, window, after) in self._posted.items():
            safe = self._memory.hold(held)
            if safe is None:
                return False
            self._posted[message] = (safe, window, after)
        return True
