"""alpa-microbatch against one-device XLA: the same numbers for any number of microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.mlir import ir
from microbatch_oracle import bindings_of, check, close, execute, level1, microbatched, op_names

from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import argument_attributes, set_argument_attributes

KEY = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return KEY.standard_normal(shape).astype(np.float32)


def mlp_loss(w: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ w["a"] + w["b"])
    return jnp.mean((h @ w["c"] - y) ** 2)


def mlp_step(w: dict, x: jax.Array, y: jax.Array) -> tuple:
    loss, g = jax.value_and_grad(mlp_loss)(w, x, y)
    return jax.tree.map(lambda p, d: p - 0.1 * d, w, g), loss


def mlp_weights() -> dict:
    return {"a": draw(6, 5), "b": draw(5), "c": draw(5, 3)}


def test_mlp_trains_alike() -> None:
    made = check(mlp_step, [mlp_weights(), draw(8, 6), draw(8, 3)], ["state", "batch", "batch"])
    arguments, results = bindings_of(made[4], "microbatch")
    assert [r.split(":")[0] for r in results] == ["sum"] * 4
    assert arguments.count("index") == 0


def test_finished_values_fall_into_the_update() -> None:
    """Global-norm clipping is nonlinear in the gradients: it belongs after the last microbatch."""

    def step(w: dict, x: jax.Array, y: jax.Array) -> tuple:
        loss, g = jax.value_and_grad(mlp_loss)(w, x, y)
        norm = jnp.sqrt(sum(jnp.sum(v * v) for v in jax.tree.leaves(g)))
        scale = jnp.minimum(1.0, 0.5 / norm)
        return jax.tree.map(lambda p, d: p - 0.1 * scale * d, w, g), loss, norm

    made = check(step, [mlp_weights(), draw(8, 6), draw(8, 3)], ["state", "batch", "batch"])
    assert "stablehlo.sqrt" in op_names(made[4], "update") and "stablehlo.sqrt" not in op_names(made[4], "microbatch")


def test_learning_rate_is_applied_once() -> None:
    made = check(mlp_step, [mlp_weights(), draw(8, 6), draw(8, 3)], ["state", "batch", "batch"], counts=(2,))
    assert op_names(made[2], "update").count("stablehlo.multiply") >= 3


def test_token_count_is_taken_beforehand() -> None:
    def loss(w: dict, x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ w["a"] + w["b"]) @ w["c"]
        return jnp.sum(jnp.sum((h - y) ** 2, -1) * mask) / jnp.sum(mask)

    def step(w: dict, *batch: jax.Array) -> tuple:
        value, g = jax.value_and_grad(loss)(w, *batch)
        return jax.tree.map(lambda p, d: p - 0.1 * d, w, g), value

    mask = (KEY.random(8) > 0.4).astype(np.float32)
    made = check(step, [mlp_weights(), draw(8, 6), draw(8, 3), mask], ["state", "batch", "batch", "batch"])
    _, results = bindings_of(made[4], "prologue")
    assert results == ["prologue:0"]
    assert "prologue" not in functions(made[1])


def test_per_example_outputs_are_stacked() -> None:
    def forward(w: dict, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.tanh(x @ w["a"] + w["b"]) @ w["c"])

    made = check(forward, [mlp_weights(), draw(8, 6)], ["constant", "batch"])
    assert bindings_of(made[4], "microbatch")[1] == ["stack:0"]
    assert bindings_of(made[4], "update") == (["stack:0"], ["out:0"])


def test_stack_below_another_dimension() -> None:
    check(lambda w, x: (x @ w).T.reshape(-1), [draw(6, 5), draw(8, 6)], ["constant", "batch"])


def test_iota_counts_from_the_microbatch() -> None:
    def step(w: jax.Array, x: jax.Array) -> tuple:
        position = jnp.arange(8, dtype=jnp.float32)[:, None]
        table = jnp.asarray(np.arange(8, dtype=np.float32) ** 2)[:, None]
        value, g = jax.value_and_grad(lambda w: jnp.sum(jnp.sin(x @ w + position) * table))(w)
        return w - g, value, x * position

    made = check(step, [draw(6, 5), draw(8, 6)], ["state", "batch"])
    assert "index" in bindings_of(made[4], "microbatch")[0]


def test_extremes_over_the_batch() -> None:
    def step(w: jax.Array, x: jax.Array) -> tuple:
        h = x @ w
        return w * 0.9, jnp.max(h), jnp.min(h, axis=0), jnp.any(h > 3), jnp.all(h < 9), jnp.argmax(h, axis=1)

    check(step, [draw(6, 5), draw(8, 6)], ["state", "batch"])


def test_extremes_copied_beside_other_values() -> None:
    """A maximum beside invariant elements, padded and clipped from below, is still a maximum over microbatches."""

    def step(w: jax.Array, bound: jax.Array, x: jax.Array) -> tuple:
        top = jnp.max(x @ w, axis=0)
        wide = jnp.pad(jnp.concatenate([top, bound]), (1, 0))
        return w * 0.9, bound + 1, jnp.maximum(wide[::-1], -0.5)

    check(step, [draw(6, 5), draw(3), draw(8, 6)], ["state", "state", "batch"])


def test_scatter_into_a_start_value() -> None:
    """Counts per class start from a running count: the start is added once."""

    def step(count: jax.Array, w: jax.Array, x: jax.Array, label: jax.Array) -> tuple:
        return count.at[label].add(1.0), w + jnp.sum(x @ w) / 1e3

    label = np.array([0, 1, 1, 3, 0, 2, 2, 2], np.int32)
    check(step, [draw(4), draw(6, 5), draw(8, 6), label], ["state", "state", "batch", "batch"])


def test_complex_sum_into_a_start_value() -> None:
    def step(w: jax.Array, x: jax.Array) -> tuple:
        z = jax.lax.complex(x, -x)
        return jax.lax.reduce(z, w, jax.lax.add, (0, 1)), jnp.sum(x)

    check(step, [np.complex64(1 + 2j), draw(8, 6)], ["state", "batch"])


def test_examples_indexed_by_position() -> None:
    def step(w: jax.Array, x: jax.Array, label: jax.Array) -> tuple:
        def loss(w: jax.Array) -> jax.Array:
            return -jnp.mean(jax.nn.log_softmax(x @ w)[jnp.arange(8), label])

        value, g = jax.value_and_grad(loss)(w)
        return w - g, value

    check(step, [draw(6, 5), draw(8, 6), np.array([0, 1, 4, 3, 0, 2, 2, 2], np.int32)], ["state", "batch", "batch"])


def test_several_places_of_each_example_by_position() -> None:
    """Indices along the batch are wrapped and broadcast to several for each example."""

    def step(w: jax.Array, x: jax.Array) -> tuple:
        def loss(w: jax.Array) -> jax.Array:
            scores = x @ w
            best = jax.lax.top_k(scores, 2)[1]
            rows = jnp.arange(8)[:, None]
            return jnp.sum(x.at[rows, best].add(jnp.tanh(scores[rows, best])) ** 2)

        value, g = jax.value_and_grad(loss)(w)
        return w - 0.01 * g, value

    check(step, [draw(6, 5), draw(8, 6)], ["state", "batch"])


def test_recurrent_net() -> None:
    def step(w: dict, x: jax.Array, y: jax.Array) -> tuple:
        def loss(w: dict) -> jax.Array:
            def cell(h: jax.Array, xt: jax.Array) -> tuple:
                h = jnp.tanh(xt @ w["i"] + h @ w["h"])
                return h, h

            _, hs = jax.lax.scan(cell, jnp.zeros((8, 5)), jnp.swapaxes(x, 0, 1))
            return jnp.mean((hs - y[None]) ** 2)

        value, g = jax.value_and_grad(loss)(w)
        return jax.tree.map(lambda p, d: p - d, w, g), value

    check(step, [{"i": draw(6, 5), "h": draw(5, 5)}, draw(8, 4, 6), draw(8, 5)], ["state", "batch", "batch"])


def test_dropout_bits_are_those_of_the_full_batch() -> None:
    def step(w: dict, x: jax.Array, y: jax.Array, key: jax.Array) -> tuple:
        def loss(w: dict) -> jax.Array:
            h = jnp.tanh(x @ w["a"] + w["b"])
            h = jnp.where(jax.random.bernoulli(key, 0.8, h.shape), h / 0.8, 0)
            return jnp.mean((h @ w["c"] - y) ** 2)

        value, g = jax.value_and_grad(loss)(w)
        return jax.tree.map(lambda p, d: p - d, w, g), value

    key = np.asarray(jax.random.PRNGKey(3))
    made = check(step, [mlp_weights(), draw(8, 6), draw(8, 3), key], ["state", "batch", "batch", "constant"])
    assert "tensor<2x5xui32>" in str(functions(made[4])["microbatch"])
    assert "tensor<8x5xui32>" not in str(functions(made[4])["microbatch"])


def test_branch_on_state() -> None:
    def step(n: jax.Array, w: jax.Array, x: jax.Array) -> tuple:
        def loss(w: jax.Array) -> jax.Array:
            h = jax.lax.cond(n > 3, lambda h: jnp.tanh(h) * h, lambda h: h + 1, x @ w)
            return jnp.mean(h**3)

        value, g = jax.value_and_grad(loss)(w)
        return n + 1, w - g, value

    for n in (3, 4):
        check(step, [np.int32(n), draw(6, 5), draw(8, 6)], ["state", "state", "batch"], counts=(1, 2))


def test_rematerialised_layer() -> None:
    def step(w: dict, x: jax.Array, y: jax.Array) -> tuple:
        layer = jax.checkpoint(lambda w, x: jnp.tanh(x @ w["a"] + w["b"]))

        def loss(w: dict) -> jax.Array:
            return jnp.mean((jnp.sin(layer(w, x)) @ w["c"] - y) ** 2)

        value, g = jax.value_and_grad(loss)(w)
        return jax.tree.map(lambda p, d: p - d, w, g), value

    check(step, [mlp_weights(), draw(8, 6), draw(8, 3)], ["state", "batch", "batch"])


def test_whole_batch_permutation_is_taken_beforehand() -> None:
    """Sorting the batch arguments needs all examples but no state."""

    def step(w: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
        order = jnp.argsort(y)
        value, g = jax.value_and_grad(lambda w: jnp.mean(jnp.tanh(x @ w) * order[:, None]))(w)
        return w - g, value

    made = check(step, [draw(6, 5), draw(8, 6), draw(8)], ["state", "batch", "batch"])
    assert "stablehlo.sort" in op_names(made[4], "prologue")


def test_one_microbatch_may_mix_examples() -> None:
    """With one microbatch nothing is cut: in-batch negatives, sorting and loops over the batch are fine."""

    def step(w: jax.Array, x: jax.Array) -> tuple:
        def loss(w: jax.Array) -> jax.Array:
            h = jnp.sort(x @ w, axis=0)
            logits = h @ h.T
            _, total = jax.lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(8), logits)
            return jnp.mean(jax.nn.log_softmax(logits)) + jnp.mean(total)

        value, g = jax.value_and_grad(loss)(w)
        return w - g, value

    made = check(step, [draw(6, 5), draw(8, 6)], ["state", "batch"], counts=(1,))
    assert "stablehlo.sort" in op_names(made[1], "microbatch")


def test_statistics_inside_a_loop() -> None:
    """Normalising over the batch in each step of a loop: refused, or each microbatch by itself."""

    def step(w: jax.Array, x: jax.Array) -> tuple:
        def loss(w: jax.Array, x: jax.Array) -> jax.Array:
            def cell(h: jax.Array, _: None) -> tuple:
                h = jnp.tanh(h @ w)
                return h - h.mean(0), None

            return jnp.mean(jax.lax.scan(cell, x, None, length=3)[0] ** 3)

        value, g = jax.value_and_grad(loss)(w, x)
        return w - g, value

    w, x = draw(5, 5), draw(8, 5)
    module, inputs = level1(step, [w, x], ["state", "batch"])
    with pytest.raises(CompileError, match="mixes examples"):
        microbatched(module, 2)
    made = microbatched(module, 2, allow_per_microbatch_statistics=True)
    each = [step(w, x[i : i + 4]) for i in (0, 4)]
    close(execute(made, inputs), [np.mean([np.asarray(a), np.asarray(b)], axis=0) for a, b in zip(*each, strict=True)])


def test_no_batch_and_one_microbatch() -> None:
    made = check(lambda w, x: jnp.tanh(x @ w), [draw(6, 5), draw(8, 6)], ["constant", "constant"], counts=(1,))
    assert "stablehlo.dot_general" in op_names(made[1], "microbatch")


def test_batch_along_another_dimension() -> None:
    module, inputs = level1(lambda w, x: jnp.tanh(w @ x), [draw(5, 6), draw(6, 8)], ["constant", "batch"])
    main = functions(module)["main"]
    entries = argument_attributes(main)
    entries[1]["alpa.dim"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64, main.context), 1)
    set_argument_attributes(main, entries)
    close(execute(microbatched(module, 4), inputs), execute(module, inputs))


def test_same_input_same_bytes() -> None:
    module, _ = level1(mlp_step, [mlp_weights(), draw(8, 6), draw(8, 3)], ["state", "batch", "batch"])
    assert print_module(microbatched(module, 4)) == print_module(microbatched(module, 4))
