"""Cross-mesh resharding: every element of every destination tile is written once, with the right value."""

from __future__ import annotations

import numpy as np
import pytest

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.runtime.reshard import Placement, plan_pieces, tiles, volume, within

SHAPES = ((1,), (2,), (4,), (2, 2), (1, 3), (4, 2), (2, 3), (2, 1, 2), (3, 2, 2))


def box_of(shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((0, n) for n in shape)


def random_placement(rng: np.random.Generator, name: str, rank: int, first: int) -> Placement:
    """Any mesh, any assignment of its axes to dimensions, devices numbered from `first` in any order."""
    mesh = Mesh.from_shape(name, SHAPES[rng.integers(len(SHAPES))])
    dims: list[list[str]] = [[] for _ in range(rank)]
    for axis in rng.permutation(mesh.axis_names):
        where = int(rng.integers(-1, rank)) if rank else -1
        if where >= 0:
            dims[where].append(str(axis))
    devices = tuple(int(d) + first for d in rng.permutation(mesh.device_count))
    return Placement(mesh, devices, Sharding(tuple(tuple(d) for d in dims)))


@pytest.mark.parametrize("seed", range(200))
def test_every_element_arrives_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(0, 4))
    shape = tuple(int(rng.choice([24, 48])) for _ in range(rank))
    overlap = rng.integers(2)  # the two meshes may share devices, as interleaved stages do
    source = random_placement(rng, "a", rank, 0)
    target = random_placement(rng, "b", rank, 0 if overlap else source.mesh.device_count)
    count = 1 + max(*source.devices, *target.devices)
    per_rank = int(rng.choice([1, 2, 4]))
    rank_of = [d // per_rank for d in range(count)]

    whole = rng.integers(0, 1000, shape)
    held = {d: whole[within(t, box_of(shape))] for d, t in zip(source.devices, tiles(shape, source), strict=True)}
    pieces = plan_pieces(shape, source, target, rank_of)
    assert pieces == plan_pieces(shape, source, target, rank_of)
    arrived: dict[tuple[int, tuple[tuple[int, int], ...]], tuple[np.ndarray, np.ndarray]] = {}
    for piece in pieces:
        assert rank_of[piece.source] == piece.sender
        extent = tuple(b - a for a, b in piece.tile)
        values, writes = arrived.setdefault(
            (piece.receiver, piece.tile), (np.zeros(extent, int), np.zeros(extent, int))
        )
        at = within(piece.box, piece.tile)
        values[at] = held[piece.source][within(piece.box, piece.held)]
        writes[at] += 1
    for device, tile in zip(target.devices, tiles(shape, target), strict=True):
        values, writes = arrived[(rank_of[device], tile)]
        assert (writes == 1).all()
        assert (values == whole[within(tile, box_of(shape))]).all()


def test_own_copies_need_no_message() -> None:
    mesh = Mesh("a", (("x", 2),))
    whole = Placement(mesh, (0, 1), Sharding.replicated(1))
    pieces = plan_pieces((8,), whole, Placement(mesh, (0, 1), Sharding((("x",),))), [0, 1])
    assert [(p.sender, p.receiver) for p in pieces] == [(0, 0), (1, 1)]


def test_replicas_share_the_sending() -> None:
    source = Placement(Mesh("a", (("x", 4),)), (0, 1, 2, 3), Sharding.replicated(1))
    target = Placement(Mesh("b", (("x", 4),)), (4, 5, 6, 7), Sharding((("x",),)))
    pieces = plan_pieces((16,), source, target, list(range(8)))
    assert sorted(p.sender for p in pieces) == [0, 1, 2, 3]
    assert {volume(p.box) for p in pieces} == {4}


def test_a_rank_receives_a_tile_once() -> None:
    source = Placement(Mesh("a", (("x", 1),)), (0,), Sharding.replicated(1))
    target = Placement(Mesh("b", (("x", 4),)), (4, 5, 6, 7), Sharding.replicated(1))
    assert len(plan_pieces((16,), source, target, [0, 0, 0, 0, 1, 1, 1, 1])) == 1


def test_refuses_what_does_not_divide_and_what_is_partial() -> None:
    mesh = Mesh("a", (("x", 2),))
    with pytest.raises(CompileError, match="not divisible"):
        tiles((3,), Placement(mesh, (0, 1), Sharding((("x",),))))
    with pytest.raises(CompileError, match="partial"):
        tiles((4,), Placement(mesh, (0, 1), Sharding(((),), ("x",))))
