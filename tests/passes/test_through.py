"""The least step through a range of layers on some devices, against all partitions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alpa_mlir.passes.inter.through import through

Stage = tuple[int, int, int]
"""Size, first and last layer."""


def partitions(layers: int, sizes: list[int], devices: int, first: int = 0) -> Iterator[list[Stage]]:
    """All cuts of the layers from `first` on into stages on exactly so many devices."""
    if first == layers and devices == 0:
        yield []
    for m, n in enumerate(sizes):
        for last in range(first, layers) if n <= devices else ():
            yield from ([(m, first, last), *rest] for rest in partitions(layers, sizes, devices - n, last + 1))


def test_it_is_the_least_of_all_partitions_with_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        layers, devices = int(rng.integers(1, 6)), int(rng.choice([4, 6, 8]))
        sizes = sorted(rng.choice([1, 2, 3, 4, 8], int(rng.integers(1, 4)), replace=False).tolist())
        step = rng.random((len(sizes), layers, layers))
        step[rng.random(step.shape) < 0.1] = np.inf
        step[:, *np.tril_indices(layers, -1)] = np.inf
        best = np.full(step.shape, np.inf)
        for stages in partitions(layers, sizes, devices):
            longest = max(step[stage] for stage in stages)
            for stage in stages:
                best[stage] = min(best[stage], longest)
        assert np.array_equal(through(step, np.array(sizes), devices), best)
