"""Programs whose loops over layers pass on, keep or update more than activations, planned in groups of layers.

Each step is planned, run in this process and compared with the original on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from on_devices import assert_close, run_all
from test_grouped_layers import (
    BATCH,
    LAYERS,
    WIDTH,
    Weights,
    inputs_of,
    layer,
    module_of,
    names_in,
    normal,
    planned,
    scanned,
    step_of,
)

from alpa_mlir.dialect import alpa, rounds
from alpa_mlir.dialect.context import functions, make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.runtime.execute import run_plan

pytestmark = pytest.mark.usefixtures("quick_compiler")


def swapping(w: Weights, x: Any) -> Any:
    """Of three values that are passed on the last is needed by the rounds, and not behind them."""

    def body(carry: Any, own: Weights) -> tuple[Any, None]:
        h, a, b = carry
        return (layer(h + 0.1 * a, own)[0], b, a), None

    h, a, _ = jax.lax.scan(body, (x @ w["first"], jnp.sin(x), jnp.cos(x)), w["layers"])[0]
    return h + a


def in_turns(w: Weights, x: Any) -> Any:
    """A value that is passed on depends on no argument of the program."""

    def body(carry: Any, own: Weights) -> tuple[Any, None]:
        h, flag = carry
        return (jnp.where(flag, 1.0, 0.7) * layer(h, own)[0], ~flag), None

    return jax.lax.scan(body, (x @ w["first"], True), w["layers"])[0][0]


def with_outputs_that_nothing_reads(w: Weights, x: Any) -> Any:
    """What the rounds make besides is of one example: kept, it would mix them."""

    def body(h: Any, own: Weights) -> tuple[Any, Any]:
        h, _ = layer(h, own)
        return h, h[0]

    return jax.lax.scan(body, x @ w["first"], w["layers"])[0]


def in_a_branch(w: Weights, x: Any) -> Any:
    """The loop stands in a region, which is one unit."""

    def deep(h: Any) -> Any:
        return jax.lax.scan(layer, h, w["layers"])[0]

    return jax.lax.cond(w["first"][0, 0] > -9, deep, jnp.sin, x @ w["first"])


def with_carried_rows(w: Weights, x: Any) -> Any:
    """All layers' memory is handed on whole; each writes in one place of its own, and reads its own."""

    def body(carry: Any, given: Any) -> tuple[Any, None]:
        h, memory = carry
        own, n = given
        memory = jax.lax.dynamic_update_slice(memory, h[None, :, :1], (n, 0, 1))
        mine = jax.lax.dynamic_index_in_dim(memory, n, keepdims=False)
        return (layer(h + 0.1 * mine, own)[0], memory), None

    memory = jnp.sin(jnp.broadcast_to(x, (LAYERS, *x.shape)))
    h, memory = jax.lax.scan(body, (x @ w["first"], memory), (w["layers"], jnp.arange(LAYERS)))[0]
    return h + 0.1 * memory.sum(0)


def by_given_number(w: Weights, x: Any) -> Any:
    """Weights are looked up by a number that comes from a list, and so are they in the backward pass."""

    def body(h: Any, n: Any) -> tuple[Any, None]:
        return layer(h, jax.tree.map(lambda a: a[n], w["layers"]))

    return jax.lax.scan(body, x @ w["first"], jnp.arange(LAYERS)[::-1])[0]


def with_places_of_examples(w: Weights, x: Any) -> Any:
    """Of each example some places are looked up and added to: what counts the examples is made again, not kept."""

    def body(h: Any, own: Weights) -> tuple[Any, None]:
        best = jax.lax.top_k(h, 2)[1]
        rows = jnp.arange(h.shape[0])[:, None]
        return layer(h.at[rows, best].add(jnp.tanh(h[rows, best])), own)

    return jax.lax.scan(body, x @ w["first"], w["layers"])[0]


def clipped_by_layer(w: Weights, g: Weights) -> Weights:
    """The update goes through the layers in a loop of its own."""

    def body(carry: Any, pair: Any) -> tuple[Any, Any]:
        own, d = pair
        norm = jnp.sqrt(sum(jnp.sum(a * a) for a in jax.tree.leaves(d)))
        return carry, jax.tree.map(lambda a, b: a - 0.1 * b / jnp.maximum(norm, 0.01), own, d)

    return {
        "first": w["first"] - 0.1 * g["first"],
        "layers": jax.lax.scan(body, 0, (w["layers"], g["layers"]))[1],
    }


