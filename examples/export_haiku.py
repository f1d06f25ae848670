"""Export a Haiku training step: a small convolutional net with batch norm, whose running statistics are state too.

    python examples/export_haiku.py > haiku.mlir            with plain jax
    alpa-mlir-export examples/export_haiku.py:step -o haiku.mlir     the same with roles written on the arguments

The second form finds `step_arguments` beside `step`, and takes what `jax.jit` donates for state.
"""

import sys
from functools import partial
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

BATCH, IMAGE, CLASSES = 16, 16, 8


@hk.transform_with_state
def network(images: jax.Array, training: bool) -> jax.Array:
    """Logits (B, CLASSES) of images (B, IMAGE, IMAGE, 3)."""
    x = images
    for channels in (16, 32):
        x = hk.Conv2D(channels, 3, stride=2, with_bias=False)(x)
        x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, training)
        x = jax.nn.relu(x)
    return hk.Linear(CLASSES)(x.mean((1, 2)))


OPTIMIZER = optax.adam(1e-3)


@partial(jax.jit, donate_argnums=(0, 1, 2), keep_unused=True)
def step(params: hk.Params, statistics: hk.State, optimizer: Any, images: jax.Array, labels: jax.Array) -> tuple:
    """One step: new parameters, running statistics and optimizer state, and the loss."""

    def loss(p: hk.Params) -> tuple[jax.Array, hk.State]:
        logits, new = network.apply(p, statistics, None, images, True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, optimizer = OPTIMIZER.update(gradients, optimizer)
    return optax.apply_updates(params, updates), statistics, optimizer, value


def step_arguments() -> tuple:
    """Abstract arguments of `step`."""
    images = jax.ShapeDtypeStruct((BATCH, IMAGE, IMAGE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    params, statistics = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, True), images)
    return params, statistics, jax.eval_shape(OPTIMIZER.init, params), images, labels


if __name__ == "__main__":
    sys.stdout.write(step.lower(*step_arguments()).as_text())
