"""Routes: how a value gets from one submesh to another, box by box.

A transfer changes mesh and sharding at once.  Its *route* says which device sends which box to which: a *move* goes
from a device of the source mesh to one of the destination mesh, a *spread* from a device of the destination mesh,
where the box has arrived, to replicas of its tile.  Devices are positions in their mesh, so transfers between
meshes of equal shapes share a route.  In the module:

    "alpa.route"() ({
      "alpa.move"()   {from = 0 : i64, to = 1 : i64, start = array<i64: 0, 0>, stop = array<i64: 8, 16>} : () -> ()
      "alpa.spread"() {from = 1 : i64, to = array<i64: 0>, start = array<i64: 0, 0>, stop = array<i64: 8, 16>} : …
    }) {id = 0 : i64, across = 512 : i64, inside = 512 : i64} : () -> ()

`across` and `inside` are the bytes of all moves and of all spreads.  A `mpmd.transfer` names its route by the number
`alpa.route`.  Rules, checked by `check_route`:

* (T1) a move's box lies in the tile of the device that sends it;
* (T2) a box lies in the tile of each device that it goes to, and arrives there before it is spread from there;
* (T3) every element of every destination tile arrives exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.tiles import Box, Placement, contains, intersect, tiles, volume

ROUTE_OP, MOVE_OP, SPREAD_OP = "alpa.route", "alpa.move", "alpa.spread"


@dataclass(frozen=True)
class Move:
    """A box from position `source` of the source mesh to position `target` of the destination mesh."""

    source: int
    target: int
    box: Box


@dataclass(frozen=True)
class Spread:
    """A box from position `source` of the destination mesh, where it has arrived, to other positions of it."""

    source: int
    targets: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class Route:
    """All moves, then all spreads, in the order in which both sides start them."""

    moves: tuple[Move, ...]
    spreads: tuple[Spread, ...]

    @property
    def across(self) -> int:
        """Elements that cross from mesh to mesh."""
        return sum(volume(m.box) for m in self.moves)

    @property
    def inside(self) -> int:
        """Elements that are copied inside the destination mesh."""
        return sum(volume(s.box) * len(s.targets) for s in self.spreads)


def check_route(route: Route, shape: tuple[int, ...], source: Placement, target: Placement) -> None:
    """CompileError unless the route makes the value in its new place (rules T1 to T3)."""
    held = tiles(shape, source)
    arrivals = _Arrivals(tiles(shape, target))
    for move in route.moves:
        if not 0 <= move.source < len(held) or not contains(held[move.source], move.box):
            raise CompileError(f"box {list(move.box)} does not lie in the tile of its sender {move.source} (T1)")
        arrivals.add(move.target, move.box)
    for spread in route.spreads:
        if not arrivals.covers(spread.source, spread.box):
            raise CompileError(f"box {list(spread.box)} is spread from {spread.source} before it is there (T2)")
        for position in spread.targets:
            arrivals.add(position, spread.box)
    arrivals.check_complete()


class _Arrivals:
    """The boxes that have arrived at each device of the destination."""

    def __init__(self, wanted: Sequence[Box]) -> None:
        self._wanted = wanted
        self._boxes: list[list[Box]] = [[] for _ in wanted]

    def add(self, position: int, box: Box) -> None:
        """One more box."""
        if not 0 <= position < len(self._wanted) or not contains(self._wanted[position], box):
            raise CompileError(f"box {list(box)} does not lie in the tile of device {position} (T2)")
        if any(volume(box) and intersect(box, other) is not None for other in self._boxes[position]):
            raise CompileError(f"elements of box {list(box)} arrive twice at device {position} (T3)")
        self._boxes[position].append(box)

    def covers(self, position: int, box: Box) -> bool:
        """Whether all of a box has arrived."""
        there = self._boxes[position] if 0 <= position < len(self._wanted) else []
        return sum(volume(c) for b in there if (c := intersect(b, box)) is not None) == volume(box)

    def check_complete(self) -> None:
        """CompileError unless every device has its tile."""
        for position, tile in enumerate(self._wanted):
            if not self.covers(position, tile):
                raise CompileError(f"device {position} does not get its whole tile {list(tile)} (T3)")


def read_routes(module: ir.Module) -> dict[int, Route]:
    """The routes of a module by number."""
    found: dict[int, Route] = {}
    for view in module.body.operations:
        op = view.operation
        if op.name == ROUTE_OP:
            inner = [i.operation for i in op.regions[0].blocks[0].operations]
            moves = tuple(Move(_int(i, "from"), _int(i, "to"), _box(i)) for i in inner if i.name == MOVE_OP)
            spreads = tuple(Spread(_int(i, "from"), _ints(i, "to"), _box(i)) for i in inner if i.name == SPREAD_OP)
            found[_int(op, "id")] = Route(moves, spreads)
    return found


def write_routes(module: ir.Module, routes: Mapping[int, tuple[Route, int, int]]) -> None:
    """Append `"alpa.route"` ops, (route, bytes across, bytes inside) by number, replacing those that stand there."""
    for view in list(module.body.operations):
        if view.operation.name == ROUTE_OP:
            view.operation.erase()
    context = module.context
    with context, ir.Location.unknown():
        for number, (route, across, inside) in routes.items():
            attributes = {"id": number, "across": across, "inside": inside}
            entries = {name: alpa.i64(value, context) for name, value in attributes.items()}
            op = ir.Operation.create(ROUTE_OP, attributes=entries, regions=1, ip=ir.InsertionPoint(module.body))
            ip = ir.InsertionPoint(op.regions[0].blocks.append())
            for move in route.moves:
                _write(MOVE_OP, move.source, alpa.i64(move.target, context), move.box, ip)
            for spread in route.spreads:
                _write(SPREAD_OP, spread.source, ir.DenseI64ArrayAttr.get(list(spread.targets)), spread.box, ip)


def _write(name: str, source: int, to: ir.Attribute, box: Box, ip: ir.InsertionPoint) -> None:
    context = ip.block.owner.operation.context
    start, stop = [a for a, _ in box], [b for _, b in box]
    attributes = {
        "from": alpa.i64(source, context),
        "to": to,
        "start": ir.DenseI64ArrayAttr.get(start, context),
        "stop": ir.DenseI64ArrayAttr.get(stop, context),
    }
    ir.Operation.create(name, attributes=attributes, ip=ip)


def _attribute(op: ir.Operation, name: str) -> ir.Attribute:
    if name not in op.attributes:
        raise CompileError(f"{op.name} needs the attribute {name}", op.location)
    return op.attributes[name]


def _int(op: ir.Operation, name: str) -> int:
    return int(ir.IntegerAttr(_attribute(op, name)).value)


def _ints(op: ir.Operation, name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in ir.DenseI64ArrayAttr(_attribute(op, name)))


def _box(op: ir.Operation) -> Box:
    return tuple(zip(_ints(op, "start"), _ints(op, "stop"), strict=True))
