"""Loops over many layers are planned as loops over groups of them, and the step stays the same.

Each step is planned in two stages and on a mesh of two devices, run in this process on the program's own arguments, and
compared with the original on one device. What a group costs is that of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import assert_close, random_inputs, run_all

from alpa_mlir.dialect import alpa, rounds
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_plan
from alpa_mlir.dialect.signature import Signature
from alpa_mlir.lowering import lower
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.passes.strip_mine import groups_of
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime.execute import run_plan
from alpa_mlir.tools.plan_summary import summarize

pytestmark = pytest.mark.usefixtures("quick_compiler")

LAYERS, WIDTH, BATCH = 8, 8, 8
GROUPS = 4
UNROLL = 3
"""Loops over more layers are put into groups."""
Weights = dict[str, Any]
STACK = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
SCALES = jax.ShapeDtypeStruct((LAYERS, WIDTH), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)


def layer(h: Any, w: Weights) -> tuple[Any, None]:
    return h + 0.3 * jnp.tanh(h * w["scale"] @ w["in"]) @ w["out"], None


def scanned(w: Weights, x: Any) -> Any:
    return jax.lax.scan(layer, x @ w["first"], w["layers"])[0]


def rematerialised(w: Weights, x: Any) -> Any:
    return jax.lax.scan(jax.checkpoint(layer), x @ w["first"], w["layers"])[0]


def from_the_last(w: Weights, x: Any) -> Any:
    return jax.lax.scan(layer, x @ w["first"], w["layers"], reverse=True)[0]


def by_number(w: Weights, x: Any) -> Any:
    """The number of a layer counts, and is given besides its weights."""

    def body(h: Any, given: Any) -> tuple[Any, None]:
        own, n = given
        return layer(h, own)[0] / (1 + 0.1 * n.astype(jnp.float32)), None

    return jax.lax.scan(body, x @ w["first"], (w["layers"], jnp.arange(LAYERS)))[0]


def counting(w: Weights, x: Any) -> Any:
    """The loop's own counter is used, and weights are looked up by it."""

    def body(n: Any, h: Any) -> Any:
        own = jax.tree.map(lambda a: a[n], w["layers"])
        return layer(h, own)[0] / (1 + 0.1 * n)

    return jax.lax.fori_loop(0, LAYERS, body, x @ w["first"])


def with_every_output(w: Weights, x: Any) -> Any:
    def body(h: Any, own: Weights) -> tuple[Any, Any]:
        h, _ = layer(h, own)
        return h, jnp.sin(h)

    last, every = jax.lax.scan(body, x @ w["first"], w["layers"])
    return last + 0.1 * every.sum(0)


def with_a_memory(w: Weights, x: Any) -> Any:
    """A second value that is handed on begins as zeros, which know no examples yet."""

    def body(carry: Any, own: Weights) -> tuple[Any, None]:
        h, kept = carry
        kept = 0.5 * kept + h
        return (layer(h + 0.1 * jnp.cos(kept), own)[0], kept), None

    h, kept = jax.lax.scan(body, (x @ w["first"], jnp.zeros(x.shape)), w["layers"])[0]
    return h + kept


def with_attention_to_the_first(w: Weights, x: Any) -> Any:
    """Two loops; the second reads in each round what the first made."""
    seen = scanned(w, x)

    def body(h: Any, own: Weights) -> tuple[Any, None]:
        return layer(h + 0.1 * jnp.tanh(h * seen), own)[0], None

    return jax.lax.scan(body, jnp.sin(x), w["layers"])[0]


def descent(w: Weights, g: Weights) -> Weights:
    return jax.tree.map(lambda p, d: p - 0.1 * d, w, g)


def clipped(w: Weights, g: Weights) -> Weights:
    norm = jnp.sqrt(sum(jnp.sum(d * d) for d in jax.tree.leaves(g)))
    return jax.tree.map(lambda p, d: p - 0.1 * d / jnp.maximum(norm, 1.0), w, g)


def step_of(forward: Callable[..., Any], update: Callable[..., Any] = descent) -> TrainStep:
    def step(w: Weights, x: Any, y: Any) -> tuple[Any, ...]:
        value, gradients = jax.value_and_grad(lambda w: jnp.mean((forward(w, x) - y) ** 2))(w)
        return update(w, gradients), value

    weights = {"first": SQUARE, "layers": {"in": STACK, "out": STACK, "scale": SCALES}}
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    return TrainStep(forward.__name__, step, (weights, batch, batch), ("state", "batch", "batch"), ((0, 0),))


