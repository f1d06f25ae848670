"""What the stage search reckons with is what solving each of its stages exactly gives, within one percent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.tools.plan_summary import summarize


@pytest.mark.parametrize(
    ("name", "sizes", "cluster", "nodes", "stages", "constrain"),
    [
        ("mlp", {"layers": 8, "hidden": 64}, "cpu", 1, 4, ""),
        ("gpt", {}, "p3.16xlarge", 2, 2, ""),  # tied embeddings: used in both stages
        ("moe", {}, "a100", 1, 2, ""),
        ("llama", {"layers": 3}, "dgx-h100", 2, 3, ""),
        ("gpt", {}, "p3.16xlarge", 2, 2, "x=data"),
        ("llama", {"layers": 2}, "cpu", 2, 2, "x=zero3; y=tensor"),
    ],
)
def test_the_search_agrees_with_exact_solving(
    name: str, sizes: dict[str, int], cluster: str, nodes: int, stages: int, constrain: str
) -> None:
    model = MODELS[name]
    module = parse_module(print_module(lower(model.build(replace(model.presets["tiny"], **sizes)))), make_context())
    there = load_cluster(cluster).with_sizes(nodes, 4)
    options = PlanOptions(there, stages=stages, microbatches=4, schedule="1f1b", remat="none", constrain=constrain)
    summary = summarize(plan(module, options))
    assert len(summary.stages) == stages
    assert summary.solved_seconds == pytest.approx(summary.searched_seconds, rel=0.01)
    for stage in summary.stages:
        assert stage.microbatch_seconds == pytest.approx(stage.searched_microbatch_seconds, rel=0.01)
        assert stage.step_seconds == pytest.approx(stage.searched_step_seconds, rel=0.01)
