"""alpa-stages: submeshes, the lazy search against full tables, homes of arguments, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise, product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster
from alpa_mlir.passes.inter.in_flight import InFlight
from alpa_mlir.passes.inter.layout import Layout
from alpa_mlir.passes.inter.meshes import chain_sizes, node_counts, node_sizes, pack, submesh_shapes
from alpa_mlir.passes.inter.pricing import RangePrices
from alpa_mlir.passes.inter.search import StageSearch
from alpa_mlir.passes.inter.tables import GAP, Tables
from alpa_mlir.passes.intra.stage_cost import StageCost
from alpa_mlir.passes.stages import Stages

TWO_LAYERS = Path(__file__).parents[2] / "lit_tests" / "stages" / "Inputs" / "two_layers.mlir"


def two_layers() -> ir.Module:
    return parse_module(TWO_LAYERS.read_bytes(), make_context())


def chain_of(layers: int) -> ir.Module:
    """A level-3 module: a forward chain of one product per layer."""
    kind = "tensor<4x8xf32>"
    weights = ", ".join(f'%w{k}: tensor<8x8xf32> {{alpa.binding = "arg:{k}"}}' for k in range(layers))
    ops = "\n".join(
        f"    %y{k + 1} = stablehlo.dot_general %y{k}, %w{k}, contracting_dims = [1] x [0] "
        f'{{alpa.layer = {k} : i64, alpa.phase = "forward"}} : ({kind}, tensor<8x8xf32>) -> {kind}'
        for k in range(layers)
    )
    stack = '{alpa.binding = "stack:0", alpa.dim = 0 : i64}'
    text = f"""module attributes {{alpa.level = "layered", alpa.microbatches = 4 : i64}} {{
  func.func private @microbatch({weights}, %y0: {kind} {{alpa.binding = "batch:{layers}"}}) -> ({kind} {stack}) {{
{ops}
    return %y{layers} : {kind}
  }}
  func.func private @update(%y: tensor<16x8xf32> {stack}) -> (tensor<16x8xf32> {{alpa.binding = "out:0"}}) {{
    return %y : tensor<16x8xf32>
  }}
  func.func public @main() {{
    return
  }}
}}"""
    return parse_module(text, make_context())


@dataclass
class TableProfiler:
    """Stands where the intra-operator program stands: stage costs from random tables, memory linear in q.

    `inner[k, n]` seconds of layer k on n devices, `border` seconds per crossed border, `held[k]` bytes per microbatch.
    """

    inner: np.ndarray
    once: np.ndarray
    held: np.ndarray
    limit: float
    asked: int = 0
    shapes: dict[tuple[int, ...], int] = field(default_factory=dict)

    def cost(
        self, layers: tuple[int, int], mesh: Mesh, in_flight: int, memory: float, first_device: int = 0
    ) -> StageCost:
        self.asked += 1
        first, last = layers
        column = self.shapes[mesh.shape]
        need = float(in_flight * self.held[first : last + 1].sum() / mesh.device_count)
        if need > self.limit:
            return StageCost(np.inf, np.inf, need, False)
        span = slice(first, last + 1)
        return StageCost(float(self.inner[span, column].sum()), float(self.once[span, column].sum()), need, True)

    def alive(self, layers: tuple[int, int], mesh: Mesh, in_flight: int, first_device: int) -> list[Remark]:
        return []


def cheapest_by_enumeration(search: StageSearch, costs: TableProfiler, stages: list[int]) -> float:
    best = np.inf
    meshes = [search.mesh(m) for m in range(len(search.shapes))]
    for count in stages:
        for inner in combinations(range(1, search.layers), count - 1):
            starts, ends = (0, *inner), (*inner, search.layers)
            for chosen in product(meshes, repeat=count):
                if sum(m.device_count for m in chosen) != search.cluster.device_count:
                    continue
                parts = [
                    costs.cost((a, b - 1), m, search.in_flight.at(count - n), 0.0)
                    for n, (a, b, m) in enumerate(zip(starts, ends, chosen, strict=True))
                ]
                if all(p.feasible for p in parts):
                    waits = search.in_flight.microbatches - 1
                    latency = sum(p.microbatch_seconds for p in parts)
                    best = min(best, latency + max(waits * p.microbatch_seconds + p.step_seconds for p in parts))
    return best


@dataclass
class RoughPricer:
    """Stands where `Pricer` stands: seconds of the exact table up to a part `error`, bytes exact."""

    table: TableProfiler
    error: float
    rng: np.random.Generator

    def prices(self, mesh: Mesh, in_flight: int, share: float, cluster: Cluster) -> Iterator[RangePrices]:
        column, layers = self.table.shapes[mesh.shape], len(self.table.held)
        layout = Layout(layers)
        seconds = np.zeros((6, layers, layers))
        seconds[0], seconds[5] = (layout.sums(t[:, column]) for t in (self.table.inner, self.table.once))
        seconds *= 1 + self.error * self.rng.uniform(-1, 1, (layers, layers))
        nothing = np.zeros((layers, layers))
        kept = layout.sums(self.table.held) / mesh.device_count
        yield RangePrices(seconds, nothing, kept, nothing, nothing, nothing, kept, kept, kept, kept, nothing)


@pytest.mark.parametrize("error", [0.0, 0.05])
def test_search_finds_the_optimum_up_to_the_error_of_prices(error: float) -> None:
    rng = np.random.default_rng(0)
    module = chain_of(4)
    answered = infeasible = 0
    for trial in range(40):
        cluster = load_cluster("cpu", devices_per_node=4)
        search = StageSearch(module, cluster, InFlight("1f1b" if trial % 2 else "gpipe", 4))
        shape = (4, len(search.shapes))
        limit = float(rng.choice([3.0, 6.0, 1e9]))
        table = TableProfiler(rng.uniform(0.5, 3, shape), rng.uniform(0, 2, shape), rng.uniform(0.2, 2, 4), limit)
        table.shapes = {s: m for m, s in enumerate(search.shapes)}
        search.profiler, search.memory, search.pricer = table, limit, RoughPricer(table, error, rng)
        stages = [1, 2, 3, 4]
        expected = cheapest_by_enumeration(search, table, stages)
        if not np.isfinite(expected):
            infeasible += 1
            with pytest.raises(CompileError, match="no plan fits in"):
                search.run(stages)
            continue
        answered += 1
        found = search.run(stages)
        assert expected <= found.cost <= expected * (1 + 2 * GAP) / (1 - error)
        costs = [search.cost_of(c) for c in found.stages]
        waits = search.in_flight.microbatches - 1
        bottleneck = max(waits * c.microbatch_seconds + c.step_seconds for c in costs)
        assert found.cost == pytest.approx(sum(c.microbatch_seconds for c in costs) + bottleneck)
    assert answered > 20 and infeasible > 0


@pytest.mark.parametrize("need, stages", [(0.99, 2), (1.01, 1)])
def test_a_rough_search_keeps_within_memory_where_it_can(need: float, stages: int) -> None:
    """Two stages are quicker, the first needs `need` of the memory for two microbatches; one stage needs half of it."""
    assert len(rough_search([need / 2, need / 2], {(1,): 0.1, (2,): 1.0}).run([1, 2]).stages) == stages


def test_a_rough_search_allows_for_its_error_where_nothing_else_is_left() -> None:
    assert len(rough_search([2.02], {(1,): 1.0, (2,): 1.0}).run([1]).stages) == 1
    with pytest.raises(CompileError, match="no plan fits in"):
        rough_search([2.06], {(1,): 1.0, (2,): 1.0}).run([1])


@dataclass
class TighterPricer(RoughPricer):
    """One labelling after another, each slower than the one before and smaller."""

    given: int = 0

    def prices(self, mesh: Mesh, in_flight: int, share: float, cluster: Cluster) -> Iterator[RangePrices]:
        free = next(super().prices(mesh, in_flight, share, cluster))
        for slower, smaller in ((1.0, 1.0), (1.2, 0.6), (1.5, 0.4), (2.0, 0.2)):
            self.given += 1
            yield replace(free, seconds=slower * free.seconds, kept=smaller * free.kept, least_kept=0.2 * free.kept)


@pytest.mark.parametrize("rough", [True, False])
def test_labellings_that_cannot_be_of_use_are_not_asked_for(rough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the search over all that are smaller, at the prices themselves."""
    given = {True: 0, False: 0}
    for trial in range(25):
        costs = {}
        for pruned in (False, True):
            rng = np.random.default_rng(trial)
            search = StageSearch(chain_of(4), load_cluster("cpu", devices_per_node=8), InFlight("1f1b", 4), rough=rough)
            shape = (4, len(search.shapes))
            table = TableProfiler(rng.uniform(0.5, 3, shape), rng.uniform(0, 2, shape), rng.uniform(0.2, 2, 4), 1.5)
            table.inner /= np.array([np.prod(s) for s in search.shapes])[None, :]
            table.shapes = {s: m for m, s in enumerate(search.shapes)}
            pricer = TighterPricer(table, 0.0, rng)
            search.profiler, search.memory, search.pricer = table, 1.5, pricer
            with monkeypatch.context() as patch:
                if not pruned:
                    patch.setattr(Tables, "_needing_less", lambda _, options, *rest: list(options))
                found = Tables(search, [1, 2, 3, 4]).partition([1, 2, 3, 4])
            costs[pruned] = found.cost if found is not None else np.inf
            given[pruned] += pricer.given
        assert costs[True] <= costs[False] * (1 + 2 * GAP), trial
    assert given[True] < 0.7 * given[False]


