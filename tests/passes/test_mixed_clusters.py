"""Clusters of different nodes: their files, which stage goes to which group, and plans that run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

import jax
import numpy as np
import pytest
from jaxlib.mlir import ir
from on_devices import assert_close, run_all
from staged_steps import one_device
from test_stages import chain_of

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import read_plan, stage_entries
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import Cluster, module_cluster, parse_cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.inter.in_flight import InFlight
from alpa_mlir.passes.inter.layout import Layout
from alpa_mlir.passes.inter.pricing import RangePrices
from alpa_mlir.passes.inter.search import StageSearch
from alpa_mlir.passes.intra.stage_cost import StageCost
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime.execute import run_plan

MIXED = """
name = "mixed"
memory_bandwidth = 1e9
efficiency = 0.5
[link]
device = { bandwidth = 4e9, start = 1e-6 }
node = { bandwidth = 1e9, start = 2e-6 }
[[groups]]
nodes = 1
devices_per_node = 2
memory = "1MB"
flops = { f32 = 1e9 }
[[groups]]
name = "big"
nodes = 2
devices_per_node = 4
memory = "8MB"
memory_bandwidth = 2e9
flops = { f32 = 8e9 }
link = { device = { bandwidth = 8e9 } }
"""


CONFIG = replace(MODELS["gpt"].presets["tiny"], layers=4, optimizer="sgd")


def gpt() -> ir.Module:
    return parse_module(print_module(lower(MODELS["gpt"].build(CONFIG))), make_context())


def test_groups_are_numbered_on_and_inherit() -> None:
    cluster = parse_cluster(MIXED, "mixed.toml")
    small, big = cluster.parts
    assert (small.name, big.name) == ("mixed/0", "big")
    assert (small.first, big.first, cluster.device_count) == (0, 2, 10)
    assert (small.memory_bandwidth, big.memory_bandwidth, cluster.memory) == (1e9, 2e9, 10**6)
    assert (small.device_link.bandwidth, big.device_link.bandwidth, big.node_link.bandwidth) == (4e9, 8e9, 1e9)
    assert [cluster.part_of(d).name for d in (0, 1, 2, 9)] == ["mixed/0", "mixed/0", "big", "big"]
    assert [cluster.node_of(d) for d in (0, 1, 2, 5, 6)] == [(0, 0), (0, 0), (2, 0), (2, 0), (2, 1)]
    module = parse_module("module {}", make_context())
    module.operation.attributes[alpa.CLUSTER] = cluster.attribute(module.context)
    assert module_cluster(module) == cluster
    assert {p.memory for p in cluster.with_sizes(memory=5000).parts} == {5000}


def test_links_are_those_of_the_group() -> None:
    cluster = parse_cluster(MIXED, "mixed.toml")
    pair = Mesh.from_shape("m", (2,))
    small, big, across = (mesh_links(pair, cluster, first) for first in (0, 2, 5))
    assert [k.axes[0].bandwidth for k in (small, big, across)] == [4e9, 8e9, 1e9]
    assert small.outside.bandwidth == 0.5e9  # the other group is not in its node


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        (
            MIXED.replace("efficiency = 0.5", "efficiency = 7"),
            "number from 1e-30 to 1 as efficiency, got 7",
            "mixed.toml:4:1",
        ),
        (MIXED.replace("efficiency = 0.5", ""), "a cluster needs a positive number efficiency", "mixed.toml:1:1"),
        (MIXED + "[axes]\nalpha = [1.0]\nbeta = [1.0]\n", "cannot have links for mesh axes", "mixed.toml:21:2"),
        ('name = "x"\ngroups = [1]\n', "groups must be tables", "mixed.toml:2:1"),
        (MIXED.replace("nodes = 2", "nodes = 0"), "whole number from 1 to 1048576 as nodes", "mixed.toml:9:1"),
    ],
)
def test_errors_in_files(text: str, message: str, at: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_cluster(text, "mixed.toml")
    assert message in caught.value.message and caught.value.location == at


def test_what_needs_equal_devices_is_refused() -> None:
    cluster = parse_cluster(MIXED, "mixed.toml")
    with pytest.raises(CompileError, match="consists of groups"):
        cluster.with_sizes(nodes=3)
    with pytest.raises(CompileError, match="makes one stage of all devices, but cluster mixed has 2 groups"):
        plan(gpt(), PlanOptions(cluster, mesh="10", microbatches=1))
    with pytest.raises(CompileError, match="interleaved pipeline needs equal devices"):
        plan(gpt(), PlanOptions(cluster, schedule="interleaved", microbatches=2))


@dataclass
class Tables:
    """Stands where the intra-operator program stands: seconds of layer k on option m, bytes of layer k."""

    search: StageSearch
    seconds: np.ndarray
    held: np.ndarray

    def option(self, mesh: Mesh, first: int) -> int:
        offered = zip(self.search.shapes, self.search.groups, strict=True)
        return [(shape, group.first) for shape, group in offered].index((mesh.shape, first))

    def cost(self, layers: tuple[int, int], mesh: Mesh, in_flight: int, memory: float, first: int = 0) -> StageCost:
        span, m = slice(layers[0], layers[1] + 1), self.option(mesh, first)
        need = float(in_flight * self.held[span].sum() / mesh.device_count)
        if need > self.search.limit(m):
            return StageCost(np.inf, np.inf, need, False)
        return StageCost(float(self.seconds[span, m].sum()), 0.0, need, True)

    def alive(self, layers: tuple[int, int], mesh: Mesh, in_flight: int, first: int) -> list[Remark]:
        return []

    def prices(self, mesh: Mesh, in_flight: int, share: float, cluster: Cluster) -> Iterator[RangePrices]:
        layers = len(self.held)
        seconds = np.zeros((6, layers, layers))
        seconds[0] = Layout(layers).sums(self.seconds[:, self.option(mesh, cluster.first)])
        nothing, kept = np.zeros((layers, layers)), Layout(layers).sums(self.held) / mesh.device_count
        yield RangePrices(seconds, nothing, kept, nothing, nothing, nothing, kept, kept, kept, kept, nothing)


def by_enumeration(search: StageSearch, tables: Tables, stages: list[int]) -> float:
    """The cheapest partition that uses all devices of at least one group and none of the others."""
    best, options = np.inf, range(len(search.shapes))
    whole = [part.device_count for part in search.cluster.parts]
    for count in stages:
        for inner in combinations(range(1, search.layers), count - 1):
            spans = list(zip((0, *inner), (*inner, search.layers), strict=True))
            for chosen in product(options, repeat=count):
                used = [0] * len(whole)
                for m in chosen:
                    used[search.cluster.parts.index(search.groups[m])] += search.mesh(m).device_count
                if any(u not in (0, w) for u, w in zip(used, whole, strict=True)):
                    continue
                costs = [
                    tables.cost((a, b - 1), search.mesh(m), search.in_flight.at(count - n), 0, search.groups[m].first)
                    for n, ((a, b), m) in enumerate(zip(spans, chosen, strict=True))
                ]
                times = [c.microbatch_seconds for c in costs]
                best = min(best, sum(times) + (search.in_flight.microbatches - 1) * max(times))
    return float(best)


def test_the_search_equals_enumeration() -> None:
    rng = np.random.default_rng(3)
    module, idle, infeasible = chain_of(3), 0, 0
    cluster = parse_cluster(MIXED, "mixed.toml")
    groups = [replace(part, nodes=1, devices_per_node=2) for part in cluster.parts]
    for _ in range(40):
        memory = rng.choice([2, 4, 1000], 2)
        groups = [replace(g, memory=int(m), first=2 * k) for k, (g, m) in enumerate(zip(groups, memory, strict=True))]
        search = StageSearch(module, replace(cluster, groups=tuple(groups)), InFlight("1f1b", 4))
        slower = np.array([rng.choice([1.0, 1.0, 20.0]) if g.first else 1.0 for g in search.groups])
        tables = Tables(search, rng.uniform(0.5, 3, (3, len(search.shapes))) * slower, rng.uniform(0.2, 3, 3))
        search.profiler = search.pricer = tables  # type: ignore[assignment]
        expected = by_enumeration(search, tables, [1, 2, 3])
        if expected == np.inf:
            infeasible += 1
            with pytest.raises(CompileError, match="no plan fits"):
                search.run([1, 2, 3])
            continue
        found = search.run([1, 2, 3])
        assert found.cost == pytest.approx(expected, rel=1e-3)
        devices = search.place(found)
        assert devices is not None
        for choice, held in zip(found.stages, devices, strict=True):
            assert {search.cluster.part_of(d) for d in held} == {search.groups[choice.option]}
        idle += sum(len(d) for d in devices) < 4
    assert 0 < idle < 40 and 0 < infeasible < 40


def test_a_plan_for_a_mixed_cluster_runs_and_equals_one_device() -> None:
    module = gpt()
    text = (
        MIXED.replace("f32 = 8e9", "f32 = 2e9")
        .replace("1MB", "1GB")
        .replace("8MB", "8GB")
        .replace("nodes = 2", "nodes = 1")
    )
    cluster = parse_cluster(text.replace("devices_per_node = 4", "devices_per_node = 2"), "mixed.toml")
    options = PlanOptions(cluster, stages=2, microbatches=2, layers=4, schedule="1f1b", remat="none")
    planned = plan(module, options)
    stages = list(read_plan(planned).stages.values())
    parts = [cluster.part_of(s.devices[0]).name for s in stages]
    assert sorted(parts) == ["big", "mixed/0"] and all(len(s.devices) == 2 for s in stages)
    held = [len(range(*ir.DenseI64ArrayAttr(e["layers"]))) for e in stage_entries(planned)]
    assert held[parts.index("big")] > held[parts.index("mixed/0")]  # twice as fast
    inputs = [np.asarray(v) for v in jax.tree.leaves(MODELS["gpt"].initial_values(CONFIG, 0))]
    assert_close(run_plan(planned, inputs), run_all([one_device(module)], [inputs])[0], "gpt")
