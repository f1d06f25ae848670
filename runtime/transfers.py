"""Transfers between submeshes, seen from one rank: giving what others want, landing what comes, making tensors of it.

A transfer has three moments here.  *give*: its value is dispatched on the source mesh, the boxes for others are queued.
*expect*: the destination says where boxes are to land, and queues what it passes on inside its mesh.  *take*: all has
landed, and becomes a tensor.  Which boxes these are follows from the plan's routes (see `reshard`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.route import Route
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import MeshTensor
from alpa_mlir.dialect.tiles import Box, Placement, extents, intersect, within
from alpa_mlir.runtime.actions import Path
from alpa_mlir.runtime.devices import HOST, Submeshes
from alpa_mlir.runtime.executable import dtype_of
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.reshard import Piece, Site, direct_route, plan_pieces
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
from alpa_mlir.runtime.transport.gpu import DeviceMemory, Gpu
from alpa_mlir.runtime.transport.local import LocalTransport
from alpa_mlir.runtime.transport.memory import HostMemory, Memory, assemble
from alpa_mlir.runtime.transport.nccl import Edge, Line

TAGS_PER_TRANSFER = 1 << 14
"""More than the pieces that go from one endpoint to another in one transfer."""
LONGEST_LAST_SLEEP = 1e-4
"""Seconds; the others go on when the last messages have left, so that nobody sees that late."""
SHORTEST_STRIP = 1 << 18
"""Bytes; shorter strips cost more as messages than to be packed."""
Spot = tuple[int, Box]
"""A tile at an endpoint."""


class Side:
    """One kind of memory: whose it is, and what carries boxes between such memories.

    `endpoint_of[d]` is the endpoint of device `d`, the last one that of the host; `own` are those of this process.
    """

    def __init__(self, memory: Memory, peers: Transport | None, endpoint_of: Sequence[int], own: Sequence[int]) -> None:
        self.memory, self.peers = memory, peers
        self.endpoint_of, self.own = tuple(endpoint_of), frozenset(own)
        self.local = LocalTransport(memory)

    def transport(self, piece: Piece) -> Transport:
        """What carries a piece of which this process has at least one end."""
        if piece.sender in self.own and piece.receiver in self.own:
            return self.local
        if self.peers is None:
            raise ValueError(f"one process has no endpoints {piece.sender} and {piece.receiver}")
        return self.peers

    def together(self, edge: tuple[str, str], *, hold: bool = False) -> AbstractContextManager[None]:
        """See `Transport.together`."""
        return self.peers.together(edge, hold=hold) if self.peers is not None else nullcontext()

    def secured(self) -> bool:
        """See `Transport.secured`."""
        return self.local.secured() and (self.peers is None or self.peers.secured())


def host_side(rank: int, rank_of: Sequence[int], peers: Transport | None) -> Side:
    """Host memory: every rank is an endpoint, the host of results is rank 0."""
    return Side(HostMemory(), peers, (*rank_of, 0), (rank,))


def device_side(gpu: Gpu, peers: Transport | None, count: int, own: Sequence[int]) -> Side:
    """The memory of GPUs: each of the plan's `count` devices is an endpoint, `own` are this process's."""
    return Side(DeviceMemory(gpu), peers, range(count + 1), own)


@dataclass(frozen=True)
class _Sent:
    """A piece to be sent: from which jax device, or from which landed tile; which part of it; how."""

    piece: Piece
    device: int
    window: Window
    transport: Transport


@dataclass(frozen=True)
class _Received:
    """A piece to land in its tile's buffer."""

    piece: Piece
    window: Window | None
    transport: Transport


