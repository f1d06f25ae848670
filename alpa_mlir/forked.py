"""Planning on several cores: iterators of a pass (`passes/streams.py`) advanced by forked processes.

A fork shares all that was read and computed before, so that nothing is sent but which iterator to advance and what
came of it. Where forking is not safe or not worth it, all is done here: with one core, or where jax is loaded (its
threads do not survive a fork).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from alpa_mlir.passes.memo import newly_remembered, remember
from alpa_mlir.passes.streams import InOrder, Maker, Streams

MOST = 8
"""Processes at most."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def forked(makers: Sequence[Maker]) -> Streams:
    """The iterators advanced by as many processes as there are cores, as far as that can be."""
    count = min(cores(), len(makers), MOST)
    if count < 2 or "jax" in sys.modules or not hasattr(os, "fork"):
        return InOrder(makers)
    return Forked(makers, count)


class Forked:
    """Iterators shared out to processes as these are free, the last ones first; each goes on where it was begun.

    This process advances the first iterator once and then only hands out: what is read and loaded for that need not be
    by every process.
    """

    def __init__(self, makers: Sequence[Maker], count: int) -> None:
        self.here = InOrder(makers)
        self.begun = self.here.advance([0])
        self.workers: list[tuple[int, Connection]] = []
        self.owner: dict[int, int] = {}
        """Which process advances an iterator, once it is begun."""
        for _ in range(count):
            self.workers.append(self._fork())

    def _fork(self) -> tuple[int, Connection]:
        here, there = Pipe()
        process = os.fork()
        if process:
            there.close()
            return process, here
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            here.close()
            for _, other in self.workers:
                other.close()
            _serve(self.here, there)
        finally:
            os._exit(0)

    def advance(self, which: Sequence[int]) -> list[Any]:
        """The next item of each of these, None where there is none."""
        found: dict[int, Any] = {}
        if self.begun and 0 in which:
            (found[0],), self.begun = self.begun, []
        open_ones = [k for k in which if k not in found]
        busy: dict[Connection, int] = {}
        while open_ones or busy:
            for number, (_, connection) in enumerate(self.workers):
                mine = next((k for k in reversed(open_ones) if self.owner.get(k, number) == number), None)
                if mine is not None and connection not in busy:
                    open_ones.remove(mine)
                    self.owner[mine] = number
                    connection.send(mine)
                    busy[connection] = mine
            for connection in [c for c in wait(list(busy)) if isinstance(c, Connection)]:
                k = busy.pop(connection)
                found[k] = self._received(connection, k)
        return [found[k] for k in which]

    def _received(self, connection: Connection, number: int) -> Any:
        """What came of an iterator; its error is raised by asking here once more."""
        try:
            done, item, entries = connection.recv()
        except EOFError:
            raise RuntimeError("a planning process ended early: too little memory?") from None
        remember(entries)
        if not done:
            for _ in range(item + 1):
                self.here.advance([number])
            raise RuntimeError("an error of a planning process did not come up again")
        return item

    def close(self) -> None:
        """End the processes."""
        for process, connection in self.workers:
            connection.close()
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        self.workers.clear()
        self.here.close()


def _serve(streams: InOrder, connection: Connection) -> None:
    """Advance what is asked for until nobody asks: (True, item), or (False, items before) where it failed, and what
    is to be remembered of it."""
    given: dict[int, int] = {}
    newly_remembered()
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        before = given.get(number, 0)
        try:
            answer = True, streams.advance([number])[0]
        except Exception:
            answer = False, before
        given[number] = before + 1
        connection.send((*answer, newly_remembered()))
