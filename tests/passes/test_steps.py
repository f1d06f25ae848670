"""Reshard chains: they end where they should, and take the cheap road."""

import itertools

import pytest

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.local.collectives import exchanges
from alpa_mlir.passes.local.steps import reshard_steps


def sharding(*dims: str, partial: str = "") -> Sharding:
    return Sharding(tuple(tuple(d) for d in dims), tuple(partial))


def every_sharding(axes: str, rank: int) -> list[Sharding]:
    found = set()
    for n in range(len(axes) + 1):
        for order in itertools.permutations(axes, n):
            for places in itertools.product(range(rank + 1), repeat=n):
                dims: list[list[str]] = [[] for _ in range(rank + 1)]
                for axis, place in zip(order, places, strict=True):
                    dims[place].append(axis)
                found.add(Sharding(tuple(tuple(d) for d in dims[:rank]), tuple(sorted(dims[rank]))))
    return sorted(found, key=str)


SQUARE, OBLONG = Mesh("m", (("x", 2), ("y", 2))), Mesh("m", (("x", 2), ("y", 3)))


@pytest.mark.parametrize("mesh", [SQUARE, OBLONG])
def test_every_pair_of_shardings_is_joined_by_a_chain(mesh):
    """And no step splits a dimension into more or other parts than source or target do: sizes always divide."""
    for source in every_sharding("xy", 2):
        for target in every_sharding("xy", 2):
            if set(target.partial) - set(source.partial):
                continue
            current = source
            for step in reshard_steps(source, target, mesh):
                assert step.before == current
                current = step.after
                for dim, before, after in zip(current.dims, source.dims, target.dims, strict=True):
                    parts = mesh.extent(dim)
                    assert mesh.extent(before) % parts == 0 or mesh.extent(after) % parts == 0
            assert current == target


def test_tiles_find_their_places():
    """Each device gets from one that held its new tile, each sends once, and none gives away what it keeps."""
    three = Mesh("m", (("x", 2), ("y", 2), ("z", 2)))
    for before, after in (("xy", "yx"), ("x", "y"), ("xz", "yx"), ("z", "x")):
        pairs = exchanges(Sharding((tuple(before),), ()), Sharding((tuple(after),), ()), three)
        assert sorted(i for i, _ in pairs) == sorted(j for _, j in pairs) == list(range(8))
        place = lambda device, axes: [device // three.stride(a) % 2 for a in axes]  # noqa: E731
        for giver, device in pairs:
            assert place(giver, before) == place(device, after)
            assert giver == device or place(device, before) != place(device, after)


@pytest.mark.parametrize(
    ("source", "target", "kinds"),
    [
        (sharding("x", ""), sharding("", "x"), ["all_to_all"]),
        (sharding("xy", ""), sharding("", ""), ["all_gather"]),
        (sharding("", ""), sharding("y", "x"), ["slice", "slice"]),
        (sharding("", "", partial="x"), sharding("x", ""), ["reduce_scatter"]),
        (sharding("", "", partial="xy"), sharding("", ""), ["all_reduce"]),
        (sharding("", "", partial="xy"), sharding("x", ""), ["reduce_scatter", "all_reduce"]),
        (sharding("", "", partial="xy"), sharding("xy", ""), ["reduce_scatter"]),
        (sharding("", "", partial="xy"), sharding("x", "y"), ["reduce_scatter", "reduce_scatter"]),
        (sharding("", ""), sharding("", "xy"), ["slice"]),
        (sharding("x", ""), sharding("x", ""), []),
        (sharding("xy", ""), sharding("", "xy"), ["all_to_all"]),
        (sharding("xy", ""), sharding("yx", ""), ["collective_permute"]),
        (sharding("x", "y"), sharding("y", "x"), ["collective_permute"]),
        (sharding("x", ""), sharding("y", ""), ["collective_permute"]),
        (sharding("xy", ""), sharding("y", ""), ["collective_permute", "all_gather"]),
        (sharding("xy", ""), sharding("y", "x"), ["collective_permute", "all_to_all"]),
        (sharding("x", "y"), sharding("", "x"), ["all_gather", "all_to_all"]),
    ],
)
def test_the_cheap_road(source, target, kinds):
    assert [s.kind for s in reshard_steps(source, target, SQUARE)] == kinds


def test_unequal_axes_cannot_take_each_others_places():
    assert [s.kind for s in reshard_steps(sharding("x", ""), sharding("y", ""), OBLONG)] == ["all_gather", "slice"]
    kinds = [s.kind for s in reshard_steps(sharding("x", "y"), sharding("y", "x"), OBLONG)]
    assert kinds == ["all_gather", "all_to_all", "slice"]


def test_a_whole_value_cannot_become_partial():
    with pytest.raises(ValueError, match="partial"):
        reshard_steps(sharding("", ""), sharding("", "", partial="x"), SQUARE)
