"""What one rank does in a kind of transfer: its pieces of the route, by whom they come and go, and where they land."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.route import Route
from alpa_mlir.dialect.tiles import Box, Placement, extents, intersect, within
from alpa_mlir.runtime.actions import Path
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.executable import dtype_of
from alpa_mlir.runtime.reshard import Piece, Site, direct_route, plan_pieces
from alpa_mlir.runtime.transport.base import Transport, Window
from alpa_mlir.runtime.transport.gpu import DeviceMemory, Gpu
from alpa_mlir.runtime.transport.local import LocalTransport
from alpa_mlir.runtime.transport.memory import HostMemory, Memory
from alpa_mlir.runtime.transport.nccl import Edge, Line

SHORTEST_STRIP = 1 << 18
"""Bytes; shorter strips cost more as messages than to be packed."""
_ALONE = nullcontext()
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
        return self.peers.together(edge, hold=hold) if self.peers is not None else _ALONE

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
class Sent:
    """A piece to be sent: from which jax device, or from which landed tile; which part of it; how."""

    piece: Piece
    device: int
    window: Window
    transport: Transport


@dataclass(frozen=True)
class Received:
    """A piece to land in its tile's buffer."""

    piece: Piece
    window: Window | None
    transport: Transport


@dataclass(frozen=True)
class Share:
    """What this rank does in one kind of transfer.

    `spots` are its tiles of the destination with their shapes; `whole` those that move from one device of this process
    to another as they are.  `moves` come from the source mesh.  `rounds` pass on inside the destination mesh what has
    landed in the moves and the rounds before: receives and sends.  `receives`: some moves come from other processes.
    `placed` are the tiles by jax's devices.
    """

    sent: tuple[Sent, ...]
    spots: tuple[tuple[Spot, tuple[int, ...]], ...]
    whole: Mapping[Spot, Piece]
    moves: tuple[Received, ...]
    rounds: tuple[tuple[tuple[Received, ...], tuple[Sent, ...]], ...]
    placed: tuple[tuple[Spot, Any], ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sharding: NamedSharding | None
    receives: bool

    @cached_property
    def devices(self) -> list[Any]:
        """jax's devices that get a tile."""
        return [device for _, device in self.placed]


def share_of(path: Path, side: Side, submeshes: Submeshes, routes: Mapping[int, Route]) -> Share:
    """What this rank does in one kind of transfer, which `side` carries."""
    shape, dtype = path.source.shape, dtype_of(path.target.element)
    pieces = pieces_of(path, submeshes.places, routes, side.endpoint_of)
    mine = [p for p in pieces if p.receiver in side.own]
    whole = _whole_tiles(mine, pieces, side)
    landed = [p for p in mine if (p.receiver, p.tile) not in whole]
    own = submeshes.own_tiles(path.target)
    placed = [((side.endpoint_of[device], box), submeshes.device(device)) for device, box in own.items()]
    spots = [spot for spot in dict.fromkeys(spot for spot, _ in placed) if spot not in whole]
    sent = [
        Sent(p, submeshes.device(p.source).id, within(p.box, p.held), side.transport(p))
        for p in pieces
        if p.source is not None and p.sender in side.own
    ]
    return Share(
        tuple(sent),
        tuple((spot, extents(spot[1])) for spot in spots),
        whole,
        tuple(_received(p, side) for p in landed if p.source is not None),
        tuple(
            (
                tuple(_received(p, side) for p in passed if p.receiver in side.own),
                tuple(Sent(p, -1, within(p.box, p.held), side.transport(p)) for p in passed if p.sender in side.own),
            )
            for passed in _rounds(pieces)
        ),
        tuple(placed),
        shape,
        dtype,
        submeshes.sharding(path.target) if submeshes.reaches(path.target.mesh) else None,
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


def _received(piece: Piece, side: Side) -> Received:
    window = None if piece.box == piece.tile else within(piece.box, piece.tile)
    return Received(piece, window, side.transport(piece))


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