def inference(forward: Callable[..., Any]) -> TrainStep:
    like = step_of(forward)
    return TrainStep("inference", forward, like.arguments[:2], ("constant", "batch"), ())


STEPS = {
    "swapping": step_of(swapping),
    "in_turns": step_of(in_turns),
    "clipped_by_layer": step_of(scanned, clipped_by_layer),
    "with_outputs_that_nothing_reads": step_of(with_outputs_that_nothing_reads),
    "inference": inference(swapping),
    "with_carried_rows": inference(with_carried_rows),
    "by_given_number": step_of(by_given_number),
    "with_places_of_examples": step_of(with_places_of_examples),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swapping", {"stages": 2, "remat": "full"}),
        ("in_turns", {"stages": 2}),
        ("clipped_by_layer", {"stages": 2}),
        ("clipped_by_layer", {"mesh": "2"}),
        ("with_outputs_that_nothing_reads", {"mesh": "2"}),
        ("inference", {"stages": 2}),
        ("with_carried_rows", {"stages": 2}),
        ("by_given_number", {"stages": 2}),
        ("with_places_of_examples", {"stages": 2}),
    ],
    ids=str,
)
def test_plans_equal_one_device(name: str, options: dict[str, Any]) -> None:
    step = STEPS[name]
    assert not names_in(normal(step)).isdisjoint(rounds.MARKS)
    inputs = inputs_of(step)
    made = planned(step, **options)
    assert_close(run_plan(made, inputs, steps=1), run_all([module_of(step)], [inputs])[0], name)


@pytest.mark.parametrize("name", ["with_carried_rows", "by_given_number"])
def test_what_each_round_reads_and_writes_in_its_own_place_is_a_stack(name: str) -> None:
    """Only activations are handed from round to round."""
    module = normal(STEPS[name])
    ops = [op for op in alpa.walk(functions(module)["main"]) if op.name == rounds.ENTER]
    assert {str(op.operands[0].type) for op in ops} == {f"tensor<{BATCH}x{WIDTH}xf32>"}


def test_no_groups_are_made_in_a_branch() -> None:
    assert names_in(normal(step_of(in_a_branch))).isdisjoint(rounds.MARKS)


ENTER = '%in = "alpa.loop_enter"(%x) {alpa.trips = 4 : i64} : (tensor<8xf32>) -> tensor<8xf32>'
SLICE = '%w = "alpa.loop_slice"(%a) {alpa.trips = 4 : i64} : (tensor<4x8xf32>) -> tensor<8xf32>'
NEXT = "%0 = stablehlo.multiply %in, %w : tensor<8xf32>"
LEAVE = '%out = "alpa.loop_leave"(%in, %0) {alpa.trips = 4 : i64} : (tensor<8xf32>, tensor<8xf32>) -> tensor<8xf32>'
ROUND = (ENTER, SLICE, NEXT, LEAVE)


@pytest.mark.parametrize(
    ("ops", "why"),
    [
        ((ENTER.replace("{alpa.trips = 4 : i64} ", ""), *ROUND[1:]), ":2:.*needs alpa.trips"),
        ([op.replace("= 4", "= 0") for op in ROUND], ":2:.*of at least 1"),
        ([op.replace("= 4", "= 2") for op in ROUND], ":3:.*loop_slice of 2 rounds cannot be"),
        ((*ROUND[:3], LEAVE.replace("= 4", "= 2")), ":5:.*in loops of 4 and of 2 rounds"),
        ((ENTER, SLICE.replace("(%a)", "()").replace("(tensor<4x8xf32>)", "()"), NEXT, LEAVE), ":3:.*cannot be"),
        ((*ROUND, LEAVE.replace("%out", "%twice")), ":6:.*leaves it twice"),
        ([LEAVE.replace("%in, %0", "%x, %x")], ":2:.*entered no loop"),
        ([ENTER.replace("loop_enter", "loop_foo").replace("%in", "%out")], ":2:.*loop_foo is no mark of a loop"),
    ],
)
def test_marks_that_say_nothing_are_refused(ops: Sequence[str], why: str) -> None:
    lines = ["func.func @main(%a: tensor<4x8xf32>, %x: tensor<8xf32>) -> tensor<8xf32> {", *ops]
    module = parse_module("\n".join([*lines, "return %out : tensor<8xf32>", "}"]), make_context())
    with pytest.raises(CompileError, match=why):
        run_pipeline(module, "alpa-roll", [])
