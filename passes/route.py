"""Planning transfers between submeshes: who sends which box to whom.

Three choices make a route (`alpa_mlir.dialect.route`) out of two meshes and two shardings:

* *Every byte crosses once.*  Replicas of a destination tile each receive one part of it, and exchange their parts
  inside their mesh: send 1/n, then all-gather (Alpa, OSDI'22 §6).  The cut runs along the dimension that leaves
  the fewest contiguous runs of memory.  A tile too small to be worth n messages goes to fewer replicas, the smallest
  to one.  A part gets from its replica to all others directly, or among many along a binomial tree: a multicast.
* *Least-loaded senders.*  Of the replicas of a source tile the one sends that has sent least so far in this transfer
  (the greedy rule of Zhuang et al., "On optimizing the communication of model parallelism", MLSys'23 §4).
* *One order.*  Moves and spreads are listed in the order in which both sides start them.

The cost model prices exactly this (rule C8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.route import Move, Route, Spread, check_route, write_routes
from alpa_mlir.dialect.staged import TRANSFER, MeshTensor, element_bytes
from alpa_mlir.dialect.tiles import Box, Placement, overlaps, replicas, runs, volume
from alpa_mlir.passes.registry import Pass, option, register

MOST_PARTS = 16
"""Of one tile; with more, the messages would be many and small."""
MOST_DIRECT = 8
"""Replicas to which a part is sent directly."""


@register
@dataclass(frozen=True)
class RouteTransfers(Pass):
    """Plan every transfer between submeshes, box by box.

    IR before: level 6, localized where it will be.  IR after: the same, with one `"alpa.route"` op for each kind of
    transfer; every `mpmd.transfer` has `alpa.route`, the number of its route, and `alpa.bytes`, what crosses.
    Postcondition: rules T1 to T3 hold, and every byte that the destination needs crosses once.
    """

    name: ClassVar[str] = "alpa-route"

    smallest_part: int = option(16384, "bytes: a tile is not cut into smaller parts for its replicas")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        level = alpa.get_string(module.operation, alpa.LEVEL)
        if level not in ("split", "plan"):
            raise CompileError(
                f"alpa-route needs a split module (alpa.level is {level!r}): run alpa-split first",
                module.operation.location,
            )
        meshes = meshes_of(module)
        numbers: dict[_Kind, int] = {}
        routes: dict[int, tuple[Route, int, int]] = {}
        for op in [v.operation for v in functions(module)["main"].regions[0].blocks[0].operations]:
            if op.name != TRANSFER:
                continue
            kind = _Kind.of(op, meshes)
            number = numbers.setdefault(kind, len(numbers))
            if number not in routes:
                route = plan_route(kind.shape, kind.source, kind.target, kind.size, self.smallest_part)
                check_route(route, kind.shape, kind.source, kind.target)
                routes[number] = (route, int(route.across * kind.size), int(route.inside * kind.size))
            alpa.set_int(op, alpa.ROUTE, number)
            alpa.set_int(op, alpa.BYTES, routes[number][1])
        write_routes(module, routes)


@dataclass(frozen=True)
class _Kind:
    """What a route depends on; the meshes are without names."""

    shape: tuple[int, ...]
    size: float
    source: Placement
    target: Placement

    @staticmethod
    def of(op: ir.Operation, meshes: dict[str, Mesh]) -> _Kind:
        source, target = (MeshTensor.read(v.type, op.location) for v in (op.operands[0], op.results[0]))
        places = [Placement(Mesh("", meshes[t.mesh].axes), t.sharding) for t in (source, target)]
        return _Kind(source.shape, element_bytes(source.element), places[0], places[1])


def plan_route(shape: tuple[int, ...], source: Placement, target: Placement, size: float, smallest_part: int) -> Route:
    """The route of a tensor with elements of `size` bytes; CompileError where it is partial or does not divide."""
    holders = replicas(shape, source)
    load = [0] * source.mesh.device_count
    moves: list[Move] = []
    spreads: list[Spread] = []
    for tile, positions in replicas(shape, target).items():
        count = max(1, min(len(positions), MOST_PARTS, int(volume(tile) * size) // max(1, smallest_part)))
        parts = _cut(tile, count, shape, source)
        for position, part in zip(positions, parts, strict=False):
            for held, box in overlaps(part, shape, source):
                sender = min(holders[held], key=lambda p: (load[p], p))
                load[sender] += volume(box)
                moves.append(Move(sender, position, box))
        spreads += _spreads(positions, parts)
    return Route(tuple(moves), tuple(s for s in spreads if volume(s.box)))


def _cut(tile: Box, count: int, shape: tuple[int, ...], source: Placement) -> list[Box]:
    """A tile in at most `count` parts of nearly equal size, along the dimension that leaves the fewest runs."""
    if count == 1 or not tile:
        return [tile]
    choices = [_along(tile, dim, count) for dim in range(len(tile))]
    most = max(len(parts) for parts in choices)
    return min((parts for parts in choices if len(parts) == most), key=lambda p: _pieces(p, tile, shape, source))


def _along(tile: Box, dim: int, count: int) -> list[Box]:
    start, stop = tile[dim]
    count = max(1, min(count, stop - start))
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return [(*tile[:dim], (edges[i], edges[i + 1]), *tile[dim + 1 :]) for i in range(count)]


def _pieces(parts: Sequence[Box], tile: Box, shape: tuple[int, ...], source: Placement) -> int:
    """Contiguous runs to be read and written by the moves of these parts."""
    cells = [(held, box) for part in parts for held, box in overlaps(part, shape, source)]
    return sum(runs(box, held) + runs(box, tile) for held, box in cells)


def _spreads(positions: Sequence[int], parts: Sequence[Box]) -> list[Spread]:
    """Every replica gets the parts that the others received."""
    found = []
    for i, part in enumerate(parts):
        turned = [*positions[i:], *positions[:i]]
        found += _directly(turned, part) if len(parts) > 1 and len(positions) <= MOST_DIRECT else _tree(turned, part)
    return found


def _directly(positions: Sequence[int], box: Box) -> list[Spread]:
    return [Spread(positions[0], tuple(sorted(positions[1:])), box)]


def _tree(positions: Sequence[int], box: Box) -> list[Spread]:
    """From the first to all, a binomial tree: in each round all that have the box pass it on to one more."""
    found = []
    have = 1
    while have < len(positions):
        pairs = zip(positions[:have], positions[have : 2 * have], strict=False)
        found += [Spread(giver, (taker,), box) for giver, taker in pairs]
        have *= 2
    return found
