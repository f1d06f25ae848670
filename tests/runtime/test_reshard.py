"""Cross-mesh resharding: every element of every destination tile arrives, with the right value, and crosses once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.route import Move, Route, Spread, check_route
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.tiles import Box, Placement, contains, extents, runs, tiles, volume, whole, within
from alpa_mlir.passes.route import plan_route
from alpa_mlir.runtime.reshard import Piece, Site, direct_route, plan_pieces, strip_dims

MESHES = ((1,), (2,), (4,), (2, 2), (1, 3), (4, 2), (2, 3), (3, 4), (2, 1, 2), (3, 2, 2))


def random_site(rng: np.random.Generator, rank: int, first: int) -> Site:
    """Any mesh, any assignment of its axes to dimensions, devices numbered from `first` in any order."""
    mesh = Mesh.from_shape("", MESHES[rng.integers(len(MESHES))])
    dims: list[list[str]] = [[] for _ in range(rank)]
    for axis in rng.permutation(mesh.axis_names):
        where = int(rng.integers(-1, rank)) if rank else -1
        if where >= 0:
            dims[where].append(str(axis))
    devices = tuple(int(d) + first for d in rng.permutation(mesh.device_count))
    return Site(Placement(mesh, Sharding(tuple(tuple(d) for d in dims))), devices)


def carry_out(pieces: tuple[Piece, ...], source: Site, values: np.ndarray) -> dict[tuple[int, Box], np.ndarray]:
    """What the pieces make of a tensor, by endpoint and tile; each must be there before it is sent."""
    everything = whole(values.shape)
    places = dict(zip(source.devices, tiles(values.shape, source.placement), strict=True))
    landed: dict[tuple[int, Box], np.ndarray] = {}
    for piece in pieces:
        if piece.source is None:
            held = landed[piece.sender, piece.held]
        else:
            assert piece.held == places[piece.source]
            held = values[within(piece.held, everything)]
        tile = landed.setdefault((piece.receiver, piece.tile), np.full(extents(piece.tile), -1))
        tile[within(piece.box, piece.tile)] = held[within(piece.box, piece.held)]
    return landed


@pytest.mark.parametrize("seed", range(200))
def test_random_pairs_of_meshes_and_shardings(seed: int) -> None:
    """The result is right, and what crosses is the union of what is needed, once."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(0, 4))
    shape = tuple(int(rng.choice([24, 48])) for _ in range(rank))
    source = random_site(rng, rank, 0)
    target = random_site(rng, rank, source.placement.mesh.device_count)
    per_endpoint = int(rng.choice([1, 1, 2, 4]))
    endpoint_of = [d // per_endpoint for d in range(1 + max(target.devices))]
    smallest = int(rng.choice([1, 100, 10**9]))
    values = rng.integers(0, 1000, shape)

    route = plan_route(shape, source.placement, target.placement, 4, smallest)
    check_route(route, shape, source.placement, target.placement)
    assert route.across == values.size
    copies = target.placement.mesh.device_count // target.placement.mesh.extent(target.placement.sharding.axes)
    assert route.inside == values.size * (copies - 1)

    shortest = int(rng.choice([0, 1, 24]))
    pieces = plan_pieces(route, shape, source, target, endpoint_of, shortest)
    landed = carry_out(pieces, source, values)
    for device, tile in zip(target.devices, tiles(shape, target.placement), strict=True):
        np.testing.assert_array_equal(landed[endpoint_of[device], tile], values[within(tile, whole(shape))])
    across = [volume(p.box) for p in pieces if p.source is not None and p.sender != p.receiver]
    apart = not {endpoint_of[d] for d in source.devices} & {endpoint_of[d] for d in target.devices}
    assert sum(across) == values.size if apart else sum(across) <= values.size
    wanted = {(endpoint_of[d], t) for d, t in zip(target.devices, tiles(shape, target.placement), strict=True)}
    assert sum(volume(p.box) for p in pieces) == sum(volume(t) for _, t in wanted)


@pytest.mark.parametrize("seed", range(40))
def test_a_route_that_nobody_planned(seed: int) -> None:
    """Also between meshes that share devices, and to a host."""
    rng = np.random.default_rng(1000 + seed)
    rank = int(rng.integers(0, 4))
    shape = tuple(int(rng.choice([24, 48])) for _ in range(rank))
    source, target = random_site(rng, rank, 0), random_site(rng, rank, int(rng.integers(0, 5)))
    endpoint_of = [d // 2 for d in range(1 + max(*source.devices, *target.devices))]
    values = rng.integers(0, 1000, shape)
    route = direct_route(shape, source.placement, target.placement)
    check_route(route, shape, source.placement, target.placement)
    landed = carry_out(plan_pieces(route, shape, source, target, endpoint_of), source, values)
    for device, tile in zip(target.devices, tiles(shape, target.placement), strict=True):
        np.testing.assert_array_equal(landed[endpoint_of[device], tile], values[within(tile, whole(shape))])


def line(count: int, dims: tuple[tuple[str, ...], ...]) -> Placement:
    return Placement(Mesh("", (("x", count),)), Sharding(dims))


def test_replicas_share_the_sending_and_the_receiving() -> None:
    """All to all replicated: each of four devices sends a quarter to a device of its own."""
    route = plan_route((16,), line(4, ((),)), line(4, ((),)), 4, 1)
    assert [(m.source, m.target, m.box) for m in route.moves] == [(i, i, ((4 * i, 4 * i + 4),)) for i in range(4)]
    assert [(s.source, s.targets) for s in route.spreads] == [
        (0, (1, 2, 3)),
        (1, (0, 2, 3)),
        (2, (0, 1, 3)),
        (3, (0, 1, 2)),
    ]


def test_boxes_are_cut_into_long_strips() -> None:
    """Rows that are apart in the destination: a strip each; also the columns of a 3-d box, unless they are short."""
    box, held = ((0, 4), (0, 8)), ((0, 4), (0, 8))
    assert strip_dims(box, held, ((0, 8), (0, 8)), 8) == 0
    assert strip_dims(box, held, ((0, 8), (0, 16)), 8) == 1
    assert strip_dims(box, held, ((0, 8), (0, 16)), 9) == 0
    assert strip_dims((), (), (), 1) == 0
    deep, tile = ((0, 2), (2, 4), (0, 8)), ((0, 2), (0, 4), (0, 8))
    assert strip_dims(deep, deep, tile, 1) == 1
    for part in [((i, i + 1), *deep[1:]) for i in range(2)]:
        assert runs(part, tile) == runs(part, deep) == 1


def test_a_small_tile_goes_to_one_replica_and_along_a_tree() -> None:
    route = plan_route((16,), line(1, ((),)), line(5, ((),)), 4, 1000)
    assert route.moves == (Move(0, 0, ((0, 16),)),)
    assert [(s.source, s.targets) for s in route.spreads] == [(0, (1,)), (0, (2,)), (1, (3,)), (0, (4,))]


def test_parts_are_cut_where_the_fewest_runs_of_memory_arise() -> None:
    """The source splits dimension 1: cutting there leaves whole columns on both sides of each message."""
    route = plan_route((64, 64), line(2, ((), ("x",))), line(2, ((), ())), 4, 1)
    assert [m.box for m in route.moves] == [((0, 64), (0, 32)), ((0, 64), (32, 64))]
    assert runs(((0, 2), (0, 4)), ((0, 4), (0, 4))) == 1
    assert runs(((0, 4), (0, 2)), ((0, 4), (0, 4))) == 4
    assert runs((), ()) == 1


def test_three_replicas_share_what_three_does_not_divide() -> None:
    route = plan_route((4, 5), line(1, ((), ())), line(3, ((), ())), 4, 1)
    assert [m.box[1] for m in route.moves] == [(0, 5)] * 3 and [m.box[0] for m in route.moves] == [
        (0, 1),
        (1, 2),
        (2, 4),
    ]


def test_nothing_is_sent_within_an_endpoint() -> None:
    mesh = Mesh("", (("x", 4),))
    source = Site(Placement(mesh, Sharding.replicated(1)), (0, 1, 2, 3))
    target = Site(Placement(mesh, Sharding.replicated(1)), (4, 5, 6, 7))
    route = plan_route((16,), source.placement, target.placement, 4, 1)
    pieces = plan_pieces(route, (16,), source, target, [0, 0, 0, 0, 1, 1, 1, 1])
    assert [(p.sender, p.receiver, p.box) for p in pieces] == [(0, 1, ((0, 16),))]
    alone = plan_pieces(route, (16,), source, target, [0] * 8)
    assert all(p.sender == p.receiver == 0 for p in alone)
    shared = plan_pieces(route, (16,), source, target, [0, 1, 2, 3, 0, 1, 2, 3])
    assert all(p.source is not None for p in shared if p.sender == p.receiver)


def test_an_endpoint_takes_from_itself_what_it_holds() -> None:
    mesh = Mesh("", (("x", 2),))
    both = Site(Placement(mesh, Sharding.replicated(1)), (0, 1))
    split = Site(Placement(mesh, Sharding((("x",),))), (0, 1))
    route = direct_route((8,), both.placement, split.placement)
    assert [(p.sender, p.receiver) for p in plan_pieces(route, (8,), both, split, [0, 1])] == [(0, 0), (1, 1)]


def test_refuses_what_does_not_divide_and_what_is_partial() -> None:
    with pytest.raises(CompileError, match="not divisible"):
        tiles((3,), line(2, (("x",),)))
    with pytest.raises(CompileError, match="partial"):
        tiles((4,), Placement(Mesh("", (("x", 2),)), Sharding(((),), ("x",))))


def test_a_wrong_route_is_refused() -> None:
    """Rules T1 to T3, each broken in turn."""
    shape, source, target = (8,), line(2, (("x",),)), line(2, ((),))
    route = plan_route(shape, source, target, 4, 1)
    check_route(route, shape, source, target)
    first, second = route.moves
    spread = route.spreads[0]
    broken = [
        (replace(route, moves=(replace(first, source=1), second)), "does not lie in the tile of its sender 1 .T1"),
        (replace(route, moves=(replace(first, target=2), second)), "does not lie in the tile of device 2 .T2"),
        (Route((second,), route.spreads), "is spread from 0 before it is there .T2"),
        (Route(route.moves, (*route.spreads, spread)), "arrive twice at device 1 .T3"),
        (Route(route.moves, (spread,)), "device 0 does not get its whole tile .* .T3"),
        (Route(route.moves, (Spread(0, (1,), ((0, 5),)),)), "is spread from 0 before it is there .T2"),
    ]
    for wrong, message in broken:
        with pytest.raises(CompileError, match=message):
            check_route(wrong, shape, source, target)
    assert contains(((0, 4),), ((1, 4),)) and not contains(((0, 4),), ((1, 5),))
