"""Copies within one process: no message, only a note of what is to be copied.

A tile that arrives whole from one device goes from device to device (`take`); one that is put together from several
boxes is assembled in the memory where it lands.  A message that passes on what is copied here may be looked after by
another thread, so that two may want to begin the same copy: a lock keeps them apart.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from alpa_mlir.runtime.transport.base import Buffer, Held, Message, Test, Transport, Window
from alpa_mlir.runtime.transport.memory import Memory


class LocalTransport(Transport):
    """The transport between endpoints of one process; it moves everything when it is received."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.posted: dict[Message, tuple[Held, Window, Sequence[Test]]] = {}
        self._safe: set[Message] = set()
        self.lock = threading.RLock()

    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        """See `Transport`."""
        with self.lock:
            self.posted[message] = (held, window, after)

    def take(self, messages: Sequence[Message]) -> list[Held]:
        """The arrays that were posted, without their windows: for tiles that move whole."""
        with self.lock:
            if self._safe:
                self._safe.difference_update(messages)
            posted = self.posted
            return [posted.pop(message)[0] for message in messages]

    def post_receive(self, target: Buffer, message: Message) -> Test:
        """See `Transport`; done once the box was posted, its array is computed, and it is copied."""
        return Copy(self, target, message)

    def progress(self) -> None:
        """Nothing moves by itself."""

    def idle(self) -> bool:
        """Whether everything posted was received."""
        return not self.posted

    def secured(self) -> bool:
        """See `Transport`."""
        with self.lock:
            return self._all_held()

    def _all_held(self) -> bool:
        self._safe &= self.posted.keys()
        for message, (held, window, after) in self.posted.items():
            if message not in self._safe:
                safe = self.memory.hold(held)
                if safe is None:
                    return False
                self.posted[message] = (safe, window, after)
                self._safe.add(message)
        return True


class Copy:
    """Whether a box was copied: the test of a receive within the process."""

    __slots__ = ("_begins", "_copied", "_lock", "_message", "_posted", "_target")

    def __init__(self, transport: LocalTransport, target: Buffer, message: Message) -> None:
        self._posted, self._lock, self._begins = transport.posted, transport.lock, transport.memory.copy
        self._target, self._message = target, message
        self._copied: Test | None = None

    def __call__(self) -> bool:
        copied = self._copied
        if copied is None:
            copied = self.begun()
            if copied is None:
                return False
        return copied()

    def begun(self) -> Test | None:
        """The test of the memory's copy, which begins when it can; None while it cannot."""
        with self._lock:
            if self._copied is None and (found := self._posted.get(self._message)) is not None:
                held, window, after = found
                if not after or all(done() for done in after):
                    self._copied = self._begins(self._target, held, window, after)
                    if self._copied is not None:
                        del self._posted[self._message]
            return self._copied
