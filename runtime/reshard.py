"""A route on ranks: which messages a transfer between submeshes takes.

The plan routes boxes from device to device (`alpa_mlir.dialect.route`).  What must be sent depends on who owns the
devices.  An *endpoint* is what can be sent to: a rank, whose host memory serves all its devices, or a device with
memory of its own.  Between devices of one endpoint nothing is sent; an endpoint receives a box of a tile once, however
many of its devices want it; and what it holds already, as source or replica, it takes from itself.

The list follows from the route and the owners alone, so all ranks derive the same list in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpa_mlir.dialect.route import Move, Route, Spread
from alpa_mlir.dialect.tiles import Box, Placement, contains, intersect, overlaps, replicas, tiles, volume


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
    sender to this receiver.
    """

    box: Box
    tile: Box
    receiver: int
    held: Box
    source: int | None
    sender: int
    number: int


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
    route: Route, shape: tuple[int, ...], source: Site, target: Site, endpoint_of: Sequence[int]
) -> tuple[Piece, ...]:
    """The pieces of one transfer in one global order; `endpoint_of[d]` is the endpoint of device `d`."""
    planner = _Pieces(shape, source, target, endpoint_of)
    for move in route.moves:
        planner.move(move)
    for spread in route.spreads:
        planner.spread(spread)
    return tuple(planner.pieces)


class _Pieces:
    """The pieces so far, and what has arrived where."""

    def __init__(self, shape: tuple[int, ...], source: Site, target: Site, endpoint_of: Sequence[int]) -> None:
        self._held, self._wanted = tiles(shape, source.placement), tiles(shape, target.placement)
        self._source, self._target, self._endpoint_of = source, target, endpoint_of
        self._positions: dict[int, list[int]] = {}
        for position, device in enumerate(source.devices):
            self._positions.setdefault(endpoint_of[device], []).append(position)
        self._arrived: dict[tuple[int, Box], list[Box]] = {}
        self._count: dict[tuple[int, int], int] = {}
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
        number = self._count.get((sender, receiver), 0)
        self._count[sender, receiver] = number + 1
        self.pieces.append(Piece(box, tile, receiver, held, device, sender, number))