def auxiliary() -> TrainStep:
    """Besides what layers hand on, a sum over examples that grows from layer to layer and is part of the loss."""

    def loss(w: Weights, x: Any, y: Any) -> Any:
        def body(carry: Any, own: Weights) -> tuple[Any, None]:
            h, total = carry
            h, _ = layer(h, own)
            return (h, total + jnp.sum(h * h)), None

        h, total = jax.lax.scan(body, (x @ w["first"], 0.0), w["layers"])[0]
        return jnp.mean((h - y) ** 2) + 0.001 * total

    def step(w: Weights, x: Any, y: Any) -> tuple[Any, ...]:
        value, gradients = jax.value_and_grad(loss)(w, x, y)
        return descent(w, gradients), value

    like = step_of(scanned)
    return TrainStep("auxiliary", step, like.arguments, like.roles, like.updates)


FORWARD = (scanned, rematerialised, from_the_last, by_number, counting, with_every_output, with_a_memory,
           with_attention_to_the_first)  # fmt: skip
STEPS = {forward.__name__: step_of(forward) for forward in FORWARD} | {
    "clipped": step_of(scanned, clipped),
    "auxiliary": auxiliary(),
}


def module_of(step: TrainStep) -> Any:
    return parse_module(print_module(lower(step)), make_context())


def inputs_of(step: TrainStep) -> list[np.ndarray]:
    return [np.asarray(0.3 * v, dtype=v.dtype) for v in random_inputs(module_of(step), np.random.default_rng(0))]


def planned(step: TrainStep, devices: int = 2, **options: Any) -> Any:
    fixed = {"microbatches": 2, "layers": 4, "schedule": "1f1b", "remat": "none", "unroll_layers": UNROLL} | options
    return plan(module_of(step), PlanOptions(load_cluster("cpu").with_sizes(1, devices), **fixed))


def normal(step: TrainStep, passes: str = "", unroll: int = UNROLL) -> Any:
    module = module_of(step)
    run_pipeline(module, f"alpa-normalize{{unroll-layers={unroll}}}{passes}", [])
    return module


def names_in(module: Any) -> set[str]:
    return {op.name for function in functions(module).values() for op in alpa.walk(function)}


@pytest.mark.parametrize("name", STEPS)
def test_one_round_stands_for_all(name: str) -> None:
    step = STEPS[name]
    module = normal(step)
    assert "stablehlo.while" not in names_in(module)
    main = functions(module)["main"]
    loops = rounds.find_rounds([op.operation for op in main.regions[0].blocks[0].operations])
    assert len(loops) >= 2 * GROUPS and {loop.trips for loop in loops} == {LAYERS // GROUPS}
    run_pipeline(module, "alpa-roll", [])
    assert names_in(module).isdisjoint(rounds.MARKS)
    inputs = inputs_of(step)
    found, expected = run_all([module, module_of(step)], [inputs, inputs])
    assert_close(found, expected, name)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("how", ["stages", "mesh"])
def test_plans_equal_one_device(name: str, how: str) -> None:
    step = STEPS[name]
    if how == "stages":
        made = planned(step, stages=2)
        main = read_plan(made).main
        whole = Signature(main)
        homes = [main.arguments[n].type.mesh for n in whole.given[1].parts]
        assert len(homes) == GROUPS and len(set(homes)) == 2
    else:
        made = planned(step, mesh="2", constrain="arg4=[{x},{}]")
        assert any("all_reduce" in name or "reduce_scatter" in name for name in names_in(made))
    inputs = inputs_of(step)
    assert_close(run_plan(made, inputs, steps=1), run_all([module_of(step)], [inputs])[0], name)


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 2, "remat": "full"},
        {"stages": 2, "remat": "1"},
        {"mesh": "2", "remat": "full", "constrain": "arg4=[{x},{}]"},
        {"stages": 2, "schedule": "zero-bubble"},
        {"mesh": "2", "partitioner": "xla", "constrain": "arg4=[{x},{}]"},
        {"mesh": "2", "constrain": "arg1=[{},{},{x}]"},
        {"stages": 2, "unstack": False},
        {"stages": 2, "microbatches": 1},
    ],
    ids=str,
)
def test_options_change_no_result(options: dict[str, Any]) -> None:
    step = STEPS["with_a_memory"]
    inputs = inputs_of(step)
    made = planned(step, **options)
    assert_close(run_plan(made, inputs, steps=1), run_all([module_of(step)], [inputs])[0], str(options))


