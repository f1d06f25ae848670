"""Plans in one process: every schedule, level 6 without one, placements of all sizes, against numpy."""

from __future__ import annotations

import mlp_plan
import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime.execute import run_plan

PLACEMENTS = (((0,), (1,)), ((0, 1), (2, 3)), ((0, 1, 2, 3), (4, 5)), ((3, 1), (0, 2)))


def check(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("stages", PLACEMENTS)
def test_a_plan_computes_the_step(stages: tuple[tuple[int, ...], ...]) -> None:
    values = mlp_plan.arguments()
    found = run_plan(mlp_plan.plan_text(2, stages), values, steps=3)
    check(found, mlp_plan.reference(values, 3, 2))


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_the_dataflow_without_a_schedule_computes_the_step(microbatches: int) -> None:
    values = mlp_plan.arguments(1)
    found = run_plan(mlp_plan.split_module(microbatches), values, steps=2)
    check(found, mlp_plan.reference(values, 2, microbatches))


def test_refuses_wrong_arguments() -> None:
    text = mlp_plan.plan_text()
    values = mlp_plan.arguments()
    with pytest.raises(CompileError, match="has 4 arguments, 3 were given"):
        run_plan(text, values[:3])
    with pytest.raises(CompileError, match=r"argument 1 is tensor<8x4xf32>, got float64\[8, 4\]"):
        run_plan(text, [values[0], values[1].astype(np.float64), *values[2:]])
    with pytest.raises(CompileError, match=r"this process has 8"):
        run_plan(mlp_plan.plan_text(2, ((0, 1), (9, 8))), values)


def test_refuses_a_call_that_does_not_fit_its_function() -> None:
    text = mlp_plan.split_text(2, ((0, 1), (2, 3)))
    wrong = text.replace("@stage_1_backward(%4, %w2, %5#1)", "@stage_1_backward(%4, %w2, %5#0)", 1)
    assert wrong != text
    run_plan(parse_module(wrong, make_context()), mlp_plan.arguments())  # same types: fine
    head = "@stage_0_forward(%x: tensor<4x16xf32> {sdy.sharding = #sdy.sharding<@stage_0, "
    moved = text.replace(head + '[{"x"}, {}]', head + "[{}, {}]")
    assert moved != text
    with pytest.raises(CompileError, match="argument 0 of @stage_0_forward"):
        run_plan(parse_module(moved, make_context()), mlp_plan.arguments())


@pytest.mark.parametrize("stages", [((0,), (1,)), ((0, 1), (2, 3))])
def test_a_body_may_be_the_program_of_one_device(stages: tuple[tuple[int, ...], ...]) -> None:
    """stage_0_update as a manual computation: its shards are updated where they are."""
    text = mlp_plan.split_text(2, stages)
    head, tail = text.split("func.func private @stage_0_update", 1)
    body, rest = tail.split("return %n", 1)
    start = body.index("%c =")
    inner = body[start:].replace("%w,", "%v,").replace("%g :", "%h :")
    kind = "tensor<16x32xf32>"
    manual = f"""%m = sdy.manual_computation(%w, %g) in_shardings=[<@stage_0, [{{}}, {{}}]>, <@stage_0, [{{}}, {{}}]>]
        out_shardings=[<@stage_0, [{{}}, {{}}]>] manual_axes={{"x"}} (%v: {kind}, %h: {kind}) {{
      {inner}
      sdy.return %n : {kind}
    }} : ({kind}, {kind}) -> {kind}
    return %m"""
    module = parse_module(head + "func.func private @stage_0_update" + body[:start] + manual + rest, make_context())
    values = mlp_plan.arguments()
    check(run_plan(module, values, steps=2), mlp_plan.reference(values, 2, 2))
