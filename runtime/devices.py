"""Tensors on submeshes, seen from one rank: making them from host memory, moving them, reading them.

`Submeshes` knows jax's mesh and devices of every stage and the transfers between them (see `reshard`).  A
tensor on a submesh is a jax array over its devices, of which this rank addresses only its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import Plan
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import MeshTensor
from alpa_mlir.runtime.executable import dtype_of, jax_mesh, named
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.reshard import Box, Piece, Placement, plan_pieces, tiles, within
from alpa_mlir.runtime.transport.base import Array, BufferPool, Held, Transport, wait_until
from alpa_mlir.runtime.transport.local import LocalTransport

HOST = "host"
"""The mesh of one device that stands for rank 0's host memory."""


def on_host(kind: MeshTensor) -> MeshTensor:
    """The same tensor, whole in rank 0's host memory."""
    return MeshTensor(HOST, kind.shape, kind.element, Sharding.replicated(len(kind.shape)))


class Submeshes:
    """The stages' devices and what moves between them; `devices[d]` is jax's device d, None if out of reach."""

    def __init__(
        self,
        plan: Plan,
        rank: int,
        rank_of: Sequence[int],
        devices: Sequence[Any],
        peers: Transport | None,
        watchdog: Watchdog,
    ) -> None:
        self.rank = rank
        self._devices = devices
        self._rank_of = (*rank_of, 0)
        self._places: dict[str, tuple[Mesh, tuple[int, ...]]] = {
            name: (stage.mesh, stage.devices) for name, stage in plan.stages.items()
        }
        self._places[HOST] = (Mesh(HOST, (("x", 1),)), (len(rank_of),))
        self._meshes = {
            name: jax_mesh(stage.mesh, [devices[d] for d in stage.devices])
            for name, stage in plan.stages.items()
            if all(devices[d] is not None for d in stage.devices)
        }
        self._shardings: dict[tuple[str, Sharding], NamedSharding] = {}
        self._tiles: dict[MeshTensor, dict[int, Box]] = {}
        self._routes: dict[tuple[MeshTensor, MeshTensor], Route] = {}
        self._own, self._peers, self._watchdog = LocalTransport(), peers, watchdog
        self._pool = BufferPool()
        self._landing: dict[int, _Landing] = {}

    def mesh(self, name: str) -> jax.sharding.Mesh:
        """jax's mesh of a stage that this rank takes part in."""
        return self._meshes[name]

    def sharding(self, kind: MeshTensor) -> NamedSharding:
        """jax's sharding of a tensor on a stage that this rank takes part in."""
        key = (kind.mesh, kind.sharding)
        if key not in self._shardings:
            self._shardings[key] = named(self._meshes[kind.mesh], kind.sharding)
        return self._shardings[key]

    def own_tiles(self, kind: MeshTensor) -> dict[int, Box]:
        """The tile of each of this rank's devices on the tensor's mesh."""
        if kind not in self._tiles:
            mesh, devices = self._places[kind.mesh]
            boxes = tiles(kind.shape, Placement(mesh, devices, kind.sharding))
            pairs = zip(devices, boxes, strict=True)
            self._tiles[kind] = {d: box for d, box in pairs if self._rank_of[d] == self.rank}
        return self._tiles[kind]

    def put(self, whole: Array, kind: MeshTensor) -> jax.Array:
        """A host array, whole on every rank, as a tensor on its mesh."""
        everything = tuple((0, n) for n in kind.shape)
        parts = {}
        for device, box in self.own_tiles(kind).items():
            parts[device] = np.asarray(whole[within(box, everything)])
        return self._assemble(parts, kind)

    def put_tiles(self, tile: Callable[[Box], Array], kind: MeshTensor) -> jax.Array:
        """A tensor of which `tile` gives any box, each of this rank's asked for once."""
        own = self.own_tiles(kind)
        boxes = {box: tile(box) for box in dict.fromkeys(own.values())}
        return self._assemble({device: boxes[box] for device, box in own.items()}, kind)

    def kept_tiles(self, value: jax.Array, kind: MeshTensor) -> dict[Box, Array]:
        """The tiles of a tensor that this rank answers for, as views: of the devices with one tile the first does."""
        mesh, devices = self._places[kind.mesh]
        boxes = tiles(kind.shape, Placement(mesh, devices, kind.sharding))
        first: dict[Box, int] = {}
        for device, box in zip(devices, boxes, strict=True):
            first.setdefault(box, device)
        shards = {shard.device.id: shard.data for shard in value.addressable_shards}
        mine = {box: device for box, device in first.items() if self._rank_of[device] == self.rank}
        return {box: np.asarray(shards[self._devices[device].id]) for box, device in mine.items()}

    def _assemble(self, parts: dict[int, Any], kind: MeshTensor) -> jax.Array:
        shards = [jax.device_put(part, self._devices[device]) for device, part in parts.items()]
        return jax.make_array_from_single_device_arrays(kind.shape, self.sharding(kind), shards)

    def route(self, source: MeshTensor, target: MeshTensor) -> Route:
        """The pieces of a transfer that concern this rank (computed once)."""
        key = (source, target)
        if key not in self._routes:
            places = [Placement(*self._places[k.mesh], k.sharding) for k in key]
            pieces = plan_pieces(source.shape, places[0], places[1], self._rank_of)
            self._routes[key] = Route(pieces, self.rank)
        return self._routes[key]

    def give(self, value: jax.Array, source: MeshTensor, target: MeshTensor, transfer: int, keep: bool) -> None:
        """Queue this rank's pieces.  With `keep` the host view is taken now, so that a donation will copy."""
        route = self.route(source, target)
        if not route.sent:
            return
        held: dict[int, Held] = {}
        for shard in value.addressable_shards:
            held[shard.device.id] = np.asarray(shard.data) if keep else shard.data
        for piece, tag in route.sent:
            shard = held[self._devices[piece.source].id]
            window = within(piece.box, piece.held)
            self._transport(piece.receiver).post_send(shard, window, piece.receiver, self._tag(transfer, tag))

    def expect(self, source: MeshTensor, target: MeshTensor, transfer: int) -> None:
        """Let the pieces for this rank land, each tile in a buffer of its own."""
        route = self.route(source, target)
        dtype = dtype_of(target.element)
        landing = _Landing()
        for tile in dict.fromkeys(self.own_tiles(target).values()):
            pieces = route.received.get(tile, [])
            if len(pieces) == 1 and pieces[0][0].sender == self.rank and pieces[0][0].held == tile:
                landing.moved[tile] = self._tag(transfer, pieces[0][1])
                continue
            buffer = self._pool.take(tuple(b - a for a, b in tile), dtype)
            landing.buffers[tile] = buffer
            for piece, tag in pieces:
                part = buffer[within(piece.box, tile)] if piece.box != tile else buffer
                transport = self._transport(piece.sender)
                landing.tests.append(transport.post_receive(part, piece.sender, self._tag(transfer, tag)))
        self._landing[transfer] = landing

    def take(self, target: MeshTensor, transfer: int, what: str) -> jax.Array:
        """Wait for an expected transfer and make its value."""
        tiles_of = self._land(target, transfer, what)
        return self._assemble({d: tiles_of[box] for d, box in self.own_tiles(target).items()}, target)

    def _land(self, target: MeshTensor, transfer: int, what: str) -> dict[Box, Held]:
        landing = self._landing.pop(transfer)
        wait_until(landing.arrived, self.progress, self._watchdog, what)
        landed: dict[Box, Held] = dict(landing.buffers)
        for tile, tag in landing.moved.items():
            landed[tile] = self._own.take(tag)
        return landed

    def gather(self, value: jax.Array | None, kind: MeshTensor, transfer: int, what: str) -> Array | None:
        """The whole tensor on rank 0, None elsewhere; every rank that holds a part of it or is rank 0 calls."""
        target = on_host(kind)
        if value is not None:
            self.give(value, kind, target, transfer, keep=False)
        if self.rank == 0:
            self.expect(kind, target, transfer)
            landed = self._land(target, transfer, what)
            return np.array(next(iter(landed.values())))
        return None

    def progress(self) -> None:
        """Move what can move."""
        if self._peers is not None:
            self._peers.progress()

    def finish(self, what: str) -> None:
        """Wait until everything this rank gave has left."""
        if self._peers is not None:
            wait_until(self._peers.idle, self.progress, self._watchdog, what)

    def _transport(self, rank: int) -> Transport:
        if rank == self.rank:
            return self._own
        if self._peers is None:
            raise ValueError(f"one process has no rank {rank}")
        return self._peers

    def _tag(self, transfer: int, number: int) -> int:
        return transfer * self._tags_per_transfer + number

    @cached_property
    def _tags_per_transfer(self) -> int:
        """Between two ranks go at most as many pieces as pairs of their devices."""
        return max(self._rank_of.count(r) for r in set(self._rank_of)) ** 2


class Route:
    """What one rank sends and receives in one kind of transfer; each piece with its number among the pair of ranks."""

    def __init__(self, pieces: Sequence[Piece], rank: int) -> None:
        self.sent: list[tuple[Piece, int]] = []
        self.received: dict[Box, list[tuple[Piece, int]]] = {}
        count: dict[tuple[int, int], int] = {}
        for piece in pieces:
            pair = (piece.sender, piece.receiver)
            number = count.get(pair, 0)
            count[pair] = number + 1
            if piece.sender == rank:
                self.sent.append((piece, number))
            if piece.receiver == rank:
                self.received.setdefault(piece.tile, []).append((piece, number))


class _Landing:
    """A transfer under way: buffers by tile, tests of their pieces, and tiles that move from device to device."""

    def __init__(self) -> None:
        self.buffers: dict[Box, Array] = {}
        self.tests: list[Callable[[], bool]] = []
        self.moved: dict[Box, int] = {}

    def arrived(self) -> bool:
        """Whether all pieces have landed; those that have are not asked again."""
        self.tests = [test for test in self.tests if not test()]
        return not self.tests
