"""The two dynamic programs against brute force over all cuts, on random tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.inter.dp import StageTables, partition_layers
from alpa_mlir.passes.inter.layer_dp import Crossing, cut_layers, entering_bytes
from alpa_mlir.passes.inter.paper_dp import training_dp
from alpa_mlir.tools import stage_dp


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
    entering: np.ndarray, work: list[float], layers: int, delta: float, even: bool
) -> tuple[float, float] | None:
    best: tuple[float, float] | None = None
    limit = (1 + delta) * sum(work) / layers * (1 + 1e-9)
    for starts in cuts(len(work), layers):
        ends = (*starts[1:], len(work))
        loads = [sum(work[a:b]) for a, b in zip(starts, ends, strict=True)]
        if max(loads) > limit:
            continue
        key = (max(entering[a, b] for a, b in zip(starts, ends, strict=True)), unevenness(loads, even))
        best = key if best is None else min(best, key)
    return best


def unevenness(loads: list[float], even: bool) -> float:
    """Σ w_r², and with `even` (W_r - r/L)², of the parts of all work in each layer and up to it."""
    parts, layers = np.array(loads) / sum(loads), len(loads)
    behind = parts.cumsum() - np.arange(1, layers + 1) / layers
    return float((parts**2).sum() + even * (behind**2).sum())


@pytest.mark.parametrize("even", [False, True])
def test_layers_equal_brute_force(even: bool) -> None:
    rng = np.random.default_rng(1)
    relaxed = 0
    for _ in range(300):
        count = int(rng.integers(1, 9))
        layers = int(rng.integers(1, count + 1))
        work = [float(w) for w in rng.integers(1, 6, size=count)]
        entering = entering_bytes(random_crossings(rng, count), count)
        cut = cut_layers(entering, work, layers, even=even)
        expected = brute_force_layers(entering, work, layers, cut.delta, even)
        ends = (*cut.starts[1:], count)
        loads = [sum(work[a:b]) for a, b in zip(cut.starts, ends, strict=True)]
        assert expected is not None and expected == (cut.bottleneck, pytest.approx(unevenness(loads, even)))
        if cut.delta > 0.5:
            relaxed += 1
            assert brute_force_layers(entering, work, layers, cut.delta / 2, even) is None
    assert relaxed > 5


def test_layers_in_a_row_make_even_stages() -> None:
    work = [2.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 1.0, 5.0, 3.0, 2.0]
    total = np.concatenate([[0.0], np.cumsum(work)])
    even, alike = (cut_layers(entering_bytes([], len(work)), work, 8, even=even).starts for even in (True, False))
    # Of 23, so 5.75 for two layers in a row.
    assert [np.diff(total[[*starts[::2], len(work)]]).max() for starts in (even, alike)] == [6.0, 9.0]


def test_more_layers_than_segments_is_refused() -> None:
    with pytest.raises(ValueError, match="2 segments cannot be cut into 3 layers"):
        cut_layers(entering_bytes([], 2), [1.0, 1.0], 3)


def brute_force_stages(tables: StageTables, total: tuple[int, ...], stages: list[int]) -> float:
    best = np.inf
    layers = tables.layers
    for count in stages:
        if count > layers:
            continue
        for starts in cuts(layers, count):
            ends = (*starts[1:], layers)
            for options in product(range(len(tables.devices)), repeat=count):
                if tuple(np.sum([tables.devices[m] for m in options], axis=0)) != total:
                    continue
                rows = [tables.row(count - n) for n in range(count)]
                entries = [(q, a, b - 1, m) for q, a, b, m in zip(rows, starts, ends, options, strict=True)]
                cost = sum(tables.latency[e] for e in entries) + max(tables.bottleneck[e] for e in entries)
                best = min(best, float(cost))
    return best


def random_tables(rng: np.random.Generator) -> StageTables:
    groups = int(rng.integers(1, 3))
    layers, options, depth = int(rng.integers(1, 5)), int(rng.integers(groups, 5)), int(rng.integers(1, 4))
    devices = [[0] * groups for _ in range(options)]
    for number, option in enumerate(devices):
        option[number % groups] = int(rng.choice([1, 1, 2, 3] if rng.random() < 0.8 else [2, 4]))
    latency = rng.integers(1, 12, size=(depth, layers, layers, options)).astype(float)
    microbatches = int(rng.integers(1, 9))
    bottleneck = (microbatches - 1) * latency + rng.integers(0, 5, size=latency.shape)
    latency[rng.random(latency.shape) < 0.2] = np.inf
    return StageTables(latency, bottleneck, tuple(tuple(n) for n in devices))


def test_stages_equal_brute_force() -> None:
    """Over cuts, submeshes, memory and groups of devices, with and without a tolerance."""
    rng = np.random.default_rng(2)
    feasible = several_groups = loose = 0
    for _ in range(1400):
        tables = random_tables(rng)
        total = tuple(int(n) for n in rng.integers(1, 5, size=len(tables.devices[0])))
        stages = [int(rng.integers(1, 5))] if rng.random() < 0.5 else [1, 2, 3, 4]
        found = partition_layers(tables, total, stages)
        expected = brute_force_stages(tables, total, stages)
        if found is None:
            assert not np.isfinite(expected)
            continue
        feasible += 1
        several_groups += len(total) > 1
        assert found.cost == pytest.approx(expected, rel=1e-6)
        assert tuple(np.sum([tables.devices[c.option] for c in found.stages], axis=0)) == total
        assert [c.first for c in found.stages] == [0, *(c.last + 1 for c in found.stages[:-1])]
        assert found.stages[-1].last == tables.layers - 1
        near = partition_layers(tables, total, stages, tolerance=0.2)
        assert near is not None and (1 - 0.2) * near.cost <= expected <= near.cost * (1 + 1e-6)
        loose += near.cost > expected
    assert feasible > 300 and several_groups > 60 and loose > 5


def test_units_of_devices_do_not_change_the_answer() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        tables = random_tables(rng)
        total = tuple(3 for _ in tables.devices[0])
        larger = StageTables(tables.latency, tables.bottleneck, tuple(tuple(8 * n for n in d) for d in tables.devices))
        found, again = (
            partition_layers(tables, total, [1, 2, 3, 4]),
            partition_layers(larger, tuple(8 * n for n in total), [1, 2, 3, 4]),
        )
        assert found == again
        assert partition_layers(larger, tuple(8 * n + 1 for n in total), [1, 2, 3, 4]) is None


def test_memory_moves_the_cut_away_from_stages_with_many_microbatches_in_flight() -> None:
    """Two layers in one stage fit only with one microbatch in flight: the long stage must come last."""
    latency = np.ones((2, 3, 3, 1))
    latency[1, 0, 1] = np.inf
    tables = StageTables(latency, 3 * latency, ((1,),))
    found = partition_layers(tables, (2,), [2])
    assert found is not None and [(c.first, c.last) for c in found.stages] == [(0, 0), (1, 2)]
    latency[0, 1, 2] = np.inf
    assert partition_layers(StageTables(latency, 3 * latency, ((1,),)), (2,), [2]) is None


def alpa_submeshes(hosts: int, devices: int) -> list[tuple[int, int]]:
    """The original's submeshes ("all"): powers of two within a host, then whole hosts."""
    return [(1, 2**k) for k in range(devices.bit_length())] + [(n, devices) for n in range(2, hosts + 1)]


