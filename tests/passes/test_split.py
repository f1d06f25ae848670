"""alpa-split: what becomes a fragment, a transfer, a residual, a donation; and the step is still the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from jaxlib.mlir import ir
from on_devices import assert_close, random_inputs, run_all
from staged_steps import assert_same_step, layered, one_device, replicated

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_plan
from alpa_mlir.dialect.staged import ARGUMENT, Accumulate, Fragment, PlanMain, Ref, Slice, Stack, Transfer
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.schedule import SchedulePass
from alpa_mlir.passes.split import Split
from alpa_mlir.runtime.execute import run_plan

INPUTS = Path(__file__).parents[2] / "lit_tests" / "split"
MLP = (INPUTS / "mlp.mlir").read_text()
CLIPPED = (INPUTS / "clipped.mlir").read_text()

ROW = "sdy.sharding = #sdy.sharding<@stage_0, [{}]>"
BATCH = "sdy.sharding = #sdy.sharding<@stage_0, [{}, {}]>"
FORWARD = 'alpa.phase = "forward", alpa.stage = 0 : i64, sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}, {}]>]>'
BACKWARD = FORWARD.replace("forward", "backward")
UPDATE = FORWARD.replace("forward", "update").replace("[{}, {}]", "[{}]")
BIASED = f"""
module attributes {{alpa.level = "sharded", alpa.microbatches = 2 : i64,
    alpa.stages = [{{devices = array<i64: 0>, mesh = "stage_0"}}]}} {{
  sdy.mesh @stage_0 = <["x"=1]>
  func.func private @microbatch(%b: tensor<8xf32> {{alpa.binding = "arg:0", alpa.stage = 0 : i64, {ROW}}},
      %x: tensor<4x8xf32> {{alpa.binding = "batch:1", alpa.dim = 0 : i64, alpa.stage = 0 : i64, {BATCH}}})
      -> (tensor<4x8xf32> {{alpa.binding = "sum:0", {BATCH}}}, tensor<4x8xf32> {{alpa.binding = "stack:1", {BATCH}}}) {{
    %wide = stablehlo.broadcast_in_dim %b, dims = [1] {{{FORWARD}}} : (tensor<8xf32>) -> tensor<4x8xf32>
    %y = stablehlo.add %x, %wide {{{FORWARD}}} : tensor<4x8xf32>
    %g = stablehlo.multiply %x, %wide {{{BACKWARD}}} : tensor<4x8xf32>
    return %g, %y : tensor<4x8xf32>, tensor<4x8xf32>
  }}
  func.func private @update(%b: tensor<8xf32> {{alpa.binding = "arg:0", alpa.stage = 0 : i64, {ROW}}},
      %g: tensor<4x8xf32> {{alpa.binding = "sum:0", alpa.stage = 0 : i64, {BATCH}}},
      %y: tensor<8x8xf32> {{alpa.binding = "stack:1", alpa.stage = 0 : i64, {BATCH}}})
      -> (tensor<8xf32> {{alpa.binding = "out:0", {ROW}}}, tensor<4x8xf32> {{alpa.binding = "out:1", {BATCH}}},
          tensor<8x8xf32> {{alpa.binding = "out:2", {BATCH}}}) {{
    %new = stablehlo.negate %b {{{UPDATE}}} : tensor<8xf32>
    return %new, %g, %y : tensor<8xf32>, tensor<4x8xf32>, tensor<8x8xf32>
  }}
  func.func public @main(%b: tensor<8xf32> {{alpa.role = "state", alpa.updates = 0 : i64}},
      %x: tensor<8x8xf32> {{alpa.role = "batch"}}) -> (tensor<8xf32>, tensor<4x8xf32>, tensor<8x8xf32>) {{
    %g = stablehlo.slice %x [0:4, 0:8] : (tensor<8x8xf32>) -> tensor<4x8xf32>
    return %b, %g, %x : tensor<8xf32>, tensor<4x8xf32>, tensor<8x8xf32>
  }}
}}
"""


def split(text: str):
    module = parse_module(text, make_context())
    Split().apply(module, [])
    assert module.operation.verify()
    alpa.verify(module)
    return module


def calls(main: PlanMain) -> dict[str, Fragment]:
    return {s.function: s for s in main.steps if isinstance(s, Fragment)}


def donated(module, name: str) -> dict[int, int]:
    entries = functions(module)[name].attributes["arg_attrs"]
    found = {}
    for i, entry in enumerate(entries):
        number = re.search(r"alpa\.donate = (\d+)", str(entry))
        if number:
            found[i] = int(number[1])
    return found


def test_one_function_per_stage_and_phase() -> None:
    main = read_main(split(MLP))
    assert [s.function for s in main.steps if isinstance(s, Fragment)] == [
        "stage_0_forward",
        "stage_1_forward",
        "stage_1_backward",
        "stage_0_backward",
        "stage_0_update",
        "stage_1_update",
    ]
    assert [s.phase for s in main.steps if isinstance(s, Transfer)] == ["forward", "backward"]


def test_residuals_are_results_and_constants_are_not() -> None:
    """tanh's result is kept for the backward pass; the ones it needs as well are made again."""
    module = split(MLP)
    main = read_main(module)
    forward, backward = calls(main)["stage_0_forward"], calls(main)["stage_0_backward"]
    kept = [r for r in backward.operands if r.op == forward.id]
    assert [main.type_of(r).shape for r in kept] == [(4, 16)]
    assert len(forward.results) == 2  # what is sent, what is kept
    for name in ("stage_0_forward", "stage_0_backward"):
        assert str(functions(module)[name]).count("stablehlo.constant") == 1


