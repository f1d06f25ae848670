"""A bell between the processes of one host, so that a rank that waits for a message can sleep until it comes.

MPI has no wait that sleeps: one looks for messages again and again, and each look takes time from the core that
computes, or comes late.  So a rank rings after the messages that it sends, by a datagram with the number of messages
so far.  A bell only says when to look: whoever misses one looks a little later.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

_RING = struct.Struct("<iq")
_MOST = 64


class Doorbell:
    """The bell of one rank: its neighbours ring it, and `addresses[r]` is that of a neighbour r who listens."""

    def __init__(self, rank: int, own: socket.socket, neighbours: Iterable[int], addresses: dict[int, bytes]) -> None:
        self._rank, self._own, self._addresses = rank, own, addresses
        self._sent = dict.fromkeys(addresses, 0)
        self._rung = dict.fromkeys(neighbours, 0)

    @property
    def neighbours(self) -> frozenset[int]:
        """The ranks that ring here."""
        return frozenset(self._rung)

    def ring(self, rank: int, count: int = 1) -> None:
        """Tell a rank that so many more messages are on their way to it; nothing where it does not listen."""
        if rank in self._addresses:
            self._sent[rank] += count
            # Where its bell is full it will look anyway; the next ring says how many there were.
            with suppress(OSError):
                self._own.sendto(_RING.pack(self._rank, self._sent[rank]), self._addresses[rank])

    def wait(self, seconds: float) -> bool:
        """Sleep until somebody rings, at most so long; whether somebody did."""
        # poll would round up to milliseconds.
        if not select.select([self._own], [], [], seconds)[0]:
            return False
        with suppress(BlockingIOError):
            for _ in range(_MOST):
                said = self._own.recv(_RING.size)
                rank, count = _RING.unpack(said) if len(said) == _RING.size else (self._rank, 0)
                if rank in self._rung:
                    self._rung[rank] = max(self._rung[rank], count)
        return True

    def rung(self, rank: int) -> int:
        """How many messages a neighbour has sent here, as far as it was heard."""
        return self._rung[rank]


def hang(communicator: Any, *, listens: bool) -> Doorbell | None:
    """The bell of this rank; None where it has no neighbours, or where they cannot hear one another.

    All ranks call it together, and say whether they will `wait`.
    """
    from mpi4py import MPI

    host = communicator.Split_type(MPI.COMM_TYPE_SHARED)
    own = _socket() if host.size > 1 else None
    everyone = host.allgather((communicator.rank, own.getsockname() if own is not None and listens else None))
    bell = None
    if own is not None:
        others = [*everyone[host.rank + 1 :], *everyone[: host.rank]]
        bell = Doorbell(communicator.rank, own, [r for r, _ in others], {r: a for r, a in others if a is not None})
        bell.ring(others[0][0], 0)
    host.Barrier()
    hears = bell is not None and (not listens or bell.wait(0))
    all_hear = host.allreduce(hears, MPI.LAND)
    host.Free()
    return bell if all_hear else None


def _socket() -> socket.socket | None:
    """A socket with a name that the kernel has chosen; None where there are none such."""
    if not sys.platform.startswith("linux"):
        return None
    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    own.setblocking(False)
    own.bind("")
    return own
