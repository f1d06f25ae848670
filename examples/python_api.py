"""The Python API: a jax training step that runs as a plan on all devices of one process.

    python examples/python_api.py

Four CPU devices stand for a machine.  `parallelize` exports the step, plans it for them and runs it; on the same
arguments `jax.jit` gives the same numbers.  `plan` alone makes a plan for a cluster that is not at hand.
"""

import jax
import jax.numpy as jnp

import alpa_mlir

LAYERS, WIDTH, BATCH = 4, 64, 32


def loss(params: list[jax.Array], x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of a perceptron with dropout; x and y are (BATCH, WIDTH)."""
    for layer, weight in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(key, layer), 0.9, x.shape)
        x = jnp.where(keep, jnp.tanh(x @ weight) / 0.9, 0.0)
    return jnp.mean((x - y) ** 2)


def step(params: list[jax.Array], key: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
    """One step of gradient descent: new parameters, new key, loss."""
    now, after = jax.random.split(key)
    value, gradients = jax.value_and_grad(loss)(params, x, y, now)
    return [p - 0.1 * g for p, g in zip(params, gradients, strict=True)], after, value


def start() -> tuple:
    """Parameters, key and a batch."""
    keys = jax.random.split(jax.random.key(0), LAYERS + 2)
    params = [jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in keys[:LAYERS]]
    x, y = (jax.random.normal(k, (BATCH, WIDTH)) for k in keys[LAYERS:])
    return params, jax.random.key(1), x, y


def train(function, steps: int = 5) -> list[float]:
    """The losses of some steps on one batch."""
    params, key, x, y = start()
    losses = []
    for _ in range(steps):
        params, key, value = function(params, key, x, y)
        losses.append(float(value))
    return losses


def main() -> None:
    """Train twice and compare; then plan for a cluster."""
    alpa_mlir.use_cpu_devices(4)
    roles = ("state", "state", "batch", "batch")
    parallel = alpa_mlir.parallelize(step, roles=roles, stages=2, microbatches=2)
    print(parallel.plan_for(*start()))
    found, expected = train(parallel), train(jax.jit(step))
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        print(f"step {number}: loss {a:.6f}, with jax.jit {b:.6f}")
        assert abs(a - b) < 1e-5
    planned = alpa_mlir.plan(step, "a100", arguments=start(), roles=roles, devices_per_node=4, mesh="4")
    print(planned)


if __name__ == "__main__":
    main()
