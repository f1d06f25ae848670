"""The two dynamic programs against brute force over all cuts, on random tables."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest

from alpa_mlir.passes.inter.dp import StageTables, partition_layers
from alpa_mlir.passes.inter.layer_dp import Crossing, cut_layers, entering_bytes


def cuts(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to start `parts` non-empty runs of `count` items."""
    for inner in combinations(range(1, count), parts - 1):
        yield (0, *inner)


def entering_directly(crossings: list[Crossing], first: int, end: int) -> int:
    """The definition of C: bytes of values defined before and used inside."""
    return sum(c.nbytes for c in crossings if c.defined < first and any(first <= u < end for u in c.used))


def random_crossings(rng: np.random.Generator, count: int) -> list[Crossing]:
    found = []
    for _ in range(int(rng.integers(0, 3 * count))):
        a = int(rng.integers(0, count))
        used = tuple(int(u) for u in rng.integers(a, count, size=int(rng.integers(0, 4))))
        found.append(Crossing(a, used, int(rng.integers(1, 9))))
    return found


def test_entering_bytes_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        count = int(rng.integers(1, 8))
        crossings = random_crossings(rng, count)
        table = entering_bytes(crossings, count)
        for i in range(count):
            for k in range(i + 1, count + 1):
                assert table[i, k] == entering_directly(crossings, i, k)


def brute_force_layers(
    entering: np.ndarray, work: list[float], layers: int, delta: float
) -> tuple[float, float] | None:
    best: tuple[float, float] | None = None
    limit = (1 + delta) * sum(work) / layers * (1 + 1e-9)
    for starts in cuts(len(work), layers):
        ends = (*starts[1:], len(work))
        loads = [sum(work[a:b]) for a, b in zip(starts, ends, strict=True)]
        if max(loads) > limit:
            continue
        key = (max(entering[a, b] for a, b in zip(starts, ends, strict=True)), sum(x * x for x in loads))
        best = key if best is None else min(best, key)
    return best


def test_layers_equal_brute_force() -> None:
    rng = np.random.default_rng(1)
    relaxed = 0
    for _ in range(300):
        count = int(rng.integers(1, 9))
        layers = int(rng.integers(1, count + 1))
        work = [float(w) for w in rng.integers(1, 6, size=count)]
        entering = entering_bytes(random_crossings(rng, count), count)
        cut = cut_layers(entering, work, layers)
        expected = brute_force_layers(entering, work, layers, cut.delta)
        ends = (*cut.starts[1:], count)
        loads = [sum(work[a:b]) for a, b in zip(cut.starts, ends, strict=True)]
        assert expected is not None and expected == (cut.bottleneck, sum(x * x for x in loads))
        if cut.delta > 0.5:
            relaxed += 1
            assert brute_force_layers(entering, work, layers, cut.delta / 2) is None
    assert relaxed > 5


def test_more_layers_than_segments_is_refused() -> None:
    with pytest.raises(ValueError, match="2 segments cannot be cut into 3 layers"):
        cut_layers(entering_bytes([], 2), [1.0, 1.0], 3)


def brute_force_stages(tables: StageTables, total: int, stages: list[int]) -> float:
    best = np.inf
    layers = tables.layers
    for count in stages:
        if count > layers:
            continue
        for starts in cuts(layers, count):
            ends = (*starts[1:], layers)
            for options in product(range(len(tables.devices)), repeat=count):
                if sum(tables.devices[m] for m in options) != total:
                    continue
                rows = [tables.row(count - n) for n in range(count)]
                entries = [(q, a, b - 1, m) for q, a, b, m in zip(rows, starts, ends, options, strict=True)]
                cost = sum(tables.latency[e] for e in entries) + max(tables.bottleneck[e] for e in entries)
                best = min(best, float(cost))
    return best


def random_tables(rng: np.random.Generator) -> StageTables:
    layers, options, depth = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    devices = tuple(int(n) for n in rng.choice([1, 2, 4], size=options))
    latency = rng.integers(1, 12, size=(depth, layers, layers, options)).astype(float)
    microbatches = int(rng.integers(1, 9))
    bottleneck = (microbatches - 1) * latency + rng.integers(0, 5, size=latency.shape)
    latency[rng.random(latency.shape) < 0.2] = np.inf
    return StageTables(latency, bottleneck, devices)


def test_stages_equal_brute_force() -> None:
    rng = np.random.default_rng(2)
    feasible = 0
    for _ in range(400):
        tables = random_tables(rng)
        total = int(rng.integers(1, 9))
        stages = [int(rng.integers(1, 5))] if rng.random() < 0.5 else [1, 2, 3, 4]
        found = partition_layers(tables, total, stages)
        expected = brute_force_stages(tables, total, stages)
        if found is None:
            assert not np.isfinite(expected)
            continue
        feasible += 1
        assert found.cost == pytest.approx(expected, rel=1e-6)
        assert sum(tables.devices[c.option] for c in found.stages) == total
        assert [c.first for c in found.stages] == [0, *(c.last + 1 for c in found.stages[:-1])]
        assert found.stages[-1].last == tables.layers - 1
    assert feasible > 100


def test_memory_moves_the_cut_away_from_stages_with_many_microbatches_in_flight() -> None:
    """Two layers in one stage fit only with one microbatch in flight: the long stage must come last."""
    latency = np.ones((2, 3, 3, 1))
    latency[1, 0, 1] = np.inf
    tables = StageTables(latency, 3 * latency, (1,))
    found = partition_layers(tables, 2, [2])
    assert found is not None and [(c.first, c.last) for c in found.stages] == [(0, 0), (1, 2)]
    latency[0, 1, 2] = np.inf
    assert partition_layers(StageTables(latency, 3 * latency, (1,)), 2, [2]) is None
