"""Layers of programs that are no plain chains: the assignment's properties, and two stages equal to one device.

Encoder and decoder, tied embeddings, skip connections, auxiliary losses, rematerialised layers (`jax.checkpoint`),
recurrent nets, by `scan` and unrolled. Each step is cut into layers, planned in two stages of one device each and run
in this process, two microbatches at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import assert_close, random_inputs, run_all
from test_layers import BACKWARD, FORWARD, check_data_flow, check_gradients, layered

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.plan import read_plan
from alpa_mlir.lowering import lower
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime.execute import run_plan

BATCH, LENGTH, WIDTH, WORDS = 4, 6, 8, 10
Weights = dict[str, Any]


def matrices(count: int, *shape: int) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape or (WIDTH, WIDTH), jnp.float32) for _ in range(count)]


def attend(queries: Any, keys: Any) -> Any:
    scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", queries, keys) / WIDTH**0.5)
    return jnp.einsum("bts,bsd->btd", scores, keys)


def encoder_decoder(w: Weights, x: Any, y: Any) -> Any:
    """The encoder's result enters every layer of the decoder."""
    for matrix in w["encoder"]:
        x = x + jnp.tanh(attend(x, x) @ matrix)
    h = y
    for matrix, cross in zip(w["decoder"], w["cross"], strict=True):
        h = h + jnp.tanh(attend(h, h) @ matrix)
        h = h + jnp.tanh(attend(h, x @ cross))
    return jnp.mean((h - y) ** 2)


def tied_embeddings(w: Weights, tokens: Any, targets: Any) -> Any:
    """The first layer looks words up in the matrix that the last one scores them with."""
    h = w["embedding"][tokens]
    for matrix in w["layers"]:
        h = h + jnp.tanh(h @ matrix)
    scores = jax.nn.log_softmax(h @ w["embedding"].T)
    return -jnp.mean(jnp.sum(scores * jax.nn.one_hot(targets, WORDS), -1))


def skip_connections(w: Weights, x: Any, y: Any) -> Any:
    """What goes down comes up again, as in a U-net: each level's activations skip all the deeper ones."""
    kept = []
    for matrix in w["down"]:
        x = jnp.tanh(x @ matrix)
        kept.append(x)
    for matrix in w["up"]:
        x = jnp.tanh(jnp.concatenate([x, kept.pop()], -1) @ matrix)
    return jnp.mean((x - y) ** 2)


def auxiliary_losses(w: Weights, x: Any, y: Any) -> Any:
    """Every layer adds to the loss: the balance of a gate, a classifier on the way."""
    extra = 0.0
    for matrix, gate in zip(w["layers"], w["gates"], strict=True):
        x = jnp.tanh(x @ matrix)
        extra += jnp.mean(jax.nn.softmax(x @ gate) ** 2)
    return jnp.mean((x - y) ** 2) + 0.1 * extra


def rematerialised(w: Weights, x: Any, y: Any) -> Any:
    """Layers that keep only their inputs: the backward pass holds their forward ops once more."""

    @jax.checkpoint
    def layer(matrix: Any, x: Any) -> Any:
        return jnp.tanh(jnp.sin(x @ matrix) @ matrix.T)

    for matrix in w["layers"]:
        x = layer(matrix, x)
    return jnp.mean((x - y) ** 2)


def cell(w: Weights, h: Any, x: Any) -> Any:
    return jnp.tanh(x @ w["input"] + h @ w["hidden"])


def recurrent_scan(w: Weights, x: Any, y: Any) -> Any:
    """A projection, a loop over the positions, a projection."""
    inputs = jnp.swapaxes(jnp.tanh(x @ w["before"]), 0, 1)
    last, _ = jax.lax.scan(lambda h, x: (cell(w, h, x), None), jnp.zeros((x.shape[0], WIDTH)), inputs)
    return jnp.mean((last @ w["after"] - y[:, 0]) ** 2)


def recurrent_unrolled(w: Weights, x: Any, y: Any) -> Any:
    """The same cell in every layer: its parameters are used, and their gradients made, in all of them."""
    h = jnp.zeros((x.shape[0], WIDTH))
    for t in range(LENGTH):
        h = cell(w, h, x[:, t])
    return jnp.mean((h @ w["after"] - y[:, 0]) ** 2)


FLOATS = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
(SQUARE,) = matrices(1)
CASES: dict[Callable[..., Any], tuple[Weights, Any]] = {
    encoder_decoder: ({"encoder": matrices(2), "decoder": matrices(2), "cross": matrices(2)}, FLOATS),
    tied_embeddings: ({"embedding": matrices(1, WORDS, WIDTH)[0], "layers": matrices(3)}, TOKENS),
    skip_connections: ({"down": matrices(2), "up": matrices(2, 2 * WIDTH, WIDTH)}, FLOATS),
    auxiliary_losses: ({"layers": matrices(4), "gates": matrices(4)}, FLOATS),
    rematerialised: ({"layers": matrices(3)}, FLOATS),
    recurrent_scan: ({"before": SQUARE, "input": SQUARE, "hidden": SQUARE, "after": SQUARE}, FLOATS),
    recurrent_unrolled: ({"input": SQUARE, "hidden": SQUARE, "after": SQUARE}, FLOATS),
}


def step_of(loss: Callable[..., Any]) -> TrainStep:
    """Gradient descent on a loss."""

    def step(w: Weights, x: Any, y: Any) -> tuple[Any, ...]:
        value, gradients = jax.value_and_grad(loss)(w, x, y)
        return jax.tree.map(lambda p, g: p - 0.1 * g, w, gradients), value

    w, batch = CASES[loss]
    return TrainStep(loss.__name__, step, (w, batch, batch), ("state", "batch", "batch"), ((0, 0),))


@pytest.mark.parametrize("loss", CASES, ids=lambda f: f.__name__)
def test_data_flows_down_in_the_backward_pass(loss: Callable[..., Any]) -> None:
    made = layered(step_of(loss), 2)
    check_data_flow(made)
    check_gradients(made)
    ahead, behind = made.contractions(FORWARD), made.contractions(BACKWARD)
    assert sorted(ahead) == [0, 1] and set(behind) <= {0, 1}
    assert behind[1] >= ahead[1]  # what follows the cut goes back through it


def test_rematerialised_ops_belong_to_the_layer_that_they_repeat() -> None:
    made = layered(step_of(rematerialised), 3)
    ahead, behind = made.contractions(FORWARD), made.contractions(BACKWARD)
    assert ahead == {0: 2, 1: 2, 2: 2}
    assert {layer: behind[layer] - 4 for layer in (1, 2)} == {1: 2, 2: 2}  # four of gradients, two done again
    assert behind[0] == 5  # the first layer's input needs no gradient


def test_a_shared_cell_has_gradients_in_every_layer() -> None:
    made = layered(step_of(recurrent_unrolled), 3)
    assert sorted(made.contractions(BACKWARD)) == [0, 1, 2]


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("loss", CASES, ids=lambda f: f.__name__)
def test_two_stages_equal_one_device(loss: Callable[..., Any]) -> None:
    module = parse_module(print_module(lower(step_of(loss))), make_context())
    options = PlanOptions(
        load_cluster("cpu").with_sizes(1, 2), stages=2, microbatches=2, layers=2, schedule="1f1b", remat="none"
    )
    planned = plan(module, options)
    assert len(read_plan(planned).stages) == 2
    inputs = random_inputs(module, np.random.default_rng(0))
    assert_close(run_plan(planned, inputs), run_all([module], [inputs])[0], loss.__name__)