def test_what_only_enlarges_is_repeated_not_kept() -> None:
    """A broadcast of a bias that both passes need: the backward pass broadcasts again, from the parameter."""
    module = parse_module(BIASED, make_context())
    Split().apply(module, [])
    main = read_main(module)
    forward, backward = calls(main)["stage_0_forward"], calls(main)["stage_0_backward"]
    assert [main.type_of(r).shape for r in backward.operands if r.op == forward.id] == []
    assert Ref(ARGUMENT, 0) in backward.operands
    body = str(functions(module)["stage_0_backward"])
    assert body.count("broadcast_in_dim") == 1 and "multiply" in body


def test_microbatches_are_cut_where_they_are_used() -> None:
    """The targets' home is stage 0, but their slices are made on stage 1 and never sent."""
    main = read_main(split(MLP))
    assert {(s.operands[0].result, s.results[0].mesh) for s in main.steps if isinstance(s, Slice)} == {
        (2, "stage_0"),
        (3, "stage_1"),
    }


def test_sums_and_stacks_stand_between_microbatches_and_update() -> None:
    main = read_main(split(MLP))
    assert sorted(main.type_of(s.operands[0]).shape for s in main.steps if isinstance(s, Accumulate)) == [
        (),
        (8, 16),
        (16, 4),
    ]
    stack = next(s for s in main.steps if isinstance(s, Stack))
    assert (main.type_of(stack.operands[0]).shape, stack.results[0].shape) == ((4, 4), (16, 4))
    assert main.results[3] == Ref(stack.id)


def test_update_runs_in_as_few_rounds_as_its_crossings_need() -> None:
    """The norm over both stages: stage 1 gives its part, stage 0 adds and updates, stage 1 updates."""
    main = read_main(split(CLIPPED))
    updates = [s.function for s in main.steps if isinstance(s, Fragment) and s.phase == "update"]
    assert updates == ["stage_1_update_0", "stage_0_update", "stage_1_update_1"]


def test_update_donates_state_and_nothing_that_is_read_again() -> None:
    module = split(CLIPPED)
    main = read_main(module)
    last = calls(main)["stage_1_update_1"]
    assert [last.operands[i].is_argument for i in donated(module, "stage_1_update_1")] == [True]
    assert donated(module, "stage_1_update_0") == {}  # the gradient sum is read again in round 1
    first = calls(main)["stage_0_update"]
    for argument, result in donated(module, "stage_0_update").items():
        assert main.type_of(first.operands[argument]) == first.results[result]


def test_every_donation_is_sound() -> None:
    for text in (MLP, CLIPPED):
        module = split(text)
        main = read_main(module)
        for name, call in calls(main).items():
            pairs = donated(module, name)
            assert len(set(pairs.values())) == len(pairs)
            for argument in pairs:
                ref = call.operands[argument]
                assert ref not in main.results
                assert not [s for s in main.steps if s.id > call.id and ref in s.operands]
                assert not ref.is_argument or main.arguments[ref.result].role == "state"


def test_an_update_takes_over_the_buffer_of_state_that_it_does_not_read() -> None:
    """As half-precision parameters, cast from their master copies: nothing but @microbatch reads them."""
    row = f"%row = stablehlo.slice %g [0:1, 0:8] {{{FORWARD}}} : (tensor<4x8xf32>) -> tensor<1x8xf32>"
    unread = BIASED.replace(
        f"%new = stablehlo.negate %b {{{UPDATE}}} : tensor<8xf32>",
        f"{row}\n    %new = stablehlo.reshape %row {{{UPDATE}}} : (tensor<1x8xf32>) -> tensor<8xf32>".replace(
            '"forward"', '"update"'
        ),
    )
    module = split(unread)
    main = read_main(module)
    update = calls(main)["stage_0_update"]
    (argument, result), *_ = donated(module, "stage_0_update").items()
    assert update.operands[argument] == Ref(ARGUMENT, 0) and main.results[0] == Ref(update.id, result)
    values = [np.arange(8, dtype=np.float32), np.ones((8, 8), np.float32)]
    new, total, _ = run_plan(module, values)
    np.testing.assert_array_equal(total, np.broadcast_to(2 * values[0], (4, 8)))
    np.testing.assert_array_equal(new, 2 * values[0])


def ops_of(module, name: str) -> list[ir.Operation]:
    return [op for op in alpa.walk(functions(module)["microbatch"]) if op.name == name]


