"""Export a Flax training step with plain jax: what a user who has never heard of alpa_mlir would write.

    python examples/export_flax.py > flax.mlir
    alpa-mlir-plan flax.mlir --cluster … -o plan.mlir

Donating the state (`donate_argnums=0`) marks it: jax writes `tf.aliasing_output` on the arguments, and every argument
that is not donated to a result is taken for data. `keep_unused=True` keeps argument numbers as they are in Python.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

BATCH, FEATURES, CLASSES = 32, 64, 8


class Mlp(nn.Module):
    """Three dense layers with a layer norm in between."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, CLASSES) of features (B, FEATURES)."""
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(128)(nn.LayerNorm()(x)))
        return nn.Dense(CLASSES)(x)


def create(seed: int = 0) -> TrainState:
    """Parameters and AdamW state."""
    model = Mlp()
    params = model.init(jax.random.key(seed), jnp.zeros((1, FEATURES)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-3))


def step(state: TrainState, features: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    """One step on features (B, FEATURES) and labels (B,): the new state and the loss."""

    def loss(params: dict) -> jax.Array:
        logits = state.apply_fn({"params": params}, features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=gradients), value


def arguments() -> tuple:
    """Abstract arguments of `step`."""
    features = jax.ShapeDtypeStruct((BATCH, FEATURES), jnp.float32)
    return jax.eval_shape(create), features, jax.ShapeDtypeStruct((BATCH,), jnp.int32)


if __name__ == "__main__":
    lowered = jax.jit(step, donate_argnums=0, keep_unused=True).lower(*arguments())
    sys.stdout.write(lowered.as_text())