def cost_by_the_recurrence(
    total: int, microbatches: int, sizes: list[int], cost: np.ndarray, follow: np.ndarray
) -> float:
    """Equations 2 to 4 of the paper as they stand: caps upwards, F(s, k, d) over all (end, submesh, configuration)."""
    layers = len(cost)
    best = np.inf
    for cap in np.unique(cost[np.isfinite(cost)]):
        if cap * microbatches >= best:
            break
        f = np.full((layers + 1, layers + 1, total + 1), np.inf)
        f[0, layers, 0] = 0
        for s, i, d in product(range(1, layers + 1), range(layers), range(1, total + 1)):
            for m, n in enumerate(sizes):
                if n <= d:
                    allowed = (cost[i, i:, m] <= cap) & (s - 1 <= follow[i, i:, m])
                    rest = f[s - 1, i + 1 :, d - n][:, None]
                    f[s, i, d] = min(f[s, i, d], np.where(allowed, cost[i, i:, m] + rest, np.inf).min())
        best = min(best, f[1:, 0, total].min() + (microbatches - 1) * cap)
    return float(best)


def alpa_table(rng: np.random.RandomState, layers: int, sizes: list[int], total: int) -> tuple[np.ndarray, np.ndarray]:
    """A table as the original's test makes them: layers of random cost, random efficiency, memory by share."""
    speed, memory, configs = rng.rand() * 4 - 2, rng.rand() * 4, rng.randint(1, 5)
    cost = np.full((layers, layers, len(sizes), configs), np.inf)
    follow = np.full(cost.shape, -1.0)
    seconds, held = rng.rand(layers), rng.rand(layers)
    for i in range(layers):
        for k in range(i, layers):
            for m, n in enumerate(sizes):
                for c in range(configs):
                    factor = rng.rand() + 1
                    cost[i, k, m, c] = seconds[i : k + 1].sum() * factor * n**speed
                    share = held[i : k + 1].sum() / held.sum()
                    follow[i, k, m, c] = memory * layers * n / total / share / factor
    return cost, follow


