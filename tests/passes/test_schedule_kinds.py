"""Every kind of schedule on built-in train steps: stages sharing submeshes, backward cut in two, one device's step."""

from __future__ import annotations

import numpy as np
import pytest
from jaxlib.mlir import ir
from on_devices import run_all
from staged_steps import assert_same_step, layered, one_device, replicated

from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Run, read_plan
from alpa_mlir.dialect.staged import Accumulate, Fragment, Transfer
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.inter.schedules import pipeline_of
from alpa_mlir.passes.schedule import SchedulePass
from alpa_mlir.passes.split import Split
from alpa_mlir.runtime.execute import run_plan

EXPECTED: dict[tuple[str, int, int], list[np.ndarray]] = {}


def step(name: str, microbatches: int, layers: int) -> tuple[ir.Module, list[np.ndarray], list[np.ndarray]]:
    """A layered step, values for its arguments, and its results on one device (computed once)."""
    key = (name, microbatches, layers)
    module, values = layered(name, microbatches, layers, depth=6 if name == "mlp" else 0)
    if key not in EXPECTED:
        EXPECTED[key] = run_all([one_device(module)], [values])[0]
    return module, values, EXPECTED[key]


@pytest.mark.parametrize(
    ("kind", "name", "microbatches", "stages", "lanes"),
    [
        ("eager-1f1b", "mlp", 8, 3, 3),
        ("eager-1f1b", "gpt", 4, 2, 2),
        ("interleaved", "mlp", 4, 4, 2),
        ("interleaved", "mlp", 8, 6, 3),
        ("interleaved", "gpt", 4, 4, 2),
        ("gpipe", "mlp", 4, 4, 2),
        ("zero-bubble", "mlp", 4, 3, 3),
        ("zero-bubble", "gpt", 4, 4, 4),
        ("zero-bubble-h2", "mlp", 8, 3, 3),
    ],
)
def test_equals_one_device(kind: str, name: str, microbatches: int, stages: int, lanes: int) -> None:
    module, values, expected = step(name, microbatches, stages)
    module = replicated(module, stages, lanes)
    Split(weight_apart=kind.startswith("zero-bubble")).apply(module, [])
    SchedulePass(kind=kind).apply(module, [])
    plan = read_plan(module)
    assert {s.kind for s in plan.schedules} == {kind} and len(plan.schedules) == len(plan.stages) == lanes
    assert len(plan.pipeline) == stages
    assert_same_step(run_plan(print_module(module), values), expected)


def test_a_submesh_runs_its_stages_in_one_list() -> None:
    """Stages 0 and 2 share a submesh: no transfer between them, one update function for both."""
    module, _ = layered("mlp", 4, 4, depth=6)
    module = replicated(module, 4, 2)
    Split().apply(module, [])
    SchedulePass(kind="interleaved").apply(module, [])
    plan = read_plan(module)
    calls = [s for s in plan.main.steps if isinstance(s, Fragment)]
    assert [c.mesh for c in calls if c.phase == "forward"] == ["stage_0", "stage_1", "stage_0", "stage_1"]
    assert [(c.stage, c.mesh) for c in calls if c.phase == "update"] == [(0, "stage_0"), (1, "stage_1")]
    first = plan.schedules[0]
    ran = [plan.main.step(i.id) for i in first.instructions if isinstance(i, Run)]
    order = [f"{s.phase[0]}{s.stage}" for s in ran if isinstance(s, Fragment) and s.phase != "update"]
    assert " ".join(order) == "f0 f0 f2 f2 f0 b2 f0 b2 f2 b0 f2 b0 b2 b2 b0 b0"


def test_backward_is_cut_where_nobody_waits() -> None:
    """Stage 0 has no backward part; elsewhere it makes what is sent, and all sums come from the weight part."""
    module, _ = layered("mlp", 4, 3, depth=6)
    module = replicated(module, 3)
    Split(weight_apart=True).apply(module, [])
    main = read_main(module)
    parts = {s.function: s for s in main.steps if isinstance(s, Fragment)}
    assert [n for n in parts if "backward" in n] == ["stage_2_backward", "stage_1_backward"]
    assert [n for n in parts if "weight" in n] == ["stage_0_weight", "stage_1_weight", "stage_2_weight"]
    sent = {s.operands[0].op for s in main.steps if isinstance(s, Transfer) and s.phase == "backward"}
    assert sent == {parts["stage_2_backward"].id, parts["stage_1_backward"].id}
    gradients = [main.step(s.operands[0].op) for s in main.steps if isinstance(s, Accumulate)]
    assert {s.phase for s in gradients if isinstance(s, Fragment)} == {"forward", "weight"}
    assert all("dot_general" in str(functions(module)[f"stage_{s}_weight"]) for s in range(3))


def test_splitting_repeats_no_product() -> None:
    counts = []
    for apart in (False, True):
        module, _ = layered("mlp", 4, 3, depth=6)
        module = replicated(module, 3)
        Split(weight_apart=apart).apply(module, [])
        counts.append(print_module(module).count("stablehlo.dot_general"))
    assert counts[0] == counts[1] > 0


def test_refusals() -> None:
    module, _ = layered("mlp", 4, 4, depth=6)
    module = replicated(module, 4, 2)
    Split().apply(module, [])
    with pytest.raises(CompileError, match="1f1b takes one stage per submesh, here are 2"):
        SchedulePass(kind="1f1b").apply(module, [])
    with pytest.raises(CompileError, match="dealt out in turn, these lie on a, a, b, b"):
        pipeline_of(("a", "a", "b", "b"), 4)
    apart, _ = layered("mlp", 4, 3, depth=6)
    apart = replicated(apart, 3)
    Split(weight_apart=True).apply(apart, [])
    with pytest.raises(CompileError, match="run alpa-split without weight-apart"):
        SchedulePass(kind="1f1b").apply(apart, [])