def test_what_a_sum_over_layers_becomes_is_seen_in_the_next_round() -> None:
    """In the first round it is zero, which any op may read; in the next it is a sum that microbatches do not know."""

    def forward(w: Weights, x: Any) -> Any:
        def body(carry: Any, own: Weights) -> tuple[Any, None]:
            h, total = carry
            h = layer(h, own)[0] * jnp.cos(total)
            return (h, total + jnp.sum(h)), None

        return jax.lax.scan(body, (x @ w["first"], 0.0), w["layers"])[0][0]

    with pytest.raises(CompileError, match="mixes examples"):
        planned(step_of(forward), stages=2)


def test_rounds_are_counted_in_costs() -> None:
    """Products and what they move, of all ops of the program, as many times as their loops run."""
    passes = ",alpa-unstack,alpa-microbatch,alpa-layers"
    work = []
    for unroll in (0, UNROLL):
        program = read_program(normal(STEPS["scanned"], passes, unroll))
        counts = program.kind_counts([1] * 64)
        products = sum(n * np.prod(kind.factors.sizes) for kind, n in counts.items() if kind.compute == "product")
        work.append(products)
    assert work[0] == work[1] > 0


def test_prices_are_those_of_the_unrolled_program() -> None:
    """Where products take most of the time, a plan in groups takes as long as one layer by layer."""

    def wide(w: Weights, x: Any) -> Any:
        return jax.lax.scan(lambda h, a: (jnp.tanh(h @ a), None), x, w["layers"])[0]

    def step(w: Weights, x: Any, y: Any) -> tuple[Any, ...]:
        value, gradients = jax.value_and_grad(lambda w: jnp.mean((wide(w, x) - y) ** 2))(w)
        return descent(w, gradients), value

    weights = {"layers": jax.ShapeDtypeStruct((64, 512, 512), jnp.float32)}
    batch = jax.ShapeDtypeStruct((4096, 512), jnp.float32)
    made = TrainStep("wide", step, (weights, batch, batch), ("state", "batch", "batch"), ((0, 0),))
    seconds = []
    for unroll in (0, 32):
        module = planned(made, stages=2, layers=4, unroll_layers=unroll)
        stages = summarize(module).stages
        seconds.append([s.forward_seconds + s.backward_seconds for s in stages])
    np.testing.assert_allclose(seconds[1], seconds[0], rtol=0.1)


def test_no_groups_are_made_of_few_or_indivisible_layers() -> None:
    assert groups_of(126) == 21 and groups_of(1024) == 32 and groups_of(80) == 20 and groups_of(126, 16) == 14
    assert groups_of(127) == 0
    module = normal(STEPS["scanned"], unroll=LAYERS)
    assert names_in(module).isdisjoint(rounds.MARKS) and "stablehlo.while" not in names_in(module)


def test_a_round_that_is_used_behind_its_loop_is_refused() -> None:
    text = """func.func @main(%a: tensor<2x4xf32>) -> tensor<4xf32> {
      %0 = "alpa.loop_slice"(%a) {alpa.trips = 2 : i64} : (tensor<2x4xf32>) -> tensor<4xf32>
      return %0 : tensor<4xf32>
    }"""
    with pytest.raises(CompileError, match="belongs to one round of a loop"):
        run_pipeline(parse_module(text, make_context()), "alpa-roll", [])


def test_what_is_made_of_constants_is_made_in_each_round() -> None:
    """It would lie in memory for as long as the loop runs."""
    text = """func.func @main(%a: tensor<2x4xf32>, %b: tensor<4xf32>) -> tensor<2x4xf32> {
      %s = stablehlo.iota dim = 0 : tensor<1xf32>
      %r = stablehlo.reshape %s : (tensor<1xf32>) -> tensor<f32>
      %t = stablehlo.broadcast_in_dim %r, dims = [] : (tensor<f32>) -> tensor<4xf32>
      %0 = "alpa.loop_slice"(%a) {alpa.trips = 2 : i64} : (tensor<2x4xf32>) -> tensor<4xf32>
      %1 = stablehlo.add %0, %t : tensor<4xf32>
      %2 = stablehlo.multiply %1, %b : tensor<4xf32>
      %3 = "alpa.loop_stack"(%2) {alpa.trips = 2 : i64, alpa.reversed} : (tensor<4xf32>) -> tensor<2x4xf32>
      return %3 : tensor<2x4xf32>
    }"""
    module = parse_module(text, make_context())
    run_pipeline(module, "alpa-roll", [])
    loop = next(op for op in alpa.walk(functions(module)["main"]) if op.name == "stablehlo.while")
    assert len(loop.operands) == 4  # the number of the round, the stack that is made, the one that is read, %b
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.float32([1, 2, 3, 4])
    np.testing.assert_array_equal(run_all([module], [[a, b]])[0][0], (a * b)[::-1])