@dataclass(frozen=True)
class _Share:
    """What this rank does in one kind of transfer.

    `spots` are its tiles of the destination with their shapes; `whole` those that move from one device of this process
    to another as they are.  `moves` come from the source mesh.  `rounds` pass on inside the destination mesh what has
    landed in the moves and the rounds before: receives and sends.  `receives`: some moves come from other processes.
    """

    sent: tuple[_Sent, ...]
    spots: tuple[tuple[Spot, tuple[int, ...]], ...]
    whole: Mapping[Spot, Piece]
    moves: tuple[_Received, ...]
    rounds: tuple[tuple[tuple[_Received, ...], tuple[_Sent, ...]], ...]
    placed: tuple[tuple[Spot, Any], ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    receives: bool


class Transfers:
    """All transfers of a plan on one rank."""

    def __init__(
        self, submeshes: Submeshes, side: Side, host: Side, routes: Mapping[int, Route], watchdog: Watchdog
    ) -> None:
        """`side` carries values between devices, `host` (often the same) brings results to rank 0.

        `busy`, where it is set, tells whether this rank's devices compute.
        """
        self._submeshes, self._side, self._host, self._routes, self._watchdog = submeshes, side, host, routes, watchdog
        self._shares: dict[Path, _Share] = {}
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

    def give(self, value: jax.Array, path: Path, transfer: int, keep: bool) -> None:
        """Queue this rank's pieces.  `keep`: the value is donated later, but not before `settle`."""
        share = self._share(path)
        if not share.sent:
            return
        side = self._side_of(path)
        held: dict[int, Held] = {shard.device.id: shard.data for shard in value.addressable_shards}
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
            landing.made = side.memory.early(partial(self._assembled, share, path), parts)
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

    def _receive(self, received: _Received, landing: _Landing, transfer: int) -> None:
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
        for spot, _ in share.placed:
            whole = share.whole.get(spot)
            parts.append(landing.buffers[spot] if whole is None else self._moved(side, whole, transfer, landing))
        tests = [landing.tests(spot) for spot, _ in share.placed]
        return self._assembled(share, path, side.memory.shards(parts, tests, owned))

    def _assembled(self, share: _Share, path: Path, parts: Sequence[Held]) -> jax.Array:
        devices = [device for _, device in share.placed]
        return assemble(share.shape, share.dtype, self._submeshes.sharding(path.target), parts, devices)

    def _moved(self, side: Side, piece: Piece, transfer: int, landing: _Landing) -> Held:
        """The array of a tile that moves whole, which several devices may want."""
        spot = (piece.receiver, piece.tile)
        if spot not in landing.buffers:
            landing.buffers[spot] = side.local.take(self._message(piece, transfer))
        return landing.buffers[spot]

    def _land(self, transfer: int, what: str) -> _Landing:
        landing, peers = self._landing.pop(transfer), self._host.peers
        if not landing.arrived():
            # Nobody rings for what is copied here.
            rest = time.sleep if landing.copies or peers is None else peers.rest
            wait_until(landing.arrived, self.progress, self._watchdog, what, self.busy, rest)
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
        return np.array(landing.buffers[spot] if whole is None else self._moved(self._host, whole, transfer, landing))

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

    def _share(self, path: Path) -> _Share:
        share = self._shares.get(path)
        if share is None:
            share = self._shares[path] = self._make_share(path)
        return share

    def _make_share(self, path: Path) -> _Share:
        side, submeshes = self._side_of(path), self._submeshes
        shape, dtype = path.source.shape, dtype_of(path.target.element)
        pieces = pieces_of(path, submeshes.places, self._routes, side.endpoint_of)
        mine = [p for p in pieces if p.receiver in side.own]
        whole = _whole_tiles(mine, pieces, side)
        landed = [p for p in mine if (p.receiver, p.tile) not in whole]
        own = submeshes.own_tiles(path.target)
        placed = [((side.endpoint_of[device], box), submeshes.device(device)) for device, box in own.items()]
        spots = [spot for spot in dict.fromkeys(spot for spot, _ in placed) if spot not in whole]
        sent = [
            _Sent(p, submeshes.device(p.source).id, within(p.box, p.held), side.transport(p))
            for p in pieces
            if p.source is not None and p.sender in side.own
        ]
        return _Share(
            tuple(sent),
            tuple((spot, extents(spot[1])) for spot in spots),
            whole,
            tuple(_received(p, side) for p in landed if p.source is not None),
            tuple(
                (
                    tuple(_received(p, side) for p in passed if p.receiver in side.own),
                    tuple(
                        _Sent(p, -1, within(p.box, p.held), side.transport(p)) for p in passed if p.sender in side.own
                    ),
                )
                for passed in _rounds(pieces)
            ),
            tuple(placed),
            shape,
            dtype,
            any(p.source is not None and p.sender not in side.own for p in landed),
        )


def pieces_of(
    path: Path,
    places: Mapping[str, tuple[Mesh, tuple[int, ...]]],
    routes: Mapping[int, Route],
    endpoint_of: Sequence[int],
) -> tuple[Piece, ...]:
    """All boxes of one kind of transfer; `places` has each mesh with the numbers of its devices."""
    kinds = (path.source, path.target)
    source, target = (Site(Placement(places[k.mesh][0], k.sharding), places[k.mesh][1]) for k in kinds)
    if path.route is None:
        route = direct_route(path.source.shape, source.placement, target.placement)
    else:
        route = routes[path.route]
    shortest = max(1, SHORTEST_STRIP // dtype_of(path.target.element).itemsize)
    return plan_pieces(route, path.source.shape, source, target, endpoint_of, shortest)


def lines_of(
    paths: Sequence[Path],
    places: Mapping[str, tuple[Mesh, tuple[int, ...]]],
    routes: Mapping[int, Route],
    rank_of: Sequence[int],
) -> tuple[Line, ...]:
    """The edges on which devices of different ranks talk; `paths` are those of the whole plan."""
    pairs: dict[Edge, set[tuple[int, int]]] = {}
    for path in paths:
        here = pairs.setdefault((path.source.mesh, path.target.mesh), set())
        pieces = pieces_of(path, places, routes, range(len(rank_of)))
        here |= {(p.sender, p.receiver) for p in pieces if rank_of[p.sender] != rank_of[p.receiver]}
    found = []
    for edge, talking in sorted(pairs.items()):
        if talking:
            found.append(Line(edge, tuple(sorted({d for pair in talking for d in pair})), tuple(sorted(talking))))
    return tuple(found)


def _rounds(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """What is passed on inside the destination: each round only what has landed before it."""
    arrived: dict[Spot, list[tuple[Box, int]]] = {}
    found: list[list[Piece]] = []
    for piece in pieces:
        number = 0
        if piece.source is None:
            there = arrived[piece.sender, piece.held]
            number = 1 + max(n for box, n in there if intersect(box, piece.box) is not None)
            found.extend([] for _ in range(number - len(found)))
            found[number - 1].append(piece)
        arrived.setdefault((piece.receiver, piece.tile), []).append((piece.box, number))
    return found


def _receives(pieces: Sequence[Piece], side: Side) -> tuple[_Received, ...]:
    return tuple(_received(p, side) for p in pieces if p.receiver in side.own)


def _relays(pieces: Sequence[Piece], side: Side) -> tuple[_Sent, ...]:
    return tuple(_Sent(p, -1, within(p.box, p.held), side.transport(p)) for p in pieces if p.sender in side.own)


def _received(piece: Piece, side: Side) -> _Received:
    window = None if piece.box == piece.tile else within(piece.box, piece.tile)
    return _Received(piece, window, side.transport(piece))


def _whole_tiles(mine: Sequence[Piece], pieces: Sequence[Piece], side: Side) -> dict[Spot, Piece]:
    """The tiles that come as they are from one device of this process, and go nowhere else."""
    by_spot: dict[Spot, list[Piece]] = {}
    for piece in mine:
        by_spot.setdefault((piece.receiver, piece.tile), []).append(piece)
    relays = {(p.sender, p.held) for p in pieces if p.source is None}
    return {
        spot: found[0]
        for spot, found in by_spot.items()
        if len(found) == 1
        and found[0].source is not None
        and found[0].sender in side.own
        and found[0].held == spot[1]
        and spot not in relays
    }


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
