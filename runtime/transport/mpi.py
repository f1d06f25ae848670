"""Messages between ranks by MPI: non-blocking, from and into the memory that XLA computes in.

A send is issued when its array is computed, not when the program reaches it: a thread waits for that and issues it at
once, whatever the other threads do.  It holds a host view of the array until the message has left: as long as the
view lives XLA does not reuse the buffer (without it, a donation during the send was seen to corrupt the message).  A
box that is not contiguous goes in long strips, or is packed, into buffers that are used again (MPI's own strided
types were slower by far on busy cores).  Messages above 1 GiB go in chunks, because Open MPI refuses counts above
2³¹-1.

A rank that waits for a neighbour's message sleeps until that rings (`doorbell`).  Where a submesh spans ranks, a
program of its may hold the calling thread until its peers arrive, and a peer may be waiting for a message of ours:
there another thread makes the progress.  One lock keeps the threads from talking to MPI at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np

from alpa_mlir.runtime.guard import guarded
from alpa_mlir.runtime.transport import doorbell
from alpa_mlir.runtime.transport.base import Array, Held, Message, Test, Transport, Window, sleep
from alpa_mlir.runtime.transport.memory import HostMemory, is_ready

CHUNK = 1 << 30
_PAUSE = 2e-4
_LONG_REST = 5e-3


class MpiTransport(Transport):
    """Point-to-point messages on one communicator (duplicated, so that no other message can match)."""

    def __init__(self, communicator: Any, *, threaded: bool) -> None:
        from mpi4py import MPI

        self._comm = communicator.Dup()
        self._byte, self._testsome = MPI.BYTE, MPI.Request.Testsome
        self._tag_limit = int(self._comm.Get_attr(MPI.TAG_UB))
        self._waiting: list[_Send] = []
        self._leaving: list[_Open] = []
        self._arriving: list[_Open] = []
        self._scratch = HostMemory()
        self._lock = threading.RLock()
        self._gathers = False
        self._computed: SimpleQueue[Held] = SimpleQueue()
        self._bell, self._listens = doorbell.hang(self._comm, listens=not threaded), not threaded
        self._landed: Counter[int] = Counter()
        self.sent = 0
        for work in (self._send_computed, self._keep_moving) if threaded else (self._send_computed,):
            # An error in such a thread ends the job: the main thread may be in a collective that never ends.
            guarded_work = partial(guarded, self._comm.rank, work)
            threading.Thread(target=guarded_work, daemon=True, name="messages").start()

    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        """See `Transport`."""
        with self._lock:
            announced = bool(self._waiting) and self._waiting[-1].held is held
            self._waiting.append(_Send(held, window, message, after))
            if not self._gathers:
                self._issue_computed()
        if not announced and not is_ready(held):
            self._computed.put(held)

    def post_receive(self, target: Array, message: Message) -> Test:
        """See `Transport`; posted at once, so that the message can land early."""
        direct = message.lead > 0 or target.flags.c_contiguous
        post, sender, tag, byte = self._comm.Irecv, message.sender, self._tag(message), self._byte
        with self._lock:
            landing = target if direct else self._scratch.take(target.shape, target.dtype, 0)
            requests = [post([part, byte], sender, tag) for part in parts(landing, message.lead)]
            arrival = _Arrival(sender, len(requests), target, None if direct else landing)
            self._arriving += [_Open(request, arrival) for request in requests]
        return arrival

    @contextmanager
    def together(self, edge: tuple[str, str], *, hold: bool = False) -> Iterator[None]:
        """See `Transport`; sends that are posted inside leave at its end."""
        self._gathers = True
        try:
            yield
        finally:
            self._gathers = False
            with self._lock:
                self._issue_computed()

    def progress(self) -> None:
        """See `Transport`."""
        if not self._waiting and not self._leaving and not self._arriving:
            return
        with self._lock:
            # Each look moves some of what comes in many parts.
            while landed := self._finished(self._arriving):
                for arrival in landed:
                    self._landed[arrival.sender] += arrival.part_landed()
            self._issue_computed()
            self._finished(self._leaving)

    def idle(self) -> bool:
        """See `Transport`."""
        with self._lock:
            return not self._waiting and not self._leaving

    def secured(self) -> bool:
        """See `Transport`: what has been issued holds a view."""
        with self._lock:
            return all(isinstance(send.held, np.ndarray) for send in self._waiting)

    def rest(self, seconds: float) -> bool:
        """See `Transport`; long where all that is to come is rung for, and nothing is on its way."""
        if self._bell is None or not self._listens:
            return sleep(seconds)
        return self._bell.wait(seconds if self.moves() else _LONG_REST)

    @property
    def tells(self) -> bool:
        """See `Transport`."""
        return self._bell is not None and self._listens

    def moves(self) -> bool:
        """See `Transport`: a message under way, or one that may be and that nobody rings for."""
        if not self._listens:
            return False  # a thread makes progress
        with self._lock:
            senders = {o.owner.sender for o in self._arriving}
            bell, near = self._bell, self._bell.neighbours if self._bell is not None else frozenset()
            coming = any(r not in near or (bell and bell.rung(r) > self._landed[r]) for r in senders)
            return coming or bool(self._leaving) or any(send.after for send in self._waiting)

    def _finished(self, under_way: list[_Open]) -> list[Any]:
        """Whose requests are done, one entry for each request; these are forgotten."""
        if not under_way:
            return []
        requests = [o.request for o in under_way]
        # A call that finds nothing moves messages, and only the next one sees which.
        done = self._testsome(requests) or self._testsome(requests)
        if not done:
            return []
        owners = [under_way[i].owner for i in done]
        gone = frozenset(done)
        under_way[:] = [o for i, o in enumerate(under_way) if i not in gone]
        return owners

    def _issue_computed(self) -> None:
        """Let those leave that can, and ring for them first: who sleeps wakes up meanwhile."""
        if not self._waiting:
            return
        can = [is_ready(send.held) and all(done() for done in send.after) for send in self._waiting]
        leaving = [send for send, now in zip(self._waiting, can, strict=True) if now]
        if self._bell is not None:
            for receiver, count in Counter(send.message.receiver for send in leaving).items():
                self._bell.ring(receiver, count)
        for send in leaving:
            self._issue(send)
        self._waiting = [send for send, now in zip(self._waiting, can, strict=True) if not now]

    def _send_computed(self) -> None:
        """A thread's work: let a value leave as soon as it is computed, however long the others sleep."""
        while True:
            held = self._computed.get()
            # A value that was donated since has left before.
            with suppress(RuntimeError):
                jax.block_until_ready(held)
            del held
            # What lands is left to the others: they might sleep on, and not see it.
            with self._lock:
                self._issue_computed()

    def _keep_moving(self) -> None:
        while True:
            self.progress()
            time.sleep(_PAUSE)

    def _issue(self, send: _Send) -> None:
        view, message = np.asarray(send.held)[send.window], send.message
        if not message.lead and not view.flags.c_contiguous:
            packed = self._scratch.take(view.shape, view.dtype, 0)
            packed[...] = view
            view = packed
        post, receiver, tag, byte = self._comm.Isend, message.receiver, self._tag(message), self._byte
        requests = [post([part, byte], receiver, tag) for part in parts(view, message.lead)]
        self._leaving += [_Open(request, view) for request in requests]
        self.sent += view.nbytes

    def _tag(self, message: Message) -> int:
        return message.tag % (self._tag_limit + 1)


