"""alpa-microbatch on whole train steps: transformers, mixtures of experts, batch norm, flax and haiku modules."""

import dataclasses

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from microbatch_oracle import bindings_of, check, close, execute, level1, microbatched, op_names

from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.models import MODELS

KEY = np.random.default_rng(1)
GPT = {"layers": 1, "hidden": 16, "heads": 2, "sequence": 4, "vocabulary": 32}
MOE = {**GPT, "layers": 2, "group": 4}


def draw(*shape: int) -> np.ndarray:
    return KEY.standard_normal(shape).astype(np.float32)


def built(name: str, **options: object) -> tuple:
    """A built-in train step with plain SGD: step function, numbers, roles.

    (Adam divides a gradient by its own size: where the gradient is rounding noise, so is the step.)
    """
    model = MODELS[name]
    config = dataclasses.replace(model.config(), optimizer="sgd", batch=8, **options)
    step = model.build(config)
    return step.function, model.initial_values(config, 0), step.roles


@pytest.mark.parametrize(
    ("name", "options"),
    [("gpt", GPT), ("gpt", {**GPT, "shift": True, "remat": True}), ("moe", MOE), ("moe", {**MOE, "shift": True})],
    ids=["gpt", "gpt-shifted-remat", "moe", "moe-shifted"],
)
def test_train_steps_are_equal(name: str, options: dict) -> None:
    check(*built(name, **options), counts=(4,), tolerance=2e-5)


def test_tied_embedding_is_accumulated_once() -> None:
    """Its two gradients (a scatter and a product) are added in the microbatch: one sum of the table's size."""
    function, numbers, roles = built("gpt", **GPT)
    module, _ = level1(function, numbers, roles)
    made = microbatched(module, 4)
    table = f"tensor<{GPT['vocabulary']}x{GPT['hidden']}xf32>"
    heads = str(functions(made)["microbatch"]).split("{\n", 1)[0].split("->")[1]
    assert heads.count(table) == 1
    assert "stablehlo.scatter" not in op_names(made, "update")


def test_adam_stays_in_the_update() -> None:
    """Square roots of second moments are taken once; gradients are the only sums besides the loss."""
    model = MODELS["gpt"]
    step = model.build(model.config(**GPT))
    module, _ = level1(step.function, model.initial_values(model.config(**GPT), 0), step.roles)
    made = microbatched(module, 2)
    parameters = len(jax.tree.leaves(step.arguments[0]))
    assert len(bindings_of(made, "microbatch")[1]) == parameters + 1
    assert op_names(made, "update").count("stablehlo.sqrt") >= parameters
    assert not any("state" in b for b in bindings_of(made, "microbatch")[1])


def norm_loss(w: dict, running: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
    h = x @ w["a"]
    mean, variance = h.mean(0), h.var(0)
    h = (h - mean) / jnp.sqrt(variance + 1e-3) * w["s"]
    return jnp.mean((jnp.tanh(h) @ w["c"] - y) ** 2), 0.9 * running + 0.1 * variance


def norm_step(w: dict, running: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
    (loss, running), g = jax.value_and_grad(norm_loss, has_aux=True)(w, running, x, y)
    return jax.tree.map(lambda p, d: p - 0.1 * d, w, g), running, loss


def norm_arguments() -> list:
    return [{"a": draw(6, 5), "s": draw(5), "c": draw(5, 3)}, draw(5), draw(8, 6), draw(8, 3)]


NORM_ROLES = ["state", "state", "batch", "batch"]


def test_batch_norm_mixes_examples() -> None:
    module, inputs = level1(norm_step, norm_arguments(), NORM_ROLES)
    with pytest.raises(CompileError, match="allow-per-microbatch-statistics") as error:
        microbatched(module, 2)
    assert "test_microbatch_models.py" in error.value.location
    close(execute(microbatched(module, 1), inputs), execute(module, inputs))


@pytest.mark.parametrize("count", [2, 4])
def test_batch_norm_with_statistics_of_each_microbatch(count: int) -> None:
    """The reference runs the step on each microbatch by itself and averages what it returns."""
    arguments = norm_arguments()
    module, inputs = level1(norm_step, arguments, NORM_ROLES)
    made = microbatched(module, count, allow_per_microbatch_statistics=True)
    size = 8 // count
    each = [norm_step(*arguments[:2], *(a[i * size : (i + 1) * size] for a in arguments[2:])) for i in range(count)]
    average = [np.mean([np.asarray(v) for v in vs], axis=0) for vs in zip(*map(jax.tree.leaves, each), strict=True)]
    close(execute(made, inputs), average)


def test_accumulation_by_hand_gives_the_same() -> None:
    """Against JAX's own loop over microbatches with summed gradients."""

    def loss(w: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((jnp.tanh(x @ w["a"]) @ w["c"] - y) ** 2)

    def step(w: dict, x: jax.Array, y: jax.Array) -> tuple:
        value, g = jax.value_and_grad(loss)(w, x, y)
        return jax.tree.map(lambda p, d: p - 0.1 * d, w, g), value

    w, x, y = {"a": draw(6, 5), "c": draw(5, 3)}, draw(8, 6), draw(8, 3)
    total, values = jax.tree.map(np.zeros_like, w), 0.0
    for i in range(4):
        value, g = jax.value_and_grad(loss)(w, x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2])
        total, values = jax.tree.map(lambda a, b: a + b / 4, total, g), values + value / 4
    expected = jax.tree.leaves((jax.tree.map(lambda p, d: p - 0.1 * d, w, total), values))
    module, inputs = level1(step, [w, x, y], ["state", "batch", "batch"])
    close(execute(microbatched(module, 4), inputs), [np.asarray(v, np.float32) for v in expected])


class Net(nn.Module):
    """A small flax net with convolution, layer norm, pooling and attention."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.gelu(nn.Conv(8, (3, 3))(x))
        h = nn.max_pool(h, (2, 2), (2, 2))
        h = nn.LayerNorm()(h.reshape(h.shape[0], -1, 8))
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(h)
        return nn.Dense(5)(h.mean(1))


def test_flax_step_with_clipping_and_momentum() -> None:
    net, tx = Net(), optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9))
    x, labels = draw(8, 4, 4, 3), KEY.integers(0, 5, 8).astype(np.int32)
    params = net.init(jax.random.PRNGKey(0), x)

    def step(params: dict, state: tuple, x: jax.Array, labels: jax.Array) -> tuple:
        def loss(p: dict) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(net.apply(p, x), labels).mean()

        value, g = jax.value_and_grad(loss)(params)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state, value

    check(step, [params, tx.init(params), x, labels], ["state", "state", "batch", "batch"], counts=(2,))


def test_haiku_step_with_a_recurrent_core() -> None:
    def forward(x: jax.Array) -> jax.Array:
        core = hk.LSTM(6)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(3)(out)

    net = hk.without_apply_rng(hk.transform(forward))
    x, y = draw(8, 4, 5), draw(8, 4, 3)
    params = net.init(jax.random.PRNGKey(0), x)

    def step(params: dict, x: jax.Array, y: jax.Array) -> tuple:
        value, g = jax.value_and_grad(lambda p: jnp.mean((net.apply(p, x) - y) ** 2))(params)
        return jax.tree.map(lambda p, d: p - 0.1 * d, params, g), value

    check(step, [params, x, y], ["state", "batch", "batch"], counts=(4,))
