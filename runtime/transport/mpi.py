"""Messages between ranks by MPI: non-blocking, from and into the memory that XLA computes in.

A send is issued when its array is computed, not when the program reaches it: a thread waits for that and issues it at
once, whatever the other threads do.  It holds a host view of the array until the message has left: as long as the view
lives XLA does not reuse the buffer (without it, a donation during the send was seen to corrupt the message).  Boxes
that are not contiguous are packed, into buffers that are used again (MPI's own strided types were slower by far on busy
cores).  Messages above 1 GiB go in chunks, because Open MPI refuses counts above 2³¹-1.

A rank that waits for a neighbour's message sleeps until that rings (`doorbell`).  Where a submesh spans ranks, a
program of its may hold the calling thread until its peers arrive, and a peer may be waiting for a message of ours:
there another thread makes the progress.  One lock keeps the threads from talking to MPI at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from alpa_mlir.runtime.guard import guarded
from alpa_mlir.runtime.transport import doorbell
from alpa_mlir.runtime.transport.base import Array, Held, Message, Test, Transport, Window
from alpa_mlir.runtime.transport.memory import HostMemory, is_ready

CHUNK = 1 << 30
_PAUSE = 2e-4
_LONG_REST = 5e-3


class MpiTransport(Transport):
    """Point-to-point messages on one communicator (duplicated, so that no other message can match)."""

    def __init__(self, communicator: Any, *, threaded: bool) -> None:
        from mpi4py import MPI

        self._comm = communicator.Dup()
        self._byte = MPI.BYTE
        self._tag_limit = int(self._comm.Get_attr(MPI.TAG_UB))
        self._waiting: list[tuple[Held, Window, Message, Sequence[Test]]] = []
        self._leaving: list[tuple[Array, list[Any]]] = []
        self._arriving: list[_Arrival] = []
        self._scratch = HostMemory()
        self._lock = threading.RLock()
        self._computed: SimpleQueue[Held] = SimpleQueue()
        self._bell, self._listens = doorbell.hang(self._comm, listens=not threaded), not threaded
        self._landed: dict[int, int] = {}
        self.sent = 0
        for work in (self._send_computed, self._keep_moving) if threaded else (self._send_computed,):
            # An error in such a thread ends the job: the main thread may be in a collective that never ends.
            guarded_work = partial(guarded, self._comm.rank, work)
            threading.Thread(target=guarded_work, daemon=True, name="messages").start()

    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        """See `Transport`."""
        with self._lock:
            self._waiting.append((held, window, message, after))
            self.progress()
        if not is_ready(held):
            self._computed.put(held)

    def post_receive(self, target: Array, message: Message) -> Test:
        """See `Transport`; posted at once, so that the message can land early."""
        direct = target.flags.c_contiguous
        tag = self._tag(message)
        with self._lock:
            landing = target if direct else self._scratch.take(target.shape, target.dtype, 0)
            requests = [self._comm.Irecv([c, self._byte], message.sender, tag) for c in chunks(landing)]
            # What has landed must not be kept from being used again until somebody makes progress.
            self._keep_open()
            arrival = _Arrival(message.sender, requests, target, None if direct else landing, self._lock)
            self._arriving.append(arrival)
        return arrival

    def progress(self) -> None:
        """See `Transport`."""
        if not self._waiting and not self._leaving and not self._arriving:
            return
        with self._lock:
            for arrival in self._arriving:
                arrival()
            self._keep_open()
            self._waiting = [send for send in self._waiting if not self._issue(*send)]
            self._leaving = [(view, rs) for view, rs in self._leaving if not all(r.Test() for r in rs)]

    def idle(self) -> bool:
        """See `Transport`."""
        with self._lock:
            return not self._waiting and not self._leaving

    def secured(self) -> bool:
        """See `Transport`: what has been issued holds a view."""
        with self._lock:
            return all(isinstance(held, np.ndarray) for held, _, _, _ in self._waiting)

    def rest(self, seconds: float) -> None:
        """See `Transport`; long where all that is to come is rung for, and nothing is on its way."""
        if self._bell is None or not self._listens:
            time.sleep(seconds)
        else:
            self._bell.wait(seconds if self._moves(self._bell) else _LONG_REST)

    def _moves(self, bell: doorbell.Doorbell) -> bool:
        """Whether something can move that nobody rings for: a message under way, in parts, or of another host."""
        with self._lock:
            senders = {arrival.sender for arrival in self._arriving if arrival.open}
            near = bell.neighbours
            coming = any(r not in near or bell.rung(r) > self._landed.get(r, 0) for r in senders)
            return coming or bool(self._leaving) or any(after for _, _, _, after in self._waiting)

    def _keep_open(self) -> None:
        """Count the messages that have landed, and forget them."""
        for arrival in self._arriving:
            if not arrival.open:
                self._landed[arrival.sender] = self._landed.get(arrival.sender, 0) + 1
        self._arriving = [arrival for arrival in self._arriving if arrival.open]

    def _send_computed(self) -> None:
        """A thread's work: let a value leave as soon as it is computed, however long the others sleep."""
        while True:
            held = self._computed.get()
            # A value that was donated since has left before.
            with suppress(RuntimeError):
                jax.block_until_ready(held)
            del held
            self.progress()

    def _keep_moving(self) -> None:
        while True:
            self.progress()
            time.sleep(_PAUSE)

    def _issue(self, held: Held, window: Window, message: Message, after: Sequence[Test]) -> bool:
        if not is_ready(held) or not all(done() for done in after):
            return False
        view = np.asarray(held)[window]
        if not view.flags.c_contiguous:
            packed = self._scratch.take(view.shape, view.dtype, 0)
            packed[...] = view
            view = packed
        tag = self._tag(message)
        requests = [self._comm.Isend([c, self._byte], message.receiver, tag) for c in chunks(view)]
        self._leaving.append((view, requests))
        if self._bell is not None:
            self._bell.ring(message.receiver)
        self.sent += view.nbytes
        return True

    def _tag(self, message: Message) -> int:
        return message.tag % (self._tag_limit + 1)


class _Arrival:
    """Whether a message has landed; then its memory is let go."""

    def __init__(self, sender: int, requests: list[Any], target: Array, landing: Array | None, lock: Any) -> None:
        self.sender = sender
        self._requests, self._target, self._landing, self._lock = requests, target, landing, lock
        self.open = True

    def __call__(self) -> bool:
        if not self.open:
            return True
        with self._lock:
            if self.open and all(r.Test() for r in self._requests):
                if self._landing is not None:
                    self._target[...] = self._landing
                self.open = False
                del self._requests, self._target, self._landing
        return not self.open


def chunks(array: Array) -> list[Array]:
    """A contiguous array in parts of at most 1 GiB."""
    if array.nbytes <= CHUNK:
        return [array]
    raw = array.reshape(-1).view(np.uint8)
    return [raw[i : i + CHUNK] for i in range(0, raw.size, CHUNK)]
