"""Arrays with a slice for each layer are kept in parts, and the step stays the same.

Each step is planned for two stages of one device, run in this process on the program's own arguments, and compared with
the original on one device. What must stay whole stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import assert_close, random_inputs, run_all

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_plan
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes
from alpa_mlir.dialect.signature import Signature, whole_numbers
from alpa_mlir.dialect.staged_main import part_of
from alpa_mlir.lowering import lower
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime.execute import InProcess, run_plan

LAYERS, WIDTH, BATCH = 4, 8, 4
Weights = dict[str, Any]
STACK = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
SECOND = jax.ShapeDtypeStruct((WIDTH, LAYERS, WIDTH), jnp.float32)
SCALES = jax.ShapeDtypeStruct((LAYERS, WIDTH), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)


def layer(h: Any, w: Weights) -> tuple[Any, None]:
    return h + jnp.tanh(h * w["scale"] @ w["in"]) @ w["out"], None


def scanned(w: Weights, x: Any) -> Any:
    return jax.lax.scan(layer, x @ w["first"], w["layers"])[0]


def scanned_again(w: Weights, x: Any) -> Any:
    return jax.lax.scan(jax.checkpoint(layer), x @ w["first"], w["layers"])[0]


def in_16_bits(w: Weights, x: Any) -> Any:
    short = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), w)
    return scanned(short, x)


def indexed(w: Weights, x: Any) -> Any:
    h = x @ w["first"]
    for n in range(LAYERS):
        h, _ = layer(h, jax.tree.map(lambda a, n=n: a[n], w["layers"]))
    return h


def by_number(w: Weights, x: Any) -> Any:
    """A loop that counts looks weights up by its number: the gradient of each is added to zeros for all."""

    def body(n: Any, h: Any) -> Any:
        return layer(h, jax.tree.map(lambda a: a[n], w["layers"]))[0] / (1 + 0.1 * n)

    return jax.lax.fori_loop(0, LAYERS, body, x @ w["first"])


def by_given_number(w: Weights, x: Any) -> Any:
    def body(h: Any, n: Any) -> tuple[Any, None]:
        return layer(h, jax.tree.map(lambda a: a[n], w["layers"]))

    return jax.lax.scan(body, x @ w["first"], jnp.arange(LAYERS))[0]


def along_the_second(w: Weights, x: Any) -> Any:
    moved = {**w["layers"], "in": jnp.moveaxis(w["layers"]["in"], 1, 0)}
    return jax.lax.scan(layer, x @ w["first"], moved)[0]


def descent(w: Weights, g: Weights) -> Weights:
    return jax.tree.map(lambda p, d: p - 0.1 * d, w, g)


def clipped(w: Weights, g: Weights) -> Weights:
    """By the norm of all gradients together."""
    norm = jnp.sqrt(sum(jnp.sum(d * d) for d in jax.tree.leaves(g)))
    return jax.tree.map(lambda p, d: p - 0.1 * d / jnp.maximum(norm, 1.0), w, g)


def by_layer(w: Weights, g: Weights) -> Weights:
    """A rate for each layer, by the largest gradient in it."""

    def renewed(p: Any, d: Any) -> Any:
        largest = jnp.max(jnp.abs(d), axis=tuple(range(1, d.ndim)), keepdims=True)
        return p - 0.1 * d / (1 + largest)

    return jax.tree.map(renewed, w, g)


def with_given_rates(w: Weights, g: Weights) -> Weights:
    """A constant rate for each layer; one layer learns nothing."""
    rates = np.float32([0.1, 0, 0.2, 0.3])
    layers = jax.tree.map(lambda p, d: p - rates.reshape(LAYERS, *[1] * (p.ndim - 1)) * d, w["layers"], g["layers"])
    return {"first": w["first"] - 0.1 * g["first"], "layers": layers}


def step_of(forward: Callable[..., Any], update: Callable[..., Any] = descent, second: bool = False) -> TrainStep:
    def step(w: Weights, x: Any, y: Any) -> tuple[Any, ...]:
        value, gradients = jax.value_and_grad(lambda w: jnp.mean((forward(w, x) - y) ** 2))(w)
        return update(w, gradients), value

    layers = {"in": SECOND if second else STACK, "out": STACK, "scale": SCALES}
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    weights = {"first": SQUARE, "layers": layers}
    return TrainStep(forward.__name__, step, (weights, batch, batch), ("state", "batch", "batch"), ((0, 0),))


STEPS = {
    "scan": step_of(scanned),
    "rematerialised": step_of(scanned_again),
    "in 16 bits": step_of(in_16_bits),
    "indexed": step_of(indexed),
    "by number": step_of(by_number),
    "by given number": step_of(by_given_number),
    "second dimension": step_of(along_the_second, second=True),
    "clipped": step_of(scanned, clipped),
    "rates by layer": step_of(scanned, by_layer),
    "given rates": step_of(scanned, with_given_rates),
}


def module_of(step: TrainStep) -> Any:
    return parse_module(print_module(lower(step)), make_context())


def planned(step: TrainStep, stages: int = 2, **options: Any) -> Any:
    cluster = load_cluster("cpu").with_sizes(1, stages)
    fixed = {"microbatches": 2, "layers": 2, "schedule": "1f1b", "remat": "none"} | options
    return plan(module_of(step), PlanOptions(cluster, stages=stages, **fixed))


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", STEPS)
def test_two_stages_equal_one_device(name: str) -> None:
    step = STEPS[name]
    made = planned(step)
    main = read_plan(made).main
    whole = Signature(main)
    assert [len(w.parts) for w in whole.given] == [1, LAYERS, LAYERS, LAYERS, 1, 1]
    assert [w.dim for w in whole.given] == [0, 1 if "second" in name else 0, 0, 0, 0, 0]
    # Each stage keeps its own layers.
    for stack in whole.given[1:4]:
        homes = [main.arguments[n].type.mesh for n in stack.parts]
        assert homes == sorted(homes) and len(set(homes)) == 2
    module = module_of(step)
    inputs = random_inputs(module, np.random.default_rng(0))
    assert_close(run_plan(made, inputs, steps=1), run_all([module], [inputs])[0], name)


def test_parts_are_given_back_to_the_next_step() -> None:
    step = STEPS["scan"]
    inputs = random_inputs(module_of(step), np.random.default_rng(0))
    running = InProcess(planned(step))
    running.place(inputs)
    results = running.step()
    assert [isinstance(r, tuple) for r in results] == [False, True, True, True, False]
    running.place([*results[:4], *inputs[4:]])  # where they lie
    running.step()
    assert_close(running.results(), run_plan(planned(step, 1), inputs, steps=2), "two steps")


def unstacked(text_or_step: str | TrainStep) -> Any:
    module = parse_module(text_or_step, make_context()) if isinstance(text_or_step, str) else module_of(text_or_step)
    run_pipeline(module, "alpa-normalize,alpa-unstack", [])
    return module


def parts_of(module: Any) -> tuple[list[str], list[str]]:
    """`alpa.part` of all arguments and of all results, "" where they are whole."""
    main = functions(module)["main"]
    entries = (argument_attributes(main), result_attributes(main))
    arguments, results = ([str(e.get(alpa.PART, "")) for e in side] for side in entries)
    return arguments, results


ROWS = "(tensor<2x4xf32>) -> tensor<1x4xf32>"
WHOLE = {
    "an op needs it whole": f"""
        %0 = stablehlo.slice %a [0:1, 0:4] : {ROWS}
        %1 = stablehlo.slice %a [1:2, 0:4] : {ROWS}
        %2 = stablehlo.add %0, %1 : tensor<1x4xf32>
        %3 = stablehlo.dot_general %a, %x, contracting_dims = [1] x [0]
            : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>""",
    "one slice is not read": f"""
        %2 = stablehlo.slice %a [0:1, 0:4] : {ROWS}
        %3 = stablehlo.add %a, %a : tensor<2x4xf32>""",
    "slices overlap": """
        %0 = stablehlo.slice %a [0:2, 0:3] : (tensor<2x4xf32>) -> tensor<2x3xf32>
        %1 = stablehlo.slice %a [0:2, 1:4] : (tensor<2x4xf32>) -> tensor<2x3xf32>
        %s = stablehlo.add %0, %1 : tensor<2x3xf32>
        %2 = stablehlo.slice %s [0:1, 0:3] : (tensor<2x3xf32>) -> tensor<1x3xf32>
        %3 = stablehlo.add %a, %a : tensor<2x4xf32>""",
    "slices of two dimensions": f"""
        %0 = stablehlo.slice %a [0:1, 0:4] : {ROWS}
        %1 = stablehlo.slice %a [1:2, 0:4] : {ROWS}
        %s = stablehlo.slice %a [0:2, 0:2] : (tensor<2x4xf32>) -> tensor<2x2xf32>
        %t = stablehlo.slice %a [0:2, 2:4] : (tensor<2x4xf32>) -> tensor<2x2xf32>
        %2 = stablehlo.add %0, %1 : tensor<1x4xf32>
        %u = stablehlo.add %s, %t : tensor<2x2xf32>
        %3 = stablehlo.concatenate %u, %u, dim = 1 : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x4xf32>""",
}  # fmt: skip


@pytest.mark.parametrize("why", WHOLE)
def test_what_must_be_whole_stays_whole(why: str) -> None:
    kind = "tensor<1x3xf32>" if why == "slices overlap" else "tensor<1x4xf32>"
    text = f"""func.func @main(%a: tensor<2x4xf32> {{alpa.role = "state", alpa.updates = 0 : i64}}, %x: tensor<4x4xf32>)
        -> (tensor<2x4xf32>, {kind}) {{{WHOLE[why]}
        return %3, %2 : tensor<2x4xf32>, {kind}
      }}"""
    assert parts_of(unstacked(text)) == (["", ""], ["", ""])


def reduced(kind: str, begin: str, op: str) -> tuple[str, str, str]:
    """A reduction over the layers: the element type, the ops, the type of the other result."""
    return (
        kind,
        f"""%i = stablehlo.constant dense<{begin}> : tensor<{kind}>
        %b = stablehlo.reduce(%a init: %i) applies stablehlo.{op} across dimensions = [0]
            : (tensor<2x4x{kind}>, tensor<{kind}>) -> tensor<4x{kind}>
        %c = stablehlo.{op} %a, %a : tensor<2x4x{kind}>""",
        f"tensor<4x{kind}>",
    )


def added(value: str, returned: str = "add") -> tuple[str, str, str]:
    """What is made of no other value, added to the stack and returned beside it or, if asked for, instead of it."""
    ops = f"""%b = {value} : tensor<2x4xf32>
        %d = stablehlo.add %a, %b : tensor<2x4xf32>
        %c = stablehlo.add %{"b, %b" if returned == "instead" else "a, %d"} : tensor<2x4xf32>"""
    return "f32", ops, "tensor<2x4xf32>"


TABLE = "dense<[[1., 2., 3., 4.], [5., 6., 7., 8.]]>"
EXACT = {
    "numbers of layers": added("stablehlo.iota dim = 0"),
    "numbers within a layer": added("stablehlo.iota dim = 1"),
    "a constant": added(f"stablehlo.constant {TABLE}"),
    "a constant instead": added(f"stablehlo.constant {TABLE}", "instead"),
    "equal elements instead": added("stablehlo.constant dense<0.5>", "instead"),
    "all of them true": reduced("i1", "true", "and"),
    "any of them true": reduced("i1", "false", "or"),
    "largest integer": reduced("i32", "-5", "maximum"),
    "smallest integer": reduced("i32", "3", "minimum"),
    "a sum from nothing": reduced("i32", "0", "add"),
    "parity": reduced("i32", "0", "xor"),
}  # fmt: skip


def before_and_after(text: str) -> tuple[Any, list[Any], list[Any]]:
    """The rewritten module, and on one device the results of the text and of the module, joined."""
    original, module = parse_module(text, make_context()), unstacked(text)
    main = functions(module)["main"]
    inputs = random_inputs(original, np.random.default_rng(0))
    given: list[Any] = []
    parts = [part_of(entry) for entry in argument_attributes(main)]
    for number, part in zip(whole_numbers(parts), parts, strict=True):
        value = inputs[number]
        given.append(value if part is None else np.split(value, part.count, part.dim)[part.number])
    found: list[Any] = []
    for value, part in zip(run_all([module], [given])[0], map(part_of, result_attributes(main)), strict=True):
        again = part is not None and part.number > 0
        found[len(found) - again :] = [np.concatenate([found[-1], value], part.dim) if again else value]
    return module, run_all([original], [inputs])[0], found


def reading_rows(kind: str, ops: str, other: str) -> str:
    """A program whose state, read row by row, is replaced by %c; %b is returned besides."""
    rows, row, again = f"tensor<2x4x{kind}>", f"tensor<1x4x{kind}>", "or" if kind == "i1" else "add"
    return f"""func.func @main(%a: {rows} {{alpa.role = "state", alpa.updates = 0 : i64}})
        -> ({rows}, {other}, {row}) {{
        %0 = stablehlo.slice %a [0:1, 0:4] : ({rows}) -> {row}
        %1 = stablehlo.slice %a [1:2, 0:4] : ({rows}) -> {row}
        %2 = stablehlo.{again} %0, %1 : {row}
        {ops}
        return %c, %b, %2 : {rows}, {other}, {row}
      }}"""


@pytest.mark.parametrize("what", EXACT)
def test_parts_compute_the_same(what: str) -> None:
    module, expected, found = before_and_after(reading_rows(*EXACT[what]))
    assert all(parts_of(module)[0])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_sum_from_a_number_over_layers_needs_the_whole() -> None:
    """Each part would begin with the number; going on from the part before, where one number comes of it, is exact."""
    module, expected, found = before_and_after(reading_rows(*reduced("i32", "3", "add")))
    assert parts_of(module)[0] == [""]
    np.testing.assert_array_equal(found[1], expected[1])
    kind, ops, _ = reduced("i32", "3", "add")
    total = reading_rows(
        kind, ops.replace("[0]", "[0, 1]").replace("-> tensor<4xi32>", "-> tensor<i32>"), "tensor<i32>"
    )
    module, expected, found = before_and_after(total)
    assert len(parts_of(module)[0]) == 2 and found[1] == expected[1]


def test_a_batch_and_what_the_user_shards_stay_whole() -> None:
    rows = f"""%0 = stablehlo.slice %a [0:1, 0:4] : {ROWS}
        %1 = stablehlo.slice %a [1:2, 0:4] : {ROWS}
        %2 = stablehlo.multiply %0, %1 : tensor<1x4xf32>
        return %2 : tensor<1x4xf32>"""
    for marked in ('alpa.role = "batch"', 'sdy.sharding = #sdy.sharding<@m, [{}, {"x"}]>'):
        text = f"""sdy.mesh @m = <["x"=2]>
          func.func @main(%a: tensor<2x4xf32> {{{marked}}}) -> tensor<1x4xf32> {{{rows}}}"""
        assert parts_of(unstacked(text)) == ([""], [""])
    assert parts_of(unstacked(text.replace(marked, "")))[0] == ["array<i64: 0, 2, 0>", "array<i64: 1, 2, 0>"]
    results = f"-> (tensor<1x4xf32>, tensor<2x4xf32> {{{marked}}})"
    again = text.replace(marked, "").replace("-> tensor<1x4xf32> {", f"{results} {{")
    again = again.replace("return %2 : tensor<1x4xf32>", "return %2, %a : tensor<1x4xf32>, tensor<2x4xf32>")
    assert parts_of(unstacked(again)) == ([""], ["", ""])


def test_parts_that_do_not_stand_side_by_side_are_refused() -> None:
    text = print_module(planned(STEPS["scan"], 1)).replace(
        "alpa.part = array<i64: 0, 4, 0>", "alpa.part = array<i64: 1, 4, 0>", 1
    )
    with pytest.raises(CompileError, match="the others do not stand beside it"):
        InProcess(text)


def test_stacks_are_kept_whole_on_demand() -> None:
    assert all(len(w.parts) == 1 for w in Signature(read_plan(planned(STEPS["scan"], 1, unstack=False)).main).given)


def constrained(text: str) -> Any:
    options = PlanOptions(load_cluster("cpu").with_sizes(1, 2), mesh="2", microbatches=2, constrain=text)
    return read_plan(plan(module_of(STEPS["scan"]), options)).main


def test_constraints_count_the_programs_arguments() -> None:
    """The weights before the loop are argument 0, the stacks 1 to 3, of four parts each, the batch 4 and 5."""
    main = constrained("arg1=[{},{x},{}]; out2=[{},{},{x}]; arg4=[{x},{}]")
    assert {main.arguments[n].type.sharding.dims for n in range(1, 5)} == {((), ("x",), ())}
    assert {main.arguments[n].type.sharding.dims for n in range(5, 9)} == {((), (), ("x",))}
    assert main.arguments[13].type.sharding.dims == (("x",), ())
    with pytest.raises(CompileError, match="arg1 is kept in 4 parts along dimension 0"):
        constrained("arg1=[{x},{},{}]")
    with pytest.raises(CompileError, match="uses no argument 6"):
        constrained("arg6=[{},{}]")
