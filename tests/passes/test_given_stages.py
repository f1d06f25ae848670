"""What the planner chooses where a user gives stages and meshes: numbers of microbatches, schedules, recomputation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.manual import ManualStage, write_stages
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.tools.plan_summary import PlanSummary, summarize


@pytest.fixture(scope="module")
def mlp() -> str:
    model = MODELS["mlp"]
    return print_module(lower(model.build(replace(model.presets["tiny"], layers=8, hidden=256, batch=1024))))


def planned(program: str, memory: float, **options: object) -> PlanSummary:
    """Four stages of a device each."""
    module = parse_module(program, make_context())
    write_stages(module, tuple(ManualStage((1,), (d,)) for d in range(4)))
    cluster = load_cluster("p3.16xlarge").with_sizes(1, 4, int(memory))
    return summarize(plan(module, PlanOptions(cluster, layers=4, schedule="1f1b", **options)))


def test_layers_run_again_where_a_number_of_microbatches_does_not_fit_otherwise(mlp: str) -> None:
    """8 microbatches need 4.9 MB of a device, 3.8 MB where layers run again."""
    assert not planned(mlp, 6e6, microbatches=8).remat
    tight = planned(mlp, 4e6, microbatches=8)
    assert (tight.microbatches, len(tight.remat)) == (8, 4)
