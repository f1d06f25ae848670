"""Neighbouring stage functions as one program: the same numbers, fewer programs, buffers taken over as before."""

from __future__ import annotations

from pathlib import Path

import jax
import mlp_plan
import numpy as np
import pytest
from jaxlib.mlir import ir

import alpa_mlir
from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.passes.schedule import SchedulePass
from alpa_mlir.runtime import actions, program
from alpa_mlir.runtime.execute import InProcess, run_plan
from alpa_mlir.runtime.joined import programs_of

MODEL = Path(__file__).parent / "mlp_step.mlir"


def scheduled(microbatches: int, kind: str, join: bool) -> ir.Module:
    """The hand-made step, its lists written by the compiler."""
    module = mlp_plan.split_module(microbatches)
    SchedulePass(kind=kind, join=join).apply(module, [])
    return module


def programs(module: ir.Module) -> list[str]:
    """The programs of a step in one process, in order."""
    plan = program.read(module)
    part = program.decode(module, plan, 0, [0] * 4)
    return [action.function for action in part.actions if isinstance(action, actions.Call)]


@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("kind", ["1f1b", "eager-1f1b", "gpipe"])
def test_joined_programs_compute_the_step(kind: str, microbatches: int) -> None:
    values = mlp_plan.arguments(3)
    apart = run_plan(scheduled(microbatches, kind, join=False), values, steps=3)
    together = run_plan(scheduled(microbatches, kind, join=True), values, steps=3)
    for a, b, c in zip(apart, together, mlp_plan.reference(values, 3, microbatches), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(b, c, rtol=2e-5, atol=2e-5)


def test_the_last_stage_is_one_program_in_each_microbatch() -> None:
    module = scheduled(2, "1f1b", join=True)
    found = programs(module)
    assert found.count("stage_1_forward+backward") == 2
    assert "stage_1_forward" not in found and "stage_1_backward" not in found
    assert len(found) == len(programs(scheduled(2, "1f1b", join=False))) - 2
    assert programs_of(program.read(module)) == {"stage_1_forward+backward": ("stage_1_forward", "stage_1_backward")}


@pytest.mark.parametrize(("devices", "partitioner"), [(1, "local"), (2, "local"), (2, "xla")])
def test_one_stage_with_one_microbatch_is_one_program(devices: int, partitioner: str) -> None:
    """As under `jax.jit`: and its state lies in the same buffers afterwards."""
    options = {"devices_per_node": devices, "stages": 1, "microbatches": 1, "partitioner": partitioner}
    text = alpa_mlir.plan(MODEL, batch_args="0-1", **options).text
    module = parse_module(text, make_context())
    assert programs(module) == ["stage_0_forward+backward+update"]
    arguments = random_arguments(program.read(module))
    running = InProcess(text)
    running.place(arguments)
    running.step()
    states = [a.updates for a in program.read(module).main.arguments if a.updates is not None]
    before = [buffers(value) for value in np.take(np.array(running.step(), dtype=object), states)]
    after = [buffers(value) for value in np.take(np.array(running.step(), dtype=object), states)]
    assert before == after, "each new state is where the old one was"
    expected = run_plan(unjoined(text), arguments, steps=3)
    for a, b in zip(running.results(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def random_arguments(plan: program.Plan) -> list[np.ndarray]:
    """A value for each argument."""
    from alpa_mlir.runtime.inputs import Drawn

    drawn = Drawn(plan.main.arguments, 0)
    return [np.asarray(drawn.value(i, 0)) for i in range(len(plan.main.arguments))]


def buffers(value: jax.Array) -> list[int]:
    """Where the parts of an array lie."""
    return [shard.data.unsafe_buffer_pointer() for shard in value.addressable_shards]


def unjoined(text: str) -> ir.Module:
    """The plan with a program for each function."""
    module = parse_module(text, make_context())
    SchedulePass(kind="1f1b", join=False).apply(module, [])
    return module
