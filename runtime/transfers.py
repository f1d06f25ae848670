"""Transfers between submeshes, seen from one rank: giving what others want, landing what comes, making tensors of it.

A transfer has three moments here.  *give*: its value is dispatched on the source mesh, the boxes for others are queued.
*expect*: the destination says where boxes are to land, and queues what it passes on inside its mesh.  *take*: all has
landed, and becomes a tensor.  Which boxes these are follows from the plan's routes (see `reshard`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

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
    Window,
    wait_until,
)
from alpa_mlir.runtime.transport.memory import assembler, copied, parted

TAGS_PER_TRANSFER = 1 << 14
"""More than the pieces that go from one endpoint to another in one transfer."""
LONGEST_LAST_SLEEP = 1e-4
"""Seconds; the others go on when the last messages have left, so that nobody sees that late."""
_Move = tuple[Callable[[Buffer, Message], Test], Spot, Box, Window | None, Message]
"""How a box lands: what `_Landing.receive` takes."""
_Taker = Callable[[Sequence[Message], int, str], jax.Array]
"""Makes the value of a transfer of one kind: from the messages of its whole tiles, its number, and what it is."""


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
        self._orders: dict[MeshTensor, list[int]] = {}
        self._takers: dict[tuple[Path, bool], _Taker] = {}
        peers = dict.fromkeys([side.peers, host.peers])
        self._transports: tuple[Transport, ...] = tuple([p for p in peers if p is not None])
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
        self.giver(path, transfer, keep)(value)

    def giver(self, path: Path, transfer: int, keep: bool) -> Callable[[jax.Array], None]:
        """`give` for one transfer, which knows all but the value."""
        share, side = self._share(path), self._side_of(path)
        sends = [(s.transport.post_send, s.device, s.window, self._message(s.piece, transfer)) for s in share.sent]
        edge, receives, holds = (path.source.mesh, path.target.mesh), share.receives, keep or side is not self._side
        hold, together = side.memory.hold, partial(side.together, edge, hold=receives)
        order = self._orders.setdefault(path.source, [])

        def give(value: jax.Array) -> None:
            held = parted(value, order)
            if holds:
                views = {device: hold(shard) for device, shard in held.items()}
                held |= {device: view for device, view in views.items() if view is not None}
            with together():
                for post, device, window, message in sends:
                    post(held[device], window, message)

        return give if sends else _nothing

    def settle(self, what: str) -> None:
        """Return when nothing that was given can be hurt by a donation."""
        if not self._side.secured():
            wait_until(self._side.secured, self.progress, self._watchdog, what, self.busy)

    def expect(self, path: Path, transfer: int) -> None:
        """Let the pieces for this rank land, each tile in a buffer of its own."""
        self.expecter(path, transfer)()

    def expecter(self, path: Path, transfer: int) -> Callable[[], None]:
        """`expect` for one transfer."""
        share, side = self._share(path), self._side_of(path)
        if not share.spots:
            return _nothing
        landings, spots, take, early = self._landing, share.spots, side.memory.take, side.memory.early
        dtype, placed = share.dtype, [spot for spot, _ in share.placed]
        together = partial(side.together, (path.source.mesh, path.target.mesh))
        make = _assembler(share) if share.sharding is not None and not share.whole else None
        moves = [self._landed(r, transfer) for r in share.moves]
        rounds = [
            (
                [self._landed(r, transfer) for r in received],
                [(s, self._message(s.piece, transfer)) for s in relayed],
            )
            for received, relayed in share.rounds
        ]
        every = [*share.moves, *(r for received, _ in share.rounds for r in received)]
        copies = any(r.transport is not self._host.peers for r in every)

        def expect() -> None:
            buffers = {spot: take(shape, dtype, spot[0]) for spot, shape in spots}
            landing = landings[transfer] = _Landing(buffers, copies)
            if make is not None:
                # Made before anybody waits for it.
                landing.made = early(make, [buffers[spot] for spot in placed])
            with together():
                for move in moves:
                    landing.receive(*move)
            for received, relayed in rounds:
                with together():
                    for move in received:
                        landing.receive(*move)
                    for s, message in relayed:
                        spot = (s.piece.sender, s.piece.held)
                        s.transport.post_send(buffers[spot], s.window, message, landing.before(spot, s.piece.box))

        return expect

    def _landed(self, received: Received, transfer: int) -> _Move:
        piece = received.piece
        spot = (piece.receiver, piece.tile)
        return (received.transport.post_receive, spot, piece.box, received.window, self._message(piece, transfer))

    def take(self, path: Path, transfer: int, what: str, owned: bool = False) -> jax.Array:
        """Wait for an expected transfer and make its value; `owned`: a program will overwrite it."""
        return self.taker(path, transfer, what, owned)()

    def taker(self, path: Path, transfer: int, what: str, owned: bool = False) -> Callable[[], jax.Array]:
        """`take` for one transfer: what all transfers of a kind share is made once, and so at hand in caches."""
        key = (path, owned)
        if key not in self._takers:
            share, side = self._share(path), self._side_of(path)
            self._takers[key] = (
                self._landed_taker(share, side, owned) if share.spots else _whole_taker(share, side, owned)
            )
        whole = [self._message(piece, transfer) for piece in self._share(path).whole.values()]
        return partial(self._takers[key], whole, transfer, what)

    def _landed_taker(self, share: Share, side: Side, owned: bool) -> _Taker:
        """`taker` where boxes land in buffers."""
        local, shards, land, make = side.local, side.memory.shards, self._land, _assembler(share)
        spots, devices, moved = [spot for spot, _ in share.placed], share.devices, list(share.whole)

        def take(whole: Sequence[Message], transfer: int, what: str) -> jax.Array:
            landing = land(transfer, what)
            if landing.made is not None:
                return landing.made
            buffers = {**landing.buffers, **dict(zip(moved, local.take(whole), strict=True))}
            parts = [buffers[spot] for spot in spots]
            if owned:
                parts = [_own(part, device) for part, device in zip(parts, devices, strict=True)]
            return make(shards(parts, [landing.tests(spot) for spot in spots], owned))

        return take

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
        share = self._share(path)
        if not share.spots:
            piece = next(iter(share.whole.values()))
            return np.array(self._host.local.take([self._message(piece, transfer)])[0])
        self.expect(path, transfer)
        return np.array(self._land(transfer, what).buffers[share.spots[0][0]])

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
    """A transfer under way: for each tile its buffer, and the boxes that land in it.

    `copies`: some are copied within the process.
    """

    def __init__(self, buffers: Mapping[Spot, Buffer], copies: bool) -> None:
        self.buffers, self.copies = buffers, copies
        self.made: jax.Array | None = None
        self._boxes: dict[Spot, list[tuple[Box, Test]]] = {}
        self._open: list[Test] = []

    def receive(
        self, post: Callable[[Buffer, Message], Test], spot: Spot, box: Box, window: Window | None, message: Message
    ) -> None:
        """Let a box of a tile land, by `post`."""
        buffer = self.buffers[spot]
        landed = post(buffer if window is None else buffer[window], message)
        self._boxes.setdefault(spot, []).append((box, landed))
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


def _assembler(share: Share) -> Callable[[list[Held]], jax.Array]:
    """Makes a tensor of its parts."""
    assert share.sharding is not None, "only values of a submesh are put together"
    return assembler(share.shape, share.dtype, share.sharding, share.devices)


def _whole_taker(share: Share, side: Side, owned: bool) -> _Taker:
    """`Transfers.taker` of tiles that all move from device to device as they are: what was given is there."""
    local, shards, make = side.local, side.memory.shards, _assembler(share)
    moved, devices, untested = list(share.whole), share.devices, [()] * len(share.placed)
    order = [moved.index(spot) for spot, _ in share.placed]
    in_order = order == list(range(len(moved)))

    def take(whole: Sequence[Message], transfer: int, what: str) -> jax.Array:
        found = local.take(whole)
        parts = found if in_order else [found[n] for n in order]
        if owned:
            parts = [_own(part, device) for part, device in zip(parts, devices, strict=True)]
        return make(shards(parts, untested, owned))

    return take


def _own(part: Held, device: Any) -> Held:
    """A part that a program may overwrite: jax would not move what lies on its device, and its owner may still read
    it."""
    return copied(part) if isinstance(part, jax.Array) and device in part.devices() else part


def _nothing(*_: Any) -> None:
    pass
