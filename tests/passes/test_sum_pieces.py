"""Sums over several layers: each layer adds up its own part, @update joins them, a stage joins what it makes itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.mlir import ir
from on_devices import assert_close, random_inputs, run_all
from test_layer_structures import recurrent_unrolled, step_of, tied_embeddings

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import bindings
from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.dialect.sharding import result_attributes
from alpa_mlir.lowering import lower
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes import all as every_pass
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.inter.placement import place
from alpa_mlir.passes.inter.sum_pieces import merge, separate
from alpa_mlir.passes.pipeline import parse_pipeline, run_pipeline
from alpa_mlir.planner import PlanOptions, plan

LAYERS = 3
PIECES = {tied_embeddings: 1, recurrent_unrolled: 4}
"""Sums more than before: an embedding in two layers, two matrices of a cell in three."""
SHARED = {tied_embeddings: 1, recurrent_unrolled: 2}
"""Parameters that are used in several layers."""


def normal(loss: Callable[..., Any]) -> ir.Module:
    assert every_pass
    module = parse_module(print_module(lower(step_of(loss))), make_context())
    run_pipeline(module, parse_pipeline("alpa-normalize"), [])
    return module


def staged(module: ir.Module, microbatches: int) -> ir.Module:
    made = clone_module(module)
    text = f"alpa-microbatch{{count={microbatches}}},alpa-layers{{count={LAYERS}}}"
    run_pipeline(made, parse_pipeline(text), [])
    return made


def sums(module: ir.Module) -> int:
    yields = bindings(result_attributes(functions(module)["microbatch"]))
    assert len(set(yields)) == len(yields)
    return len(yields)


def microbatched(module: ir.Module) -> ir.Module:
    made = clone_module(module)
    run_pipeline(made, parse_pipeline("alpa-microbatch{count=2}"), [])
    return made


@pytest.mark.parametrize("loss", PIECES, ids=lambda f: f.__name__)
def test_each_layer_adds_up_its_own_part(loss: Callable[..., Any]) -> None:
    module = normal(loss)
    made = staged(module, 2)
    assert sums(made) == sums(microbatched(module)) + PIECES[loss]
    assert not separate(clone_module(made))  # nothing is left to do
    whole = clone_module(made)
    place(whole, [0] * LAYERS)
    merge(whole)
    assert sums(whole) == sums(microbatched(module))
    halves = clone_module(made)
    place(halves, [0] * (LAYERS - 1) + [1])
    merge(halves)
    assert sums(halves) == sums(microbatched(module)) + SHARED[loss]
    inputs = random_inputs(module, np.random.default_rng(1))
    expected, *found = run_all([module, made, whole, halves], [inputs] * 4)
    for results in found:
        assert_close(results, expected, loss.__name__)


def test_a_sum_that_is_returned_is_joined_too() -> None:
    """A loss to which every layer adds: nothing else in @update reads it."""

    def losses(w: dict, x: jnp.ndarray, y: jnp.ndarray) -> jnp.ndarray:
        total = jnp.zeros(())
        for matrix in w["layers"]:
            x = jnp.tanh(x @ matrix)
            total = total + jnp.mean((x - y) ** 2)
        return total

    module = lowered_loss(losses)
    made = staged(module, 2)
    assert sums(made) > sums(microbatched(module))
    halves = clone_module(made)
    place(halves, [0] * (LAYERS - 1) + [1])
    merge(halves)
    inputs = random_inputs(module, np.random.default_rng(1))
    expected, *found = run_all([module, made, halves], [inputs] * 3)
    for results in found:
        assert_close(results, expected, "losses")


def lowered_loss(loss: Callable[..., Any]) -> ir.Module:
    """A step that returns a loss alone."""
    weights = {"layers": [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * LAYERS}
    batch = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    step = TrainStep(
        "losses", lambda w, x, y: (w, loss(w, x, y)), (weights, batch, batch), ("state", "batch", "batch"), ((0, 0),)
    )
    module = parse_module(print_module(lower(step)), make_context())
    run_pipeline(module, parse_pipeline("alpa-normalize"), [])
    return module


def test_one_microbatch_needs_no_parts() -> None:
    module = normal(tied_embeddings)
    assert sums(staged(module, 1)) == sums(microbatched(module))


def test_a_sum_that_is_rounded_afterwards_stays_whole() -> None:
    text = """
      func.func private @microbatch(%x: tensor<8xf32> {alpa.binding = "batch:0", alpa.dim = 0 : i64}) ->
          (tensor<8xf16> {alpa.binding = "sum:0"}) {
        %a = stablehlo.sine %x {alpa.layer = 0 : i64, alpa.phase = "backward"} : tensor<8xf32>
        %b = stablehlo.cosine %x {alpa.layer = 1 : i64, alpa.phase = "backward"} : tensor<8xf32>
        %c = stablehlo.add %a, %b {alpa.layer = 0 : i64, alpa.phase = "backward"} : tensor<8xf32>
        %d = stablehlo.convert %c {alpa.layer = 0 : i64, alpa.phase = "backward"} : (tensor<8xf32>) -> tensor<8xf16>
        return %d : tensor<8xf16>
      }
      func.func private @update(%g: tensor<8xf16> {alpa.binding = "sum:0"}) ->
          (tensor<8xf16> {alpa.binding = "out:0"}) {
        return %g : tensor<8xf16>
      }
      func.func public @main(%x: tensor<16xf32>) -> tensor<8xf16> {
        %c = stablehlo.constant dense<0.0> : tensor<8xf16>
        return %c : tensor<8xf16>
      }
    """
    module = parse_module(text, make_context())
    alpa.set_int(module.operation, alpa.MICROBATCHES, 2)
    assert not separate(module)


def test_a_tied_embeddings_gradient_crosses_once_a_step() -> None:
    module = parse_module(print_module(lower(step_of(tied_embeddings))), make_context())
    cluster = load_cluster("cpu").with_sizes(1, 2)
    options = PlanOptions(cluster, stages=2, microbatches=2, layers=LAYERS, schedule="1f1b", remat="none")
    planned = plan(module, options)
    crossing = [op for op in alpa.walk(planned.operation) if op.name == "mpmd.transfer"]
    embedding = [op for op in crossing if "tensor<10x8xf32>" in str(op.results[0].type)]
    assert sorted(alpa.get_string(op, alpa.PHASE) or "" for op in embedding) == ["prologue", "update"]
    assert any(alpa.get_string(op, alpa.PHASE) == "backward" for op in crossing)