def test_three_axes_are_searched_where_asked_for() -> None:
    found = {}
    for axes in (2, 3):
        cluster = load_cluster("cpu", devices_per_node=8)
        search = StageSearch(chain_of(3), cluster, InFlight("1f1b", 2), axes=axes)
        inner = np.array([[1.0 / len(shape) for shape in search.shapes]] * 3)
        shapes = {shape: m for m, shape in enumerate(search.shapes)}
        table = TableProfiler(inner, 0 * inner, np.ones(3), 9.0, 0, shapes)
        search.profiler, search.pricer = table, RoughPricer(table, 0.0, np.random.default_rng(0))
        found[axes] = [search.shapes[c.option] for c in search.run([1]).stages]
    assert found[3] == [(2, 2, 2)] and len(found[2][0]) == 2


def rough_search(held: list[float], seconds: dict[tuple[int, ...], float]) -> StageSearch:
    """On two devices with one byte each: the layers hold `held`, each takes `seconds` by mesh."""
    cluster = load_cluster("cpu", devices_per_node=2)
    search = StageSearch(chain_of(len(held)), cluster, InFlight("1f1b", 4), memory=1.0, rough=True)
    inner = np.array([[seconds[shape] for shape in search.shapes]] * len(held))
    shapes = {shape: m for m, shape in enumerate(search.shapes)}
    table = TableProfiler(inner, 0 * inner, np.array(held), 1.0, 0, shapes)
    search.profiler, search.pricer = table, RoughPricer(table, 0.0, np.random.default_rng(0))
    return search