class _Send(NamedTuple):
    """A box that waits to be computed."""

    held: Held
    window: Window
    message: Message
    after: Sequence[Test]


class _Open(NamedTuple):
    """A request of MPI under way, and what it is for: an arrival, or the memory that it sends."""

    request: Any
    owner: Any


class _Arrival:
    """Whether a message has landed, in so many parts; then its memory is let go."""

    def __init__(self, sender: int, parts: int, target: Array, landing: Array | None) -> None:
        self.sender = sender
        self._parts, self._target, self._landing = parts, target, landing

    def __call__(self) -> bool:
        return self._parts == 0

    def part_landed(self) -> int:
        """Note that a part has landed; how many messages this completes."""
        if self._parts > 1:
            self._parts -= 1
            return 0
        if self._landing is not None:
            self._target[...] = self._landing
        del self._target, self._landing
        self._parts = 0
        return 1


def parts(array: Array, lead: int) -> list[Array]:
    """An array in contiguous parts of at most 1 GiB: itself, or one for each place in its first `lead` dimensions.

    They have one tag: MPI keeps their order.
    """
    if lead:
        return [part for inner in array for part in parts(inner, lead - 1)]
    if array.nbytes <= CHUNK:
        return [array]
    raw = array.reshape(-1).view(np.uint8)
    return [raw[i : i + CHUNK] for i in range(0, raw.size, CHUNK)]