def test_dead_ops_disappear() -> None:
    module = parse_module(MLP, make_context())
    tanh = ops_of(module, "stablehlo.tanh")[0]
    tanh.clone(ip=ir.InsertionPoint(tanh))
    assert len(ops_of(module, "stablehlo.tanh")) == 2
    Split().apply(module, [])
    stages = [f for name, f in functions(module).items() if name != "main"]
    assert sum(op.name == "stablehlo.tanh" for f in stages for op in alpa.walk(f)) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('alpa.level = "sharded"', 'alpa.level = "staged"', "needs a sharded module"),
        ('alpa.binding = "sum:2", sdy.sharding', 'alpa.binding = "sum:7", sdy.sharding', "returns no sum:2"),
        ('alpa.binding = "arg:0", alpa.stage = 0 : i64, sdy', 'alpa.binding = "arg:0", sdy', None),
        ('alpa.phase = "backward", ', "", r"has no alpa\.phase"),
        ("alpa.dim = 0 : i64, alpa.stage = 0 : i64, sdy", "alpa.dim = 0 : i64, alpa.stage = 0 : i64, k", "sharding"),
    ],
)
def test_needs_its_annotations(old: str, new: str, message: str | None) -> None:
    wrong = MLP.replace(old, new)
    assert wrong != MLP
    if message is None:
        split(wrong)  # homes are read from shardings
        return
    with pytest.raises(CompileError, match=message):
        split(wrong)


def test_forward_must_not_read_the_backward_pass() -> None:
    module = parse_module(MLP, make_context())
    alpa.set_string(ops_of(module, "stablehlo.dot_general")[-1], alpa.PHASE, "forward")
    with pytest.raises(CompileError, match="a forward op reads a value of the backward pass") as caught:
        Split().apply(module, [])
    assert caught.value.location.startswith("-:")


def test_forward_must_not_run_down_the_pipeline() -> None:
    """The loss goes back to stage 0, is negated there, and comes back up."""
    module = parse_module(MLP, make_context())
    loss = ops_of(module, "stablehlo.reduce")[0]
    end = list(functions(module)["microbatch"].regions[0].blocks[0].operations)[-1].operation

    def add(name: str, value: ir.Value, stage: int, sharding: str) -> ir.Value:
        written = {"layer": f"{stage} : i64", "stage": f"{stage} : i64", "phase": '"forward"'}
        attributes = {f"alpa.{k}": ir.Attribute.parse(v, module.context) for k, v in written.items()}
        inner = f"<@stage_{stage}, []>"
        text = f"#sdy.sharding{inner}" if sharding == "sharding" else f"#sdy.sharding_per_value<[{inner}]>"
        attributes[sharding] = ir.Attribute.parse(text, module.context)
        ip = ir.InsertionPoint(end)
        made = ir.Operation.create(
            name, results=[value.type], operands=[value], attributes=attributes, loc=loss.location, ip=ip
        )
        return made.results[0]

    down = add("sdy.reshard", loss.results[0], 0, "sharding")
    end.operands[2] = add("sdy.reshard", add("stablehlo.negate", down, 0, "sdy.sharding"), 1, "sharding")
    with pytest.raises(CompileError, match="a forward op of stage 0 reads a forward value of stage 1, against"):
        Split().apply(module, [])


@pytest.mark.parametrize("text", [MLP, CLIPPED], ids=["mlp", "clipped"])
def test_split_step_equals_one_device(text: str) -> None:
    original = one_device(parse_module(text, make_context()))
    values = random_inputs(original, np.random.default_rng(0))
    expected = run_all([original], [values])[0]
    assert_close(run_plan(split(text), values), expected, "split")


@pytest.mark.parametrize(
    ("name", "microbatches", "stages"),
    [("mlp", 2, 1), ("mlp", 4, 2), ("gpt", 4, 4), ("moe", 2, 2), ("bert", 2, 2), ("wide_resnet", 2, 2)],
)
def test_models_equal_one_device(name: str, microbatches: int, stages: int) -> None:
    """Built-in train steps (tied embeddings, experts, token counts, batch norm), replicated stages, scheduled."""
    module, values = layered(name, microbatches, stages)
    expected = run_all([one_device(module)], [values])[0]
    module = replicated(module, stages)
    Split().apply(module, [])
    SchedulePass().apply(module, [])
    assert_same_step(run_plan(print_module(module), values), expected)


def test_inference_has_no_backward_and_no_update() -> None:
    module, values = layered("mlp", 2, 2, train=False)
    expected = run_all([one_device(module)], [values])[0]
    module = replicated(module, 2)
    Split().apply(module, [])
    assert list(calls(read_main(module))) == ["stage_0_forward", "stage_1_forward"]
    SchedulePass().apply(module, [])
    assert {s.kind for s in read_plan(module).schedules} == {"inference"}
    assert_same_step(run_plan(print_module(module), values), expected)


def test_same_input_same_bytes() -> None:
    assert print_module(split(CLIPPED)) == print_module(split(CLIPPED))
