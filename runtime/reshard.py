"""A route on ranks: which messages a transfer between submeshes takes.

The plan routes boxes from device to device (`alpa_mlir.dialect.route`).  What must be sent depends on who owns the
devices.  An *endpoint* is what can be sent to: a rank, whose host memory serves all its devices, or a device with
memory of its own.  Between devices of one endpoint nothing is sent; an endpoint receives a box of a tile once, however
many of its devices want it; and what it holds already, as source or replica, it takes from itself.

The list follows from the route and the owners alone, so all ranks derive the same list in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from alpa_mlir.dialect.route import Move, Route, Spread
from alpa_mlir.dialect.tiles import Box, Placement, contains, intersect, overlaps, replicas, tiles, volume

MOST_STRIPS = 64


@dataclass(frozen=True)
class Site:
    """A tensor on devices: `devices[i]` is the plan's number of the mesh's device `i`."""

    placement: Placement
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """One box for the tile `tile` of endpoint `receiver`.

    It comes from `held`, the tile of device `source` of the source mesh; or, where `source` is None, from the
    destination tile `held` of the sender, in which it has landed before.  `number` counts the pieces from this
    sender to this receiver.  Along its first `lead` dimensions it had better be cut into strips: see `strip_dims`.
    """

    box: Box
    tile: Box
    receiver: int
    held: Box
    source: int | None
    sender: int
    number: int
    lead: int = 0


def direct_route(shape: tuple[int, ...], source: Placement, target: Placement) -> Route:
    """A route nobody planned: each device gets its tile from the first holders.  For results and level 6."""
    holders = replicas(shape, source)
    moves = [
        Move(holders[held][0], position, box)
        for position, tile in enumerate(tiles(shape, target))
        for held, box in overlaps(tile, shape, source)
    ]
    return Route(tuple(moves), ())


def plan_pieces(
    route: Route,
    shape: tuple[int, ...],
    source: Site,
    target: Site,
    endpoint_of: Sequence[int],
    shortest: int = 0,
) -> tuple[Piece, ...]:
    """The pieces of one transfer in one global order; `endpoint_of[d]` is the endpoint of device `d`.

    Strips have at least `shortest` elements; 0: there are none.
    """
    planner = _Pieces(shape, source, target, endpoint_of)
    for move in route.moves:
        planner.move(move)
    for spread in route.spreads:
        planner.spread(spread)
    return _numbered(_merged(planner.pieces), shortest)


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with boxes from the source joined that replicas of one endpoint would have shared.

    What is passed on stays apart and in its order: of joined boxes each could wait for another.
    """
    groups: dict[tuple[object, ...], list[Piece]] = {}
    for piece in pieces:
        if piece.source is not None:
            groups.setdefault((piece.sender, piece.receiver, piece.held, piece.tile), []).append(piece)
    found = [replace(group[0], box=box) for group in groups.values() for box in _joined([p.box for p in group])]
    return [*found, *(p for p in pieces if p.source is None)]


def _joined(boxes: Sequence[Box]) -> list[Box]:
    """Disjoint boxes with neighbours along one dimension joined, dimension by dimension."""
    found = list(boxes)
    for dim in range(len(boxes[0]) if boxes else 0):
        found.sort(key=lambda box: (box[:dim], box[dim + 1 :], box[dim]))
        joined: list[Box] = []
        for box in found:
            last = joined[-1] if joined else None
            fits = last is not None and last[:dim] == box[:dim] and last[dim + 1 :] == box[dim + 1 :]
            if last is not None and fits and last[dim][1] == box[dim][0]:
                joined[-1] = (*box[:dim], (last[dim][0], box[dim][1]), *box[dim + 1 :])
            else:
                joined.append(box)
        found = joined
    return found


def _numbered(pieces: Sequence[Piece], shortest: int) -> tuple[Piece, ...]:
    """The pieces, numbered for each pair of sender and receiver."""
    count: dict[tuple[int, int], int] = {}
    found = []
    for piece in pieces:
        lead = strip_dims(piece.box, piece.held, piece.tile, shortest) if piece.sender != piece.receiver else 0
        number = count.get((piece.sender, piece.receiver), 0)
        count[piece.sender, piece.receiver] = number + 1
        found.append(replace(piece, number=number, lead=lead))
    return tuple(found)


def strip_dims(box: Box, held: Box, tile: Box, shortest: int) -> int:
    """Along how many first dimensions a box is cut into strips that are contiguous in both tiles.

    0, for the whole box, where it is contiguous itself, or where there were more than `MOST_STRIPS` strips, or shorter
    ones than `shortest` elements: then it had better be packed.
    """
    dim = len(box)
    while dim > 0 and (dim == len(box) or box[dim] == held[dim] == tile[dim]):
        dim -= 1
    count = prod(b - a for a, b in box[:dim])
    return dim if 1 < count <= MOST_STRIPS and volume(box) >= shortest * count > 0 else 0


class _Pieces:
    """The pieces so far, and what has arrived where."""

    def __init__(self, shape: tuple[int, ...], source: Site, target: Site, endpoint_of: Sequence[int]) -> None:
        self._held, self._wanted = tiles(shape, source.placement), tiles(shape, target.placement)
        self._source, self._target, self._endpoint_of = source, target, endpoint_of
        self._positions: dict[int, list[int]] = {}
        for position, device in enumerate(source.devices):
            self._positions.setdefault(endpoint_of[device], []).append(position)
        self._arrived: dict[tuple[int, Box], list[Box]] = {}
        self.pieces: list[Piece] = []

    def move(self, move: Move) -> None:
        """From mesh to mesh."""
        device = self._source.devices[move.source]
        self._piece(move.target, move.box, self._held[move.source], device, self._endpoint_of[device])

    def spread(self, spread: Spread) -> None:
        """From where it has landed."""
        sender = self._endpoint_of[self._target.devices[spread.source]]
        for position in spread.targets:
            self._piece(position, spread.box, self._wanted[spread.source], None, sender)

    def _piece(self, position: int, box: Box, held: Box, device: int | None, sender: int) -> None:
        receiver, tile = self._endpoint_of[self._target.devices[position]], self._wanted[position]
        arrived = self._arrived.setdefault((receiver, tile), [])
        present = sum(volume(common) for other in arrived if (common := intersect(other, box)) is not None)
        if present == volume(box):
            return
        arrived.append(box)
        own = [p for p in self._positions.get(receiver, ()) if contains(self._held[p], box)]
        if own:
            device, held, sender = self._source.devices[own[0]], self._held[own[0]], receiver
        self.pieces.append(Piece(box, tile, receiver, held, device, sender, 0))