@dataclass
class MovingPricer(RoughPricer):
    """Every stage but the first waits 0.9 s for what arrives."""

    def prices(self, mesh: Mesh, in_flight: int, share: float, cluster: Cluster) -> Iterator[RangePrices]:
        for prices in super().prices(mesh, in_flight, share, cluster):
            prices.seconds[3, 1:] = 0.9
            yield prices


@pytest.mark.parametrize(("schedule", "seconds"), [("1f1b", 16 * 1.4), ("eager-1f1b", 2 + 0.9 + 15 * 1.0)])
def test_eager_stages_do_not_wait_for_what_arrives(schedule: str, seconds: float) -> None:
    """Two layers of 1 s on a device each, or of 0.7 s on both; 16 microbatches."""
    search = rough_search([0.01, 0.01], {(1,): 1.0, (2,): 0.7})
    search.in_flight = InFlight(schedule, 16)
    search.pricer = MovingPricer(search.profiler, 0.0, np.random.default_rng(0))
    assert search.run([1, 2]).cost == pytest.approx(seconds)
    assert search.eager == pytest.approx(2 + 0.9 + 15 * 1.0)


def test_only_stages_of_partitions_found_are_priced_exactly() -> None:
    search = StageSearch(chain_of(6), load_cluster("cpu", devices_per_node=4), InFlight("1f1b", 4))
    shape = (6, len(search.shapes))
    inner = np.ones(shape) / np.array([np.prod(s) for s in search.shapes])[None, :]
    table = TableProfiler(inner, np.zeros(shape), np.ones(6), 1e9, 0, {s: m for m, s in enumerate(search.shapes)})
    search.profiler, search.pricer = table, RoughPricer(table, 0.0, np.random.default_rng(0))
    search.run([1, 2, 3, 4])
    assert table.asked <= 4


def test_many_stages_leave_few_devices_for_each() -> None:
    cluster = load_cluster("p3.16xlarge", nodes=2)
    for fewest, sizes in ((1, {1, 2, 4, 8, 16}), (2, {1, 2, 4, 8}), (10, {1, 2, 4}), (16, {1})):
        search = StageSearch(chain_of(16), cluster, InFlight("1f1b", 4), fewest=fewest)
        assert {prod(shape) for shape in search.shapes} == sizes


def test_submeshes_within_a_node_are_its_divisors() -> None:
    assert node_sizes(8) == [1, 2, 4, 8] and node_sizes(6) == [1, 2, 3, 6]
    for devices in range(1, 33):
        sizes = chain_sizes(devices)
        assert sizes[0] == 1 and sizes[-1] == devices and set(sizes) <= set(node_sizes(devices))
        assert all(b % a == 0 for a, b in pairwise(sizes))


