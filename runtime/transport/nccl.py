"""Messages between GPUs by NCCL: each edge of the plan has a communicator and, on every device, a stream.

NCCL has no tags: what two devices say to one another on a communicator must match in order, and a kernel that waits for
its peer holds up whatever comes after it on the device.  Two rules make that safe.

- *One order*: every rank starts its parts of transfers in the order of the transfers' numbers (`program.in_order`).
  So even if a device ran all its messages one after another, the lowest unfinished transfer could always go on.
- *One group*: all boxes that a process sends and receives in one phase of a transfer start between `group_start`
  and `group_end`, where no order matters.  Where it both sends and receives in a transfer, its sends wait for the group
  of its receives (`together(edge, hold=True)`).

Nothing here waits for a GPU.  A send is queued behind the computation of its value, a receive behind the allocation of
its buffer, and what uses the buffer behind an event (`alpa_mlir.runtime.transport.gpu`).  Communicators are made at
the start, on all ranks in the plan's order, and used once between each pair of devices that will talk, because NCCL
connects them only then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from alpa_mlir.runtime.transport.base import Buffer, Held, Message, Test, Transport, Window
from alpa_mlir.runtime.transport.gpu import Gpu, Landed

Edge = tuple[str, str]
"""Source mesh and destination mesh."""


@dataclass(frozen=True)
class Line:
    """Who is on an edge: its devices in the communicator's order, and the pairs (sender, receiver) that talk."""

    edge: Edge
    members: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass
class _Group:
    """What starts as one: sends with what they wait for, receives with what tells when they landed."""

    sends: list[tuple[Held, Window, Message, Sequence[Test]]] = field(default_factory=list)
    receives: list[tuple[Buffer, Message, Landed]] = field(default_factory=list)


class NcclTransport(Transport):
    """Boxes between devices of different processes; endpoints are the plan's devices.

    `own` are this process's devices.  `share` makes one rank's list of bytes that of all.  All ranks make the transport
    at the same time, with the same lines.
    """

    def __init__(
        self,
        gpu: Gpu,
        lines: Sequence[Line],
        own: Sequence[int],
        share: Callable[[list[bytes]], list[bytes]],
    ) -> None:
        self.gpu = gpu
        self._places = {line.edge: {d: i for i, d in enumerate(line.members)} for line in lines}
        identifiers = share([gpu.unique_id() for _ in lines])
        self._ends: dict[tuple[Edge, int], Any] = {}
        for line, identifier in zip(lines, identifiers, strict=True):
            mine = {d: line.members.index(d) for d in own if d in line.members}
            if mine:
                made = gpu.communicators(len(line.members), identifier, mine)
                self._ends |= {(line.edge, d): end for d, end in made.items()}
        for line in lines:
            self._connect(line, frozenset(own))
        self._open: _Group | None = None
        self._kept: dict[Edge, _Group] = {}
        self._leaving: deque[tuple[Test, Any]] = deque()
        self.sent = 0

    def _connect(self, line: Line, own: frozenset[int]) -> None:
        """A byte between each pair that will talk."""
        gpu, places = self.gpu, self._places[line.edge]
        with gpu.group():
            for sender, receiver in line.pairs:
                if sender in own:
                    gpu.send(self._ends[line.edge, sender], gpu.dummy(sender), 1, places[receiver])
                if receiver in own:
                    gpu.receive(self._ends[line.edge, receiver], gpu.dummy(receiver), 1, places[sender])

    @contextmanager
    def together(self, edge: Edge, *, hold: bool = False) -> Iterator[None]:
        """See `Transport`."""
        self._open = self._kept.pop(edge, None) or _Group()
        yield
        group, self._open = self._open, None
        if hold:
            self._kept[edge] = group
        else:
            self._start(edge, group)

    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        """See `Transport`; only inside `together`."""
        assert self._open is not None, "a message by NCCL belongs to an edge"
        self._open.sends.append((held, window, message, after))

    def post_receive(self, target: Buffer, message: Message) -> Test:
        """See `Transport`; only inside `together`, and "landed" means that what uses the buffer will wait by itself."""
        assert self._open is not None, "a message by NCCL belongs to an edge"
        landed = Landed()
        self._open.receives.append((target, message, landed))
        return landed

    def _start(self, edge: Edge, group: _Group) -> None:
        if not group.sends and not group.receives:
            return
        gpu, places = self.gpu, self._places[edge]
        outgoing = [(m, *self._packed(edge, *send)) for send in group.sends for m in [send[2]]]
        incoming = []
        for target, message, landed in group.receives:
            end = self._ends[edge, message.receiver]
            incoming.append((message, gpu.landing(end, target), landed))
        with gpu.group():
            for message, pointer, count, _ in outgoing:
                gpu.send(self._ends[edge, message.sender], pointer, count, places[message.receiver])
            for message, landing, _ in incoming:
                end = self._ends[edge, message.receiver]
                gpu.receive(end, landing.pointer, landing.bytes, places[message.sender])
        for message, landing, landed in incoming:
            landed.event = gpu.unpacked(self._ends[edge, message.receiver], landing)
        for message, _, count, keep in outgoing:
            self._leaving.append((gpu.event(self._ends[edge, message.sender].stream), keep))
            self.sent += count

    def _packed(
        self, edge: Edge, held: Held, window: Window, message: Message, after: Sequence[Test]
    ) -> tuple[int, int, Any]:
        """Pointer and bytes of a box behind what it waits for, and what must live until it has left."""
        end = self._ends[edge, message.sender]
        self.gpu.wait(end.stream, after)
        return self.gpu.packed(end, held, window)

    def progress(self) -> None:
        """See `Transport`: lets go of what has left, first things first."""
        while self._leaving and self._leaving[0][0]():
            self._leaving.popleft()

    def idle(self) -> bool:
        """See `Transport`."""
        self.progress()
        return not self._leaving and not self._kept

    def secured(self) -> bool:
        """See `Transport`: a value that is donated later was copied when it was given."""
        return True
