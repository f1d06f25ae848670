"""Adam and momentum SGD in ordinary jnp, with the f32 master copy that 16-bit training needs.

Adam (Kingma & Ba 2015, algorithm 1): m = β₁m + (1-β₁)g, v = β₂v + (1-β₂)g²,
p -= lr · (m / (1-β₁ᵗ)) / (√(v / (1-β₂ᵗ)) + ε). All state is f32 whatever the parameters' type.
ε = 1e-5 as in Llama 2 (arXiv:2307.09288): with 1e-8 a gradient that is only rounding noise makes a full step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .step import Source, StepResult, Training, Tree

BETA1, BETA2, EPSILON, MOMENTUM = 0.9, 0.999, 1e-5, 0.9


class OptimizerState(NamedTuple):
    """count: steps taken (i32). first: m, or SGD's momentum. second: v, absent for SGD.
    master: f32 parameters, absent where the parameters themselves serve."""

    count: jax.Array
    first: Tree
    second: Tree
    master: Tree


def initial_state(config: Training, params: Tree, source: Source) -> OptimizerState:
    """The state before the first step for `params`, as arrays or as shapes, depending on `source`."""

    def zeros() -> Tree:
        return jax.tree.map(lambda leaf: source.full(leaf.shape, config.moments, 0.0), params)

    keeps_master = config.master and config.dtype != "float32"
    return OptimizerState(
        count=source.full((), "int32", 0),
        first=zeros(),
        second=zeros() if config.optimizer == "adam" else None,
        master=jax.tree.map(lambda leaf: source.cast(leaf, "float32"), params) if keeps_master else None,
    )


def apply_gradients(
    config: Training, params: Tree, state: OptimizerState, gradients: Tree
) -> tuple[Tree, OptimizerState]:
    """One update. `gradients` are those of the scaled loss, in the parameters' type."""
    if config.sums == config.dtype != "float32":
        # Rounding is not linear: what is added up over microbatches lies before it, in this type.
        bits = jnp.finfo(config.dtype)
        gradients = jax.tree.map(lambda g: jax.lax.reduce_precision(g, bits.nexp, bits.nmant), gradients)
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / config.loss_scale, gradients)
    old = jax.tree.map(lambda p: p.astype(jnp.float32), params) if state.master is None else state.master
    count, before = state.count + 1, _whole(state.first)
    if config.optimizer == "adam":
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, before, gradients)
        second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, _whole(state.second), gradients)
        steps = count.astype(jnp.float32)
        correct1, correct2 = 1 - BETA1**steps, 1 - BETA2**steps
        new = jax.tree.map(
            lambda p, m, v: p - config.learning_rate * (m / correct1) / (jnp.sqrt(v / correct2) + EPSILON),
            old,
            first,
            second,
        )
    else:
        first = jax.tree.map(lambda m, g: MOMENTUM * m + g, before, gradients)
        second = None
        new = jax.tree.map(lambda p, m: p - config.learning_rate * m, old, first)
    master = None if state.master is None else new
    params = jax.tree.map(lambda p, n: n.astype(p.dtype), params, new)
    kept = [jax.tree.map(lambda m: m.astype(config.moments), tree) for tree in (first, second)]
    return params, OptimizerState(count, *kept, master)


def _whole(moments: Tree) -> Tree:
    return jax.tree.map(lambda m: m.astype(jnp.float32), moments)


def step_function(name: str, config: Training, loss: Callable[..., jax.Array]) -> Callable[..., StepResult]:
    """The training step of `loss(params, *batch) -> f32 scalar`.

    Returns step(params, optimizer, *batch) -> StepResult, named `name` (the exported module is @jit_NAME).
    """

    def step(params: Tree, optimizer: OptimizerState, *batch: jax.Array) -> StepResult:
        value, gradients = jax.value_and_grad(lambda p: loss(p, *batch) * config.loss_scale)(params)
        params, optimizer = apply_gradients(config, params, optimizer, gradients)
        return StepResult(params, optimizer, value / config.loss_scale)

    step.__name__ = name
    return step