def test_submeshes_beyond_a_node_are_whole_nodes() -> None:
    cluster = load_cluster("p3.16xlarge", nodes=3)
    assert submesh_shapes(cluster, 1) == ((1,), (2,), (4,), (8,), (16,), (24,))
    shapes = submesh_shapes(cluster, 3)
    assert {s for s in shapes if np.prod(s) == 8} == {(8,), (2, 4), (2, 2, 2)}
    assert {(24,), (3, 8), (6, 4), (12, 2), (3, 2, 4)} <= set(shapes)
    assert all(np.prod(s) in (1, 2, 4, 8, 16, 24) for s in shapes)
    assert node_counts(2048)[-1] == 2048 and len(node_counts(2048)) == 11 and 48 in node_counts(96)


def test_submeshes_are_packed_into_nodes() -> None:
    cluster = load_cluster("cpu", nodes=2, devices_per_node=6)
    rng = np.random.default_rng(0)
    packed = 0
    for _ in range(200):
        sizes = [int(n) for n in rng.choice([1, 2, 3, 6, 12], size=int(rng.integers(1, 8)))]
        placed = pack(sizes, cluster)
        if sum(sizes) != 12:
            assert placed is None
            continue
        packed += 1
        assert placed is not None and [len(d) for d in placed] == sizes
        assert sorted(d for devices in placed for d in devices) == list(range(12))
        assert all(len(d) >= 6 or d[0] // 6 == d[-1] // 6 for d in placed)
    assert packed > 5
    assert pack([4, 4, 4, 3, 3, 3, 3, 6, 6], load_cluster("cpu", nodes=3, devices_per_node=12)) is not None
    assert pack([8, 8, 8], load_cluster("cpu", nodes=2, devices_per_node=12)) is None


def test_stages_are_written_and_verify() -> None:
    module = two_layers()
    Stages(cluster="cpu", devices_per_node=4, stages=2).apply(module, [])
    module.operation.verify()
    alpa.verify(module)
    entries = [ir.DictAttr(a) for a in ir.ArrayAttr(module.operation.attributes[alpa.STAGES])]
    devices = [tuple(ir.DenseI64ArrayAttr(e["devices"])) for e in entries]
    assert sorted(d for part in devices for d in part) == [0, 1, 2, 3]
    for entry, held in zip(entries, devices, strict=True):
        assert meshes_of(module)[ir.StringAttr(entry["mesh"]).value].device_count == len(held)
    for name in ("microbatch", "update"):
        function = functions(module)[name]
        operations = list(function.regions[0].blocks[0].operations)[:-1]
        assert all(alpa.get_int(op, alpa.STAGE) == alpa.get_int(op, alpa.LAYER) for op in operations)
        assert all(alpa.STAGE in entry for entry in argument_attributes(function))


def test_one_home_in_all_functions() -> None:
    module = two_layers()
    Stages(cluster="cpu", devices_per_node=2, stages=2).apply(module, [])
    homes: dict[str, set[str]] = {}
    for function in (functions(module)["microbatch"], functions(module)["update"]):
        for entry in argument_attributes(function):
            homes.setdefault(str(entry[alpa.BINDING]), set()).add(str(entry[alpa.STAGE]))
    assert all(len(found) == 1 for found in homes.values())
    assert homes['"arg:1"'] == {"1 : i64"} and homes['"batch:2"'] == {"0 : i64"}


def test_same_bytes_twice() -> None:
    texts = []
    for _ in range(2):
        module = two_layers()
        Stages(cluster="cpu").apply(module, [])
        texts.append(print_module(module))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 3}, "3 stages cannot be made of 2 layers"),
        ({"stages": 2, "devices_per_node": 1}, "2 stages need at least 2 devices, there are 1"),
        ({"mesh": "2x3"}, "the mesh 2x3 has 6 devices, but the cluster has 4"),
        ({"mesh": "2by2"}, "a mesh is written as 2x4"),
        ({"mesh": "4", "stages": 2}, "the mesh 4 makes one stage, but stages=2"),
        ({"memory": "100B"}, r"no plan fits in 0.0001 MB .*what a step always holds .* needs 0\.\d+ MB on each"),
        ({"memory": "390B"}, "no plan fits in 0.00039 MB per device.*the smallest found needs"),
        ({"schedule": "later"}, "schedule must be one of 1f1b, .*, got 'later'"),
        ({"cluster": "moon"}, "unknown cluster 'moon'"),
        ({"cluster": ""}, "no cluster: name one"),
        ({"stages": -1}, "must not be negative"),
    ],
)
def test_refusals(options: dict[str, str | int], message: str) -> None:
    settings = {"cluster": "cpu"} | options
    with pytest.raises(CompileError, match=message):
        Stages(**settings).apply(two_layers(), [])  # type: ignore[arg-type]
