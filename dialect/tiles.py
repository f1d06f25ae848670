"""Tiles: the box of a tensor that each device of a mesh holds.

A tensor dimension split over axes x, y (major first) of sizes X, Y is cut into X·Y equal parts; the device at
coordinates (x, y) holds part x·Y + y.  All dimensions together give each device one box, its *tile*; devices that
differ only in axes on no dimension hold the same tile: they are *replicas*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding

Box = tuple[tuple[int, int], ...]
"""Per dimension (start, stop)."""


@dataclass(frozen=True)
class Placement:
    """How a tensor lies on a mesh."""

    mesh: Mesh
    sharding: Sharding


@lru_cache(maxsize=4096)
def tiles(shape: tuple[int, ...], placement: Placement) -> tuple[Box, ...]:
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


def replicas(shape: tuple[int, ...], placement: Placement) -> dict[Box, tuple[int, ...]]:
    """Each distinct tile with the positions in the mesh that hold it, by position in the tensor."""
    found: dict[Box, list[int]] = {}
    for position, tile in enumerate(tiles(shape, placement)):
        found.setdefault(tile, []).append(position)
    return {tile: tuple(found[tile]) for tile in sorted(found)}


def overlaps(box: Box, shape: tuple[int, ...], placement: Placement) -> list[tuple[Box, Box]]:
    """The tiles of a placement that a box meets, each with the common box, by position.

    Tiles are a regular grid, so they are found by division.  An empty box meets none.
    """
    extents = placement.sharding.local_shape(shape, placement.mesh)
    if volume(box) == 0:
        return []
    ranges = [range(a // n, (b - 1) // n + 1) for (a, b), n in zip(box, extents, strict=True)]
    found = []
    for cell in product(*ranges):
        tile = tuple((i * n, (i + 1) * n) for i, n in zip(cell, extents, strict=True))
        common = intersect(tile, box)
        assert common is not None
        found.append((tile, common))
    return found


def intersect(a: Box, b: Box) -> Box | None:
    """The common box, or None where the two do not meet.  Boxes of a scalar always meet."""
    common = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def contains(tile: Box, box: Box) -> bool:
    """Whether a box lies in a tile."""
    return all(p <= r and s <= q for (p, q), (r, s) in zip(tile, box, strict=True))


def volume(box: Box) -> int:
    """Number of elements."""
    return prod(stop - start for start, stop in box)


def runs(box: Box, tile: Box) -> int:
    """In how many contiguous runs the elements of `box` lie in row-major memory that holds `tile`."""
    count = 1
    whole_behind = True
    for (a, b), (p, q) in zip(reversed(box), reversed(tile), strict=True):
        if not whole_behind:
            count *= b - a
        whole_behind = whole_behind and (a, b) == (p, q)
    return count


def within(box: Box, tile: Box) -> tuple[slice, ...]:
    """The slices that select `box` in an array that holds `tile`."""
    return tuple(slice(a - origin, b - origin) for (a, b), (origin, _) in zip(box, tile, strict=True))


def extents(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(b - a for a, b in box)


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return tuple((0, n) for n in shape)
