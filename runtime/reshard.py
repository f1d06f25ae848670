"""Cross-mesh resharding: who sends which box of a tensor to whom.

A value lives on a source mesh in one sharding and is wanted on a destination mesh in another.  Each
device holds one *tile* (a box of indices); a destination tile is covered by its intersections with the
source tiles.  Where several devices hold the same source tile, one of them sends: one of the receiver's
own rank if there is one (no message at all), else the device of the least loaded rank.  A rank receives a
tile once, however many of its devices want it.

The list follows from meshes, shardings and the rank of each device alone, so both sides derive the same
list in the same order without talking.  (The tile intersection is Alpa's cross-mesh resharding, OSDI'22
§6; the load balancing is the greedy one of Zhuang et al., "On optimizing the communication of model
parallelism", MLSys'23 §4.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding

Box = tuple[tuple[int, int], ...]
"""Per dimension (start, stop)."""


@dataclass(frozen=True)
class Placement:
    """A tensor on a mesh: `devices[i]` is the plan's number of the mesh's device `i` (row-major)."""

    mesh: Mesh
    devices: tuple[int, ...]
    sharding: Sharding


@dataclass(frozen=True)
class Piece:
    """One box that goes from `source` (a device of rank `sender`) to `receiver`, into its tile `tile`.

    `held` is the tile of the source device; `box` lies in both tiles.
    """

    box: Box
    held: Box
    source: int
    sender: int
    receiver: int
    tile: Box


def tiles(shape: Sequence[int], placement: Placement) -> tuple[Box, ...]:
    """The box that each device of the mesh holds, in mesh order.

    Raises `CompileError` where a dimension does not divide or the value is partial over some axis.
    """
    mesh, sharding = placement.mesh, placement.sharding
    if sharding.partial:
        raise CompileError(f"a value partial over {list(sharding.partial)} cannot leave its mesh: reduce it first")
    local = sharding.local_shape(shape, mesh)
    found = []
    for coordinates in product(*(range(n) for n in mesh.shape)):
        at = dict(zip(mesh.axis_names, coordinates, strict=True))
        box = []
        for extent, axes in zip(local, sharding.dims, strict=True):
            position = 0
            for axis in axes:
                position = position * mesh.size(axis) + at[axis]
            box.append((position * extent, (position + 1) * extent))
        found.append(tuple(box))
    return tuple(found)


def intersect(a: Box, b: Box) -> Box | None:
    """The common box, or None where the two do not meet.  Boxes of a scalar always meet."""
    common = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def volume(box: Box) -> int:
    """Number of elements."""
    count = 1
    for start, stop in box:
        count *= stop - start
    return count


def within(box: Box, tile: Box) -> tuple[slice, ...]:
    """The slices that select `box` in an array that holds `tile`."""
    return tuple(slice(a - origin, b - origin) for (a, b), (origin, _) in zip(box, tile, strict=True))


def plan_pieces(
    shape: Sequence[int], source: Placement, target: Placement, rank_of: Sequence[int]
) -> tuple[Piece, ...]:
    """The pieces of one transfer in one global order; `rank_of[d]` is the rank of device `d`.

    Order: receivers by rank, their tiles by position, pieces by position.  A tensor without elements has none.
    """
    holders = _holders(shape, source)
    load: dict[int, int] = {}
    pieces: list[Piece] = []
    for receiver, tile in _wanted(shape, target, rank_of):
        for held, devices in holders.items():
            box = intersect(held, tile)
            if box is None:
                continue
            device = _choose(devices, receiver, rank_of, load)
            sender = rank_of[device]
            if sender != receiver:
                load[sender] = load.get(sender, 0) + volume(box)
            pieces.append(Piece(box, held, device, sender, receiver, tile))
    return tuple(pieces)


def _holders(shape: Sequence[int], placement: Placement) -> dict[Box, list[int]]:
    """Each distinct tile with the devices that hold it, by position."""
    found: dict[Box, list[int]] = {}
    for device, tile in zip(placement.devices, tiles(shape, placement), strict=True):
        found.setdefault(tile, []).append(device)
    return dict(sorted(found.items()))


def _wanted(shape: Sequence[int], placement: Placement, rank_of: Sequence[int]) -> list[tuple[int, Box]]:
    """(rank, tile) pairs of the destination, each once, sorted."""
    pairs = zip(placement.devices, tiles(shape, placement), strict=True)
    return sorted({(rank_of[device], tile) for device, tile in pairs})


def _choose(devices: Sequence[int], receiver: int, rank_of: Sequence[int], load: dict[int, int]) -> int:
    own = [d for d in devices if rank_of[d] == receiver]
    if own:
        return own[0]
    return min(devices, key=lambda d: (load.get(rank_of[d], 0), d))
