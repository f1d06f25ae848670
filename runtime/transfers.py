"""Transfers between submeshes, seen from one rank: giving what others want, landing what comes, making tensors of it.

A transfer has three moments here.  *give*: its value is dispatched on the source mesh, the boxes for others are queued.
*expect*: the destination says where boxes are to land, and queues what it passes on inside its mesh.  *take*: all has
landed, and becomes a tensor.  Which boxes these are follows from the plan's routes (see `reshard`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from alpa_mlir.dialect.route import Route
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import MeshTensor
from alpa_mlir.dialect.tiles import Box, extents, intersect
from alpa_mlir.runtime.actions import Path
from alpa_mlir.runtime.devices import HOST, Submeshes
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.reshard import Piece
from alpa_mlir.runtime.shares import Received, Share, Side, Spot, host_side, share_of
from alpa_mlir.runtime.transport.base import (
    LONGEST_SLEEP,
    Array,
    Buffer,
    Held,
    Message,
    Test,
    Transport,
    wait_until,
)
from alpa_mlir.runtime.transport.memory import assemble, copied, parted

TAGS_PER_TRANSFER = 1 << 14
"""More than the pieces that go from one endpoint to another in one transfer."""
LONGEST_LAST_SLEEP = 1e-4
"""Seconds; the others go on when the last messages have left, so that nobody sees that late."""


class Transfers:
    """All transfers of a plan on one rank."""

    def __init__(
        self, submeshes: Submeshes, side: Side, host: Side, routes: Mapping[int, Route], watchdog: Watchdog
    ) -> None:
        """`side` carries values between devices, `host` (often the same) brings results to rank 0.

        `busy`, where it is set, tells whether this rank's devices compute.
        """
        self._submeshes, self._side, self._host, self._routes, self._watchdog = submeshes, side, host, routes, watchdog
        self._shares: dict[Path, Share] = {}
        self._landing: dict[int, _Landing] = {}
        self.busy: Test | None = None

    @staticmethod
    def on_host(
        submeshes: Submeshes,
        rank_of: Sequence[int],
        peers: Transport | None,
        routes: Mapping[int, Route],
        watchdog: Watchdog,
    ) -> Transfers:
        """Transfers through host memory, where devices compute in it."""
        side = host_side(submeshes.rank, rank_of, peers)
        return Transfers(submeshes, side, side, routes, watchdog)

    def rehearse(self, paths: Sequence[Path]) -> None:
        """Prepare these kinds of transfer, before the first step."""
        for path in dict.fromkeys(paths):
            share, memory = self._share(path), self._side_of(path).memory
            received = [*share.moves, *(r for incoming, _ in share.rounds for r in incoming)]
            sent = [*share.sent, *(s for _, outgoing in share.rounds for s in outgoing)]
            for r in received:
                memory.rehearse(extents(r.piece.tile), share.dtype, r.window or (), r.piece.receiver)
            for s in sent:
                memory.rehearse(extents(s.piece.held), share.dtype, s.window, s.piece.sender)

    def give(self, value: jax.Array, path: Path, transfer: int, keep: bool) -> None:
        """Queue this rank's pieces.  `keep`: the value is donated later, but not before `settle`."""
        share = self._share(path)
        if not share.sent:
            return
        side = self._side_of(path)
        held = parted(value)
        if keep or side is not self._side:
            views = {device: side.memory.hold(shard) for device, shard in held.items()}
            held |= {device: view for device, view in views.items() if view is not None}
        with side.together((path.source.mesh, path.target.mesh), hold=share.receives):
            for s in share.sent:
                message = self._message(s.piece, transfer)
                s.transport.post_send(held[s.device], s.window, message)

    def settle(self, what: str) -> None:
        """Return when nothing that was given can be hurt by a donation."""
        if not self._side.secured():
            wait_until(self._side.secured, self.progress, self._watchdog, what, self.busy)

    def expect(self, path: Path, transfer: int) -> None:
        """Let the pieces for this rank land, each tile in a buffer of its own."""
        share, side = self._share(path), self._side_of(path)
        landing = self._landing[transfer] = _Landing()
        for spot, shape in share.spots:
            landing.begin(spot, side.memory.take(shape, share.dtype, spot[0]))
        if path.target.mesh != HOST and not share.whole:
            # Made before anybody waits for it.
            parts = [landing.buffers[spot] for spot, _ in share.placed]
            landing.made = side.memory.early(partial(self._assembled, share), parts)
        edge = (path.source.mesh, path.target.mesh)
        with side.together(edge):
            for r in share.moves:
                self._receive(r, landing, transfer)
        for received, relayed in share.rounds:
            with side.together(edge):
                for r in received:
                    self._receive(r, landing, transfer)
                for s in relayed:
                    spot = (s.piece.sender, s.piece.held)
                    message = self._message(s.piece, transfer)
                    s.transport.post_send(landing.buffers[spot], s.window, message, landing.before(spot, s.piece.box))

    def _receive(self, received: Received, landing: _Landing, transfer: int) -> None:
        piece = received.piece
        spot = (piece.receiver, piece.tile)
        buffer = landing.buffers[spot]
        target = buffer if received.window is None else buffer[received.window]
        landing.copies |= received.transport is not self._host.peers
        landing.add(spot, piece.box, received.transport.post_receive(target, self._message(piece, transfer)))

    def take(self, path: Path, transfer: int, what: str, owned: bool = False) -> jax.Array:
        """Wait for an expected transfer and make its value; `owned`: a program will overwrite it."""
        share, side = self._share(path), self._side_of(path)
        landing = self._land(transfer, what)
        if landing.made is not None:
            return landing.made
        parts: list[Held] = []
        for spot, device, whole in share.arriving:
            part = landing.buffers.get(spot)
            if part is None and whole is not None:
                part = landing.buffers[spot] = side.local.take(self._message(whole, transfer))
            if owned and isinstance(part, jax.Array) and device in part.devices():
                part = copied(part)  # jax would not move it, and its owner may still read it
            parts.append(part)
        tests = [landing.tests(spot) if whole is None else () for spot, _, whole in share.arriving]
        return self._assembled(share, side.memory.shards(parts, tests, owned))

    def _assembled(self, share: Share, parts: Sequence[Held]) -> jax.Array:
        assert share.sharding is not None, "only values of a submesh are put together"
        return assemble(share.shape, share.dtype, share.sharding, parts, share.devices)

    def _land(self, transfer: int, what: str) -> _Landing:
        landing, peers = self._landing.pop(transfer), self._host.peers
        if not landing.arrived():
            # Nobody rings for what is copied here.
            if landing.copies or peers is None or not peers.tells:
                wait_until(landing.arrived, self.progress, self._watchdog, what, self.busy)
            else:
                wait_until(landing.arrived, self.progress, self._watchdog, what, self.busy, peers.rest, spins=0)
        return landing

    def gather(self, value: jax.Array | None, kind: MeshTensor, transfer: int, what: str) -> Array | None:
        """The whole tensor on rank 0, None elsewhere; every rank that holds a part of it or is rank 0 calls."""
        path = Path(kind, MeshTensor(HOST, kind.shape, kind.element, Sharding.replicated(len(kind.shape))), None)
        if value is not None:
            self.give(value, path, transfer, keep=False)
        if self._submeshes.rank != 0:
            return None
        self.expect(path, transfer)
        landing = self._land(transfer, what)
        share = self._share(path)
        spot, _ = share.spots[0] if share.spots else next(iter(share.whole.items()))
        whole = share.whole.get(spot)
        return np.array(
            landing.buffers[spot] if whole is None else self._host.local.take(self._message(whole, transfer))
        )

    def until_computed(self, value: jax.Array) -> None:
        """Return when a value is computed; messages move meanwhile."""
        while not value.is_ready() and any(transport.moves() for transport in self._transports):
            self.progress()
            time.sleep(LONGEST_SLEEP)
        value.block_until_ready()

    def progress(self) -> None:
        """Move what can move."""
        for transport in self._transports:
            transport.progress()

    def finish(self, what: str) -> None:
        """Wait until everything this rank gave has left."""
        for transport in self._transports:
            if not transport.idle():
                wait_until(transport.idle, self.progress, self._watchdog, what, self.busy, longest=LONGEST_LAST_SLEEP)

    @property
    def _transports(self) -> list[Transport]:
        peers = [self._side.peers, self._host.peers] if self._host is not self._side else [self._side.peers]
        return [p for p in peers if p is not None]

    def _side_of(self, path: Path) -> Side:
        return self._host if path.target.mesh == HOST else self._side

    def _message(self, piece: Piece, transfer: int) -> Message:
        return Message(piece.sender, piece.receiver, transfer * TAGS_PER_TRANSFER + piece.number, piece.lead)

    def _share(self, path: Path) -> Share:
        share = self._shares.get(path)
        if share is None:
            share = self._shares[path] = share_of(path, self._side_of(path), self._submeshes, self._routes)
        return share


class _Landing:
    """A transfer under way: for each tile its buffer, and the boxes that land in it."""

    def __init__(self) -> None:
        self.buffers: dict[Spot, Buffer] = {}
        self.copies = False
        self.made: jax.Array | None = None
        self._boxes: dict[Spot, list[tuple[Box, Test]]] = {}
        self._open: list[Test] = []

    def begin(self, spot: Spot, buffer: Buffer) -> None:
        """Boxes of a tile will land in `buffer`."""
        self.buffers[spot] = buffer
        self._boxes[spot] = []

    def add(self, spot: Spot, box: Box, landed: Test) -> None:
        """One of them."""
        self._boxes[spot].append((box, landed))
        self._open.append(landed)

    def before(self, spot: Spot, box: Box) -> list[Test]:
        """What must have landed for a box of a tile to be there."""
        return [test for other, test in self._boxes[spot] if intersect(other, box) is not None]

    def tests(self, spot: Spot) -> list[Test]:
        """Those of all boxes of a tile."""
        return [test for _, test in self._boxes.get(spot, ())]

    def arrived(self) -> bool:
        """Whether all boxes have landed; those that have are not asked again."""
        self._open = [test for test in self._open if not test()]
        return not self._open
