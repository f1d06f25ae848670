"""Loops over layers, planned in groups, whose rounds need sums over all examples: these become loops of their own.

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
    LAYERS,
    Weights,
    descent,
    inputs_of,
    layer,
    module_of,
    names_in,
    normal,
    planned,
    scanned,
    step_of,
)

from alpa_mlir.dialect import rounds
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.runtime.execute import run_plan

pytestmark = pytest.mark.usefixtures("quick_compiler")

Loss = Callable[[Weights, Any, Any], Any]


def loss_of(body: Callable[..., Any], start: Callable[[Weights], Any], rest: Any = None) -> Loss:
    """The loss of a scan that hands on activations and a sum, which is part of the loss."""

    def loss(w: Weights, x: Any, y: Any) -> Any:
        h, total = jax.lax.scan(body, (x @ w["first"], start(w)), w["layers"] if rest is None else (w["layers"], rest))[
            0
        ]
        return jnp.mean((h - y) ** 2) + 0.001 * total

    return loss


def adding(term: Callable[[Weights], Any], factor: float = 1.0) -> Callable[..., Any]:
    """A layer that adds a sum over examples and a term of its own."""

    def body(carry: Any, own: Weights) -> tuple[Any, None]:
        h, total = carry
        h, _ = layer(h, own)
        return (h, factor * total + jnp.sum(h * h) + term(own)), None

    return body


def nothing(own: Weights) -> float:
    return 0.0


def decay(own: Weights) -> Any:
    return jnp.sum(jnp.sin(own["in"]) ** 2)


def largest(carry: Any, own: Weights) -> tuple[Any, None]:
    h, total = carry
    h, _ = layer(h, own)
    return (h, jnp.maximum(total, jax.lax.stop_gradient(jnp.max(h)))), None


def numbered(carry: Any, given: Any) -> tuple[Any, None]:
    """What no example changes is needed on both sides."""
    own, n = given
    h, total = carry
    h = layer(h, own)[0] / n
    return (h, total + n * jnp.sum(h * h) + jnp.log(n) * jnp.sum(own["scale"])), None


def one(w: Weights) -> float:
    return 1.0


LOSSES: dict[str, Loss] = {
    "starting_from_one": loss_of(adding(nothing), one),
    "starting_from_weights": loss_of(adding(nothing), lambda w: jnp.sum(w["first"] ** 2)),
    "with_weight_decay": loss_of(adding(decay), lambda w: 0.0),
    "rematerialised": loss_of(jax.checkpoint(adding(decay)), one),
    "growing": loss_of(adding(decay, 1.1), one),
    "largest": loss_of(largest, lambda w: -jnp.inf),
    "numbered": loss_of(numbered, one, jnp.arange(1.0, LAYERS + 1)),
}


def with_roots_of_sums(w: Weights, x: Any, y: Any) -> Any:
    def body(h: Any, own: Weights) -> tuple[Any, Any]:
        h, _ = layer(h, own)
        return h, jax.lax.stop_gradient(jnp.sqrt(1 + jnp.sum(h * h)))

    h, roots = jax.lax.scan(body, x @ w["first"], w["layers"])
    return jnp.mean((h - y) ** 2) + 0.001 * roots.sum()


def by_counts(w: Weights, x: Any, y: Any) -> Any:
    """Each layer divides by a count over the whole batch, which depends on no weights."""

    def body(h: Any, given: Any) -> tuple[Any, None]:
        own, n = given
        mask = (jnp.abs(y) > 0.01 * n).astype(jnp.float32)
        return h + layer(h, own)[0] * mask / (1 + mask.sum(0)), None

    h = jax.lax.scan(body, x @ w["first"], (w["layers"], jnp.arange(1.0, LAYERS + 1)))[0]
    return jnp.mean((h - y) ** 2)


LOSSES |= {"with_roots_of_sums": with_roots_of_sums, "by_counts": by_counts}


def step_with(name: str, loss: Loss) -> TrainStep:
    def step(w: Weights, x: Any, y: Any) -> tuple[Any, ...]:
        value, gradients = jax.value_and_grad(loss)(w, x, y)
        return descent(w, gradients), value

    like = step_of(scanned)
    return TrainStep(name, step, like.arguments, like.roles, like.updates)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_over_examples_are_finished_in_a_loop_of_the_update(name: str) -> None:
    step = step_with(name, LOSSES[name])
    inputs = inputs_of(step)
    made = planned(step, stages=2)
    assert_close(run_plan(made, inputs, steps=1), run_all([module_of(step)], [inputs])[0], name)


def test_what_both_loops_need_is_in_both() -> None:
    module = normal(step_with("growing", LOSSES["growing"]), ",alpa-unstack,alpa-microbatch{count=2}")
    assert not names_in(module).isdisjoint(rounds.MARKS)
    run_pipeline(module, "alpa-roll", [])
    assert names_in(module).isdisjoint(rounds.MARKS)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_statistics_of_microbatches_go_through_rounds(start: float) -> None:
    """Each layer is scaled by a sum over examples that grows from layer to layer."""

    def body(carry: Any, own: Weights) -> tuple[Any, None]:
        h, total = carry
        h = layer(h, own)[0] * jnp.cos(total)
        return (h, total + jnp.mean(h) + 0.1), None

    step = step_with("scaled", loss_of(body, lambda w: start))
    inputs = inputs_of(step)
    made = planned(step, stages=2, allow_per_microbatch_statistics=True)
    alone = module_of(step)
    run_pipeline(alone, "alpa-normalize,alpa-microbatch{count=2 allow-per-microbatch-statistics}", [])
    assert_close(run_plan(made, inputs, steps=1), run_all([alone], [inputs])[0], "scaled")
