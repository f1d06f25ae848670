"""Reshard chains: they end where they should, and take the cheap road."""

import itertools

import pytest

from alpa_mlir.dialect.sharding import Sharding
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


def test_every_pair_of_shardings_is_joined_by_a_chain():
    for source in every_sharding("xy", 2):
        for target in every_sharding("xy", 2):
            if set(target.partial) - set(source.partial):
                continue
            current = source
            for step in reshard_steps(source, target):
                assert step.before == current
                current = step.after
            assert current == target


@pytest.mark.parametrize(
    ("source", "target", "kinds"),
    [
        (sharding("x", ""), sharding("", "x"), ["all_to_all"]),
        (sharding("xy", ""), sharding("", ""), ["all_gather"]),
        (sharding("", ""), sharding("y", "x"), ["slice", "slice"]),
        (sharding("", "", partial="x"), sharding("x", ""), ["reduce_scatter"]),
        (sharding("", "", partial="xy"), sharding("", ""), ["all_reduce"]),
        (sharding("", "", partial="xy"), sharding("x", ""), ["reduce_scatter", "all_reduce"]),
        (sharding("x", ""), sharding("x", ""), []),
    ],
)
def test_the_cheap_road(source, target, kinds):
    assert [s.kind for s in reshard_steps(source, target)] == kinds


def test_a_whole_value_cannot_become_partial():
    with pytest.raises(ValueError, match="partial"):
        reshard_steps(sharding("", ""), sharding("", "", partial="x"))
