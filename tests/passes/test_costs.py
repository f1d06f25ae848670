"""The cost rules C1 to C14 and M1 to M6, each on a case small enough to work out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.factors import OpFactors
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.cluster import Link, _from_table, _plain, load_cluster, parse_cluster
from alpa_mlir.passes.costs.cluster_table import parse_bytes
from alpa_mlir.passes.costs.communication import ReshardTable, reshard_cost, transfer_cost
from alpa_mlir.passes.costs.compute import compute_kind, compute_seconds, product_flops
from alpa_mlir.passes.costs.links import AxisLink, MeshLinks, mesh_links
from alpa_mlir.passes.costs.memory import Lifetime, Moments, live_rows, undominated
from alpa_mlir.passes.costs.presets import preset_names, preset_text

MESH = Mesh.from_shape("m", (2, 4))
JOINT = ((("x", "y"), AxisLink(1.0, 10.0)),)
LINKS = MeshLinks(MESH, (AxisLink(1.0, 1.0), AxisLink(2.0, 10.0)), AxisLink(1.0, 10.0), 4.0, JOINT)
BYTES = 800.0


def seconds(source: Sharding, target: Sharding) -> float:
    return reshard_cost(source, target, LINKS).at(BYTES)


def sharding(*dims: str, partial: str = "") -> Sharding:
    return Sharding(tuple(tuple(d) for d in dims), tuple(partial))


def test_c2_all_reduce() -> None:
    assert seconds(sharding("", "", partial="x"), sharding("", "")) == pytest.approx(1 + 2 * 1 / 2 * 800)
    assert seconds(sharding("y", "", partial="x"), sharding("y", "")) == pytest.approx(1 + 2 * 1 / 2 * 200)


def test_c1_several_axes_are_one_ring() -> None:
    assert seconds(sharding("", "", partial="xy"), sharding("", "")) == pytest.approx(10 + 2 * 7 / 8 * 800)


def test_c1_a_mesh_of_two_axes_does_all_that_one_axis_does_as_quickly() -> None:
    """Every reshard on 8 devices in a row costs the same where they are arranged as 2x4, both axes used as one."""
    cluster = load_cluster("p3.16xlarge", nodes=4)
    for count, shape in ((8, (2, 4)), (32, (4, 8))):
        row, grid = (mesh_links(Mesh.from_shape("m", s), cluster) for s in ((count,), shape))
        values = [("", "", "x"), ("x", "", ""), ("", "x", ""), ("", "", "")]
        for source, target in product(values, repeat=2):
            pair = [sharding(*dims, partial=partial) for *dims, partial in (source, target)]
            both = [sharding(*(d and "xy" for d in dims), partial=p and "xy") for *dims, p in (source, target)]
            alone, joint = reshard_cost(*pair, row), reshard_cost(*both, grid)
            assert (joint.seconds, joint.per_byte) == pytest.approx((alone.seconds, alone.per_byte)), pair


def test_c3_reduce_scatter() -> None:
    assert seconds(sharding("", "", partial="y"), sharding("y", "")) == pytest.approx(10 + 3 / 4 * 800 * 0.5)


def test_c4_all_gather() -> None:
    assert seconds(sharding("x", "y"), sharding("x", "")) == pytest.approx(10 + 3 / 4 * 400 * 0.5)


def test_c5_all_to_all() -> None:
    assert seconds(sharding("y", ""), sharding("", "y")) == pytest.approx(10 + 3 / 4 * 200 * 0.5)


def test_c17_devices_without_a_switch_have_some_links_to_each_other() -> None:
    """Six devices, each joined to three others by links of 10 bytes/s, with 2 bytes/s to the remaining two."""
    link = Link(30.0, 0.0, 0.0, neighbours=3, far=2.0)
    cluster = replace(load_cluster("p3.16xlarge"), device_link=link, devices_per_node=6)
    split, whole, turned = sharding("x", ""), sharding("", ""), sharding("", "x")
    for n, shared, exchanged in ((2, 10, 10), (3, 20, 20), (4, 30, 30), (6, 30, 0)):
        links = mesh_links(Mesh.from_shape("m", (n,)), cluster)
        gathered = reshard_cost(split, whole, links)
        assert gathered.at(600.0) == pytest.approx((n - 1) / n * 600 / shared)
        seconds = (n - 1) / n * 600 / n / exchanged if exchanged else 2 * 600 / 36 / 2
        assert reshard_cost(split, turned, links).at(600.0) == pytest.approx(seconds)
        assert links.outside.bandwidth == 10


def test_c5_all_to_all_where_only_neighbours_are_joined() -> None:
    for n, hops in ((2, 1 / 2), (3, 2 / 3), (4, 4 / 4), (8, 16 / 8)):
        links = mesh_links(Mesh.from_shape("m", (n,)), replace(load_cluster("unit"), axes=(Link(0.5, 3.0, 0.0),)))
        moved = reshard_cost(sharding("x", ""), sharding("", "x"), links).at(BYTES)
        assert moved == pytest.approx(3 + hops * BYTES / n / 0.5)


def test_c6_slice() -> None:
    assert seconds(sharding("", ""), sharding("x", "")) == pytest.approx(0.5 * 400 / 4.0)


def test_c7_a_reshard_is_the_sum_of_its_steps() -> None:
    whole = seconds(sharding("x", ""), sharding("y", ""))
    parts = seconds(sharding("x", ""), sharding("", "")) + seconds(sharding("", ""), sharding("y", ""))
    assert 0 < whole <= parts * (1 + 1e-12)


def test_c7_table_agrees_with_single_prices() -> None:
    table = ReshardTable(LINKS)
    several = [sharding("", ""), sharding("x", ""), sharding("y", "x"), sharding("", "y"), sharding("x", "")]
    numbers = np.array([table.number(s) for s in several])
    matrix = table.matrix(numbers, numbers[:3], BYTES)
    expected = [[seconds(s, t) for t in several[:3]] for s in several]
    np.testing.assert_allclose(matrix, expected)


def test_c8_transfer() -> None:
    split = transfer_cost(sharding("x", "y"), LINKS).at(BYTES)
    whole = transfer_cost(sharding("", ""), LINKS).at(BYTES)
    assert split == pytest.approx(10 + 100) and whole == pytest.approx(split + 700)
    # What stays split over the slow axis x is gathered over y alone, at twice the bandwidth.
    local = BYTES / MESH.extent(("x",))
    gathered = transfer_cost(sharding("x", ""), LINKS).at(BYTES)
    assert gathered == pytest.approx(split + (local - BYTES / MESH.device_count) / 2)


def test_c9_links_of_the_axes() -> None:
    cluster = load_cluster("p3.16xlarge", nodes=2)
    inside, between = cluster.device_link.bandwidth, cluster.node_link.bandwidth
    bandwidths = lambda *shape: [k.bandwidth for k in mesh_links(Mesh.from_shape("m", shape), cluster).axes]  # noqa: E731
    assert bandwidths(8) == [inside]
    assert bandwidths(2, 8) == [between / 8, inside]
    assert bandwidths(16) == [between]
    assert bandwidths(8, 2) == [between / 2, inside / 4]


def test_c1_longer_rings_share_the_link_with_fewer_others() -> None:
    cluster = load_cluster("p3.16xlarge", nodes=4)
    links = mesh_links(Mesh.from_shape("m", (4, 2, 4)), cluster)
    between = cluster.node_link.bandwidth
    assert links.joint(("x",)).bandwidth == between / 8
    assert links.joint(("x", "y")).bandwidth == between / 4
    assert links.joint(("x", "y", "z")).bandwidth == between
    assert links.joint(("y", "z")).bandwidth == cluster.device_link.bandwidth
    slow = mesh_links(Mesh.from_shape("m", (2, 2)), replace(load_cluster("unit"), axes=(Link(1, 1, 0), Link(2, 9, 0))))
    assert slow.joint(("x", "y")) == AxisLink(1, 9, 0, ring=True)


def test_c10_product() -> None:
    dot = OpFactors((8, 16, 32), ("pass", "pass", "add"), (((0,), (2,)), ((2,), (1,))), (((0,), (1,)),))
    assert compute_kind(dot) == "product"
    assert product_flops(dot, [(8, 32), (32, 16)], (8, 16)) == 2 * 8 * 16 * 32
    cpu = load_cluster("cpu")
    assert compute_seconds(cpu, "f32", 1e9, 16.0, 0.0) == pytest.approx(1e9 / (0.7 * 40e9))
    assert compute_seconds(cpu, "f32", 1.0, 8e9, 8e9) == pytest.approx(2.0)
    assert compute_seconds(cpu, "f32", 0.7 * 40e9, 8e9, 8e9) == pytest.approx(2.0)


def test_c11_and_c12_traffic() -> None:
    cpu = load_cluster("cpu")
    assert compute_seconds(cpu, "f32", 0.0, 6e9, 2e9) == pytest.approx(1.0)
    assert compute_seconds(cpu, "f32", 0.0, 6e9, 2e9, 16 * 8e9) == pytest.approx(2.0)
    half = replace(cpu, memory_efficiency=0.5)
    assert compute_seconds(half, "f32", 0.0, 6e9, 2e9) == pytest.approx(2.0)


def test_m1_to_m3_rows_count_what_is_alive() -> None:
    lifetimes = [
        Lifetime(1, "microbatch", 0, 3, kept=2),
        Lifetime(2, "microbatch", 1, 2),
        Lifetime(3, "microbatch", 3, 4),
        Lifetime(4, "update", 5, 6),
    ]
    rows = live_rows(5, [0], lifetimes).toarray().tolist()
    assert rows == [[1, 3, 1, 0, 0], [1, 3, 0, 1, 0], [1, 0, 0, 0, 1]]


def test_links_of_mesh_axes() -> None:
    text = preset_text("unit").replace("[1.0, 1.0, 1.0]", "[1.0, 2.0]")
    cluster = parse_cluster(text, "unit")
    assert cluster.axes == (Link(1.0, 1.0, 0.0), Link(0.5, 2.0, 0.0))
    assert cluster.device_link == cluster.node_link == Link(0.5, 2.0, 0.0)
    assert [k.start for k in mesh_links(Mesh.from_shape("m", (4,)), cluster).axes] == [1.0]
    with pytest.raises(CompileError, match="gives links for 2 mesh axes, the mesh 2x2x2 has 3"):
        mesh_links(Mesh.from_shape("m", (2, 2, 2)), cluster)


def test_running_sums_and_groups_count_what_the_rows_count() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lifetimes = []
        for v in range(2, 12):
            first = int(random.integers(0, 20))
            kind = "microbatch" if random.integers(2) else "update"
            lifetimes.append(Lifetime(v, kind, first, first + int(random.integers(0, 8)), int(random.integers(0, 3))))
        moments = Moments.of(12, [0, 1], lifetimes)
        rows, held = moments.rows().toarray(), random.integers(1, 100, 12).astype(float)
        assert moments.usage(held) == pytest.approx(rows @ held)
        assert [moments.copies(m).tolist() for m in range(len(rows))] == rows.tolist()
        groups = random.integers(0, 4, 12)
        summed = np.stack([np.bincount(groups, row, minlength=4) for row in rows])
        kept = moments.grouped_rows(groups, 4).toarray()
        assert {tuple(r) for r in kept.tolist()} <= {tuple(r) for r in summed.tolist()}
        assert all((kept >= row).all(axis=1).any() for row in summed)


def test_presets_parse_and_round_trip_through_the_attribute() -> None:
    context = make_context()
    for name in preset_names():
        cluster = parse_cluster(preset_text(name), name)
        assert cluster.name == name
        assert _from_table(_plain(cluster.attribute(context)), str) == cluster
    assert load_cluster("dgx-h100", nodes=4, memory=5).device_count == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not a cluster file"),
        ('name = "a"', "a table flops"),
        (preset_text("cpu").replace("nodes = 1", "nodes = -1"), "whole number from 1 to 1048576 as nodes, got -1"),
        (preset_text("cpu").replace("bandwidth = 2e9", 'bandwidth = "fast"'), "link.device.bandwidth"),
        (preset_text("cpu").replace("f32 = 40e9", ""), "flops.f32"),
        (preset_text("unit").replace("alpha = [1.0, ", "alpha = ["), "axes.alpha has 2 numbers, axes.beta 3"),
        (preset_text("unit").replace("beta = [1.0", "beta = [0"), "a cluster needs a positive number axes.beta, got 0"),
        (preset_text("unit").split("[axes]")[0], "a cluster needs a table link"),
        (preset_text("p3.16xlarge").replace("far = 10e9", ""), "a cluster needs a positive number link.device.far"),
        (preset_text("a100") + "neighbours = 4", "a cluster has no link.node.neighbours"),
        (preset_text("a100").replace("bf16", "bfloat16"), "a cluster has no flops.bfloat16: did you mean flops.bf16?"),
        (preset_text("a100").replace("memory =", "memroy ="), "a cluster has no memroy: did you mean memory?"),
    ],
)
def test_broken_cluster_files_are_located_errors(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message) as e:
        parse_cluster(text, "my.toml")
    assert re.match(r"my\.toml:\d+:\d+: error: ", str(e.value))


def test_amounts_of_memory() -> None:
    assert [parse_bytes(t) for t in ("16GB", "512MiB", "1e9", "3k")] == [16 * 10**9, 512 * 2**20, 10**9, 3000]
    for wrong in ("", "many", "1.2.3GB", "-1GB"):
        with pytest.raises(CompileError, match="not an amount of memory"):
            parse_bytes(wrong)


def test_unknown_presets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(CompileError, match=r"p3\.16xlarge"):
        load_cluster("dgx")


def test_rows_stay_that_no_other_row_dominates() -> None:
    """Against the definition, for rows of more columns than are compared at first, many of them equal."""
    generator = np.random.default_rng(0)
    for columns in (1, 5, 8, 9, 14):
        rows = generator.integers(0, 3, (25, columns)).astype(np.int32)
        rows[:, columns // 2] = 1
        above = [
            (rows >= row).all(axis=1) & ((rows > row).any(axis=1) | (np.arange(25) < r)) for r, row in enumerate(rows)
        ]
        assert undominated(rows).tolist() == [row.tolist() for row, a in zip(rows, above, strict=True) if not a.any()]
