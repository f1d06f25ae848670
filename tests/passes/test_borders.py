"""Stages that share a node exchange on its links what others exchange between nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster
from alpa_mlir.passes.costs.communication import transfer_cost
from alpa_mlir.passes.costs.links import border_links, mesh_links, pair_link
from alpa_mlir.passes.inter.borders import placed
from alpa_mlir.passes.inter.chosen import Stage
from alpa_mlir.passes.intra.stage_parts import StageParts
from alpa_mlir.passes.manual import ManualStage, write_stages
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.tools.plan_summary import summarize

CLUSTER = load_cluster("p3.16xlarge").with_sizes(2, 8)
PARTS = StageParts(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
SIZE = 1e9


def stage(number: int, first: int, devices: int) -> Stage:
    """On so many devices from the first on."""
    mesh = Mesh.from_shape(f"stage_{number}", (devices,))
    return Stage(number, number, mesh, tuple(range(first, first + devices)), parts=PARTS)


def test_the_search_reckons_with_half_within_the_node_and_half_beyond() -> None:
    mesh, split = Mesh.from_shape("stage", (4,)), Sharding((("x",),))
    far, reckoned = (transfer_cost(split, links(mesh, CLUSTER)).at(SIZE) for links in (mesh_links, border_links))
    near = pair_link(CLUSTER.device_link)
    within = near.start + SIZE / 4 / near.bandwidth
    assert reckoned == pytest.approx((far + within) / 2)


@pytest.mark.parametrize(("cluster", "devices"), [(CLUSTER, 8), (CLUSTER.with_sizes(1, 8), 4)])
def test_stages_of_a_node_or_in_one_node_have_one_kind_of_border(cluster: Cluster, devices: int) -> None:
    mesh = Mesh.from_shape("stage", (devices,))
    assert border_links(mesh, cluster) == mesh_links(mesh, cluster)


def test_what_arrives_takes_as_long_as_where_the_stages_lie() -> None:
    """Of four stages of half a node two are in each: the border in the middle is between nodes."""
    found = [s.parts for s in placed([stage(n, 4 * n, 4) for n in range(4)], CLUSTER)]
    times = [(p.receive_forward / PARTS.receive_forward, p.receive_backward / PARTS.receive_backward) for p in found]
    near, far = times[0][1], times[1][1]
    assert near < 0.1 and far == pytest.approx(2.0 - near)
    assert times[1][0] == times[2][1] == times[3][0] == near and times[2][0] == far
    assert all(p.forward == PARTS.forward and p.update == PARTS.update for p in found)


def test_a_step_is_foreseen_with_the_borders_that_it_has() -> None:
    """Four stages on two nodes: reckoned as if all borders were between nodes it would take 1.46 times as long."""
    model = MODELS["gpt"]
    step = lower(model.build(replace(model.presets["tiny"], layers=4, hidden=256, batch=64)))
    module = parse_module(print_module(step), make_context())
    write_stages(module, tuple(ManualStage((2,), (2 * d, 2 * d + 1)) for d in range(4)))
    cluster = load_cluster("p3.16xlarge").with_sizes(2, 4)
    found = plan(module, PlanOptions(cluster, layers=4, schedule="1f1b", microbatches=8, remat="none"))
    foreseen = float(ir.FloatAttr(ir.DictAttr(found.operation.attributes[alpa.CONSIDERED][0])["seconds"]).value)
    assert foreseen == pytest.approx(summarize(found).step_seconds, rel=0.1)