@pytest.mark.parametrize("microbatches", [1, 16])
@pytest.mark.parametrize(("hosts", "devices"), [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_training_dp_is_the_papers(hosts: int, devices: int, microbatches: int) -> None:
    rng = np.random.RandomState(hosts * 8 + devices)
    sizes = [a * b for a, b in alpa_submeshes(hosts, devices)]
    for layers in (4, 8) if devices == 4 and hosts == 1 else (4,):
        cost, follow = alpa_table(rng, layers, sizes, hosts * devices)
        found, stages = training_dp(hosts * devices, microbatches, alpa_submeshes(hosts, devices), cost, follow)
        assert found == pytest.approx(cost_by_the_recurrence(hosts * devices, microbatches, sizes, cost, follow))
        chosen = [cost[s.first, s.last, s.submesh, s.config] for s in stages]
        if stages:
            assert found == pytest.approx(sum(chosen) + (microbatches - 1) * max(chosen))
            assert sum(sizes[s.submesh] for s in stages) == hosts * devices


def test_training_dp_refuses_tables_of_other_shapes() -> None:
    with pytest.raises(ValueError, match="2 submeshes"):
        training_dp(2, 1, [1, 2], np.zeros((2, 2, 1, 1)), np.zeros((2, 2, 1, 1)))


def test_stage_dp_command_prints_cost_and_partition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = np.array([[1.0, 3.0], [np.inf, 1.0]])[:, :, None, None]
    table = {"cost": cost, "max_n_succ_stages": np.ones_like(cost), "submeshes": [[1, 1]], "devices": 2}
    np.savez(tmp_path / "t.npz", microbatches=4, **table)
    assert stage_dp.main([str(tmp_path / "t.npz")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cost"] == 5.0 and [s["layers"] for s in answer["stages"]] == [[0, 0], [1, 1]]
    np.savez(tmp_path / "none.npz", microbatches=4, **table | {"devices": 3})
    with pytest.raises(CompileError, match="uses all devices"):
        stage_dp.main([str(tmp_path / "none.npz")])
    (tmp_path / "bad.npz").write_text("no table")
    with pytest.raises(CompileError, match=r"not an \.npz table"):
        stage_dp.main([str(tmp_path / "bad.npz")])
