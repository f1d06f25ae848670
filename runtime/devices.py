"""Tensors on submeshes, seen from one rank: where they lie, making them from host memory, reading their tiles.

`Submeshes` knows jax's mesh and devices of every stage.  A tensor on a submesh is a jax array over its devices, of
which this rank addresses only its own.  What moves between submeshes: `alpa_mlir.runtime.transfers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import Plan
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import MeshTensor
from alpa_mlir.dialect.tiles import Box, Placement, tiles, within
from alpa_mlir.runtime.executable import dtype_of, jax_mesh, named
from alpa_mlir.runtime.transport.base import Array, Held
from alpa_mlir.runtime.transport.memory import assembler, parted

HOST = "host"
"""The mesh of one device that stands for rank 0's host memory."""


class Submeshes:
    """The stages' devices; `devices[d]` is jax's device d, None if out of reach.

    `places` has each stage's mesh with the numbers of its devices, and that of the host.
    """

    def __init__(self, plan: Plan, rank: int, rank_of: Sequence[int], devices: Sequence[Any]) -> None:
        self.rank = rank
        self._devices = (*devices, None)
        self._rank_of = (*rank_of, 0)
        self.places: dict[str, tuple[Mesh, tuple[int, ...]]] = {
            name: (stage.mesh, stage.devices) for name, stage in plan.stages.items()
        }
        self.places[HOST] = (Mesh(HOST, (("x", 1),)), (len(rank_of),))
        self._meshes = {
            name: jax_mesh(stage.mesh, [devices[d] for d in stage.devices])
            for name, stage in plan.stages.items()
            if all(devices[d] is not None for d in stage.devices)
        }
        self._shardings: dict[tuple[str, Sharding], NamedSharding] = {}
        self._tiles: dict[MeshTensor, dict[int, Box]] = {}

    def reaches(self, name: str) -> bool:
        """Whether this rank takes part in the computations of a mesh."""
        return name in self._meshes

    def mesh(self, name: str) -> jax.sharding.Mesh:
        """jax's mesh of a stage that this rank takes part in."""
        return self._meshes[name]

    def sharding(self, kind: MeshTensor) -> NamedSharding:
        """jax's sharding of a tensor on a stage that this rank takes part in."""
        key = (kind.mesh, kind.sharding)
        if key not in self._shardings:
            self._shardings[key] = named(self._meshes[kind.mesh], kind.sharding)
        return self._shardings[key]

    def device(self, number: int) -> Any:
        """jax's device of a device of the plan; None for the host and out of reach."""
        return self._devices[number]

    def placement(self, kind: MeshTensor) -> Placement:
        """How a tensor lies on its mesh."""
        return Placement(self.places[kind.mesh][0], kind.sharding)

    def own_tiles(self, kind: MeshTensor) -> dict[int, Box]:
        """The tile of each of this rank's devices on the tensor's mesh."""
        if kind not in self._tiles:
            pairs = zip(self.places[kind.mesh][1], tiles(kind.shape, self.placement(kind)), strict=True)
            self._tiles[kind] = {d: box for d, box in pairs if self._rank_of[d] == self.rank}
        return self._tiles[kind]

    def put(self, whole: Array, kind: MeshTensor) -> jax.Array:
        """A host array, whole on every rank, as a tensor on its mesh."""
        return self.putter(kind)(whole)

    def putter(self, kind: MeshTensor) -> Callable[[Array], jax.Array]:
        """`put` for tensors of one kind, which knows all but the array."""
        everything, own = tuple((0, n) for n in kind.shape), self.own_tiles(kind)
        windows, devices = [within(box, everything) for box in own.values()], [self._devices[d] for d in own]
        make = assembler(kind.shape, dtype_of(kind.element), self.sharding(kind), devices)
        return lambda whole: make([np.asarray(whole[window]) for window in windows])

    def put_tiles(self, tile: Callable[[Box], Array], kind: MeshTensor) -> jax.Array:
        """A tensor of which `tile` gives any box, each of this rank's asked for once."""
        own = self.own_tiles(kind)
        boxes = {box: tile(box) for box in dict.fromkeys(own.values())}
        return self._assemble({device: boxes[box] for device, box in own.items()}, kind)

    def kept_tiles(self, value: jax.Array, kind: MeshTensor) -> dict[Box, Array]:
        """The tiles of a tensor that this rank answers for, as views: of the devices with one tile the first does."""
        first: dict[Box, int] = {}
        for device, box in zip(self.places[kind.mesh][1], tiles(kind.shape, self.placement(kind)), strict=True):
            first.setdefault(box, device)
        shards = parted(value)
        mine = {box: device for box, device in first.items() if self._rank_of[device] == self.rank}
        return {box: np.asarray(shards[self._devices[device].id]) for box, device in mine.items()}

    def _assemble(self, parts: dict[int, Held], kind: MeshTensor) -> jax.Array:
        devices = [self._devices[device] for device in parts]
        return assembler(kind.shape, dtype_of(kind.element), self.sharding(kind), devices)(list(parts.values()))
