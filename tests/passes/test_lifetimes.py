"""What the program of a stage counts as held is what the finished plan holds."""

from __future__ import annotations

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.planner import PlanOptions, plan

NEAR = 0.03


@pytest.mark.parametrize(
    ("name", "remat"), [("gpt", "none"), ("moe", "none"), ("wide_resnet", "full"), ("bert", "full")]
)
def test_stages_are_found_with_the_memory_that_the_plan_needs(name: str, remat: str) -> None:
    model = MODELS[name]
    options = PlanOptions(
        load_cluster("a100").with_sizes(1, 4),
        stages=2,
        microbatches=4,
        schedule="1f1b",
        remat=remat,
        allow_per_microbatch_statistics=True,
    )
    module = parse_module(print_module(lower(model.build(model.config()))), make_context(), name)
    entries = stage_entries(plan(module, options))
    foreseen, needed = (
        [float(ir.IntegerAttr(e[key]).value) for e in entries] for key in ("memory_bytes", "peak_bytes")
    )
    assert foreseen == pytest.approx(needed, rel=NEAR)
