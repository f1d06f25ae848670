"""Programs whose loops over layers pass on, keep or update more than activations, planned in groups of layers.

Each step is planned, run in this process and compared with the original on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from on_devices import assert_close, run_all
from test_grouped_layers import (
    Weights,
    inputs_of,
    layer,
    module_of,
    names_in,
    normal,
    planned,
    quick_compiler,  # noqa: F401 (used by all tests)
    scanned,
    step_of,
)

from alpa_mlir.dialect import rounds
from alpa_mlir.models.step import TrainStep
from alpa_mlir.runtime.execute import run_plan


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
    "inference": inference(swapping),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swapping", {"stages": 2, "remat": "full"}),
        ("in_turns", {"stages": 2}),
        ("clipped_by_layer", {"stages": 2}),
        ("clipped_by_layer", {"mesh": "2"}),
        ("inference", {"stages": 2}),
    ],
    ids=str,
)
def test_plans_equal_one_device(name: str, options: dict[str, Any]) -> None:
    step = STEPS[name]
    assert not names_in(normal(step)).isdisjoint(rounds.MARKS)
    inputs = inputs_of(step)
    made = planned(step, **options)
    assert_close(run_plan(made, inputs, steps=1), run_all([module_of(step)], [inputs])[0], name)
