"""A plan is printed and played once: what was sealed is what the plan says."""

from __future__ import annotations

import pytest

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import check_digest, read_plan, sealed_text
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.schedule import plan_timeline, sealed_timeline
from alpa_mlir.passes.schedule_check import check_schedule
from alpa_mlir.planner import PlanOptions, plan


def test_what_was_sealed_is_what_the_plan_says() -> None:
    mlp = MODELS["mlp"]
    program = print_module(lower(mlp.build(mlp.config(layers=4, hidden=16, batch=16))))
    options = PlanOptions(load_cluster("cpu").with_sizes(1, 2), stages=2, microbatches=4)
    first, second = (plan(parse_module(program, make_context()), options) for _ in range(2))
    for module in (first, second):
        assert sealed_text(module) == print_module(module)
        assert sealed_timeline(module) == plan_timeline(module)
        check_digest(module)
        check_schedule(module)
    read = parse_module(sealed_text(first), make_context())
    check_digest(read)
    assert read_plan(read).schedules == read_plan(first).schedules
    alpa.set_int(first.operation, alpa.MICROBATCHES, 7)
    with pytest.raises(CompileError, match="was changed"):
        check_digest(first)
