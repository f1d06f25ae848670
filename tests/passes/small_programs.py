"""Small jax programs with the ops that models are made of, at level 1 (tests only)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import parse_module
from alpa_mlir.passes.normalize import Normalize


def _norm(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-5)


def _attention(x, w):
    q, k, v = jnp.split((x @ w).reshape(*x.shape[:2], 4, -1), 3, -1)
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) / 2.0
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
    return jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(x.shape[0], x.shape[1], -1)


def transformer(embedding, w, up, down, tokens, targets):
    """A decoder block with tied embeddings: loss and SGD step."""

    def loss(embedding, w, up, down):
        x = embedding[tokens]
        x = x + _attention(_norm(x), w)
        x = x + jax.nn.gelu(_norm(x) @ up) @ down
        logits = jax.nn.log_softmax(_norm(x) @ embedding.T)
        return -jnp.take_along_axis(logits, targets[..., None], -1).mean()

    parameters = (embedding, w, up, down)
    value, gradients = jax.value_and_grad(loss, (0, 1, 2, 3))(*parameters)
    return (*(p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)), value)


def conv_net(kernel, scale, head, images, labels):
    """A residual convolution block with batch norm and pooling: loss and gradients."""

    def loss(kernel, scale, head):
        x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * scale
        x = jax.nn.relu(x) + images
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        logits = x.mean((1, 2)) @ head
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()

    return jax.value_and_grad(loss, (0, 1, 2))(kernel, scale, head)


def mixture(gate, up, down, x):
    """A top-2 mixture of experts with capacity: output and gradients."""

    def forward(gate, up, down):
        scores = jax.nn.softmax(x @ gate)
        chosen, expert = jax.lax.top_k(scores, 2)
        picked = jax.nn.one_hot(expert, gate.shape[1])
        place = jnp.cumsum(picked.sum(2), 1) - 1.0
        seat = jax.nn.one_hot(place.astype(jnp.int32), 8) * picked.sum(2)[..., None]
        weight = jnp.einsum("gsk,gske->gse", chosen, picked)[..., None] * seat
        inputs = jnp.einsum("gsec,gsm->egcm", seat, x)
        outputs = jnp.einsum("egch,ehm->egcm", jax.nn.relu(jnp.einsum("egcm,emh->egch", inputs, up)), down)
        return jnp.einsum("gsec,egcm->gsm", weight, outputs)

    return jax.value_and_grad(lambda *p: (forward(*p) ** 2).mean(), (0, 1, 2))(gate, up, down)


def loop(w, x):
    """A loop whose body is one unit, between ops that are split."""
    y = jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ w), x * 2.0)
    return (y + x).sum(0)


def branch(x, flag):
    """A conditional that captures values."""
    y = x * 3.0
    return jax.lax.cond(flag[0] > 0, lambda: y + 1.0, lambda: y.sum(1, keepdims=True) + x) * 2.0


def dropout(x, key):
    """Random bits: equal on all devices, however the values around them are split."""
    keep = jax.random.bernoulli(jax.random.wrap_key_data(key), 0.5, x.shape)
    return jnp.where(keep, x * 2.0, 0.0).sum(0)


def order(x, i):
    """Sorting, ranking, prefix sums, indexing."""
    top, where = jax.lax.top_k(x, 3)
    return jnp.sort(x, 0), top.sum(), where, jnp.cumsum(x, 1), x.at[i].add(1.0), x.argmax(1), jnp.flip(x, 0)[2:6]


def mlp(w, v, x, y):
    """Two layers with gradients in bf16 and f32."""

    def loss(w, v):
        h = jax.nn.relu(x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32)
        return ((h @ v - y) ** 2).mean()

    return jax.value_and_grad(loss, (0, 1))(w, v)


PROGRAMS = {
    "transformer": (transformer, [(32, 16), (16, 48), (16, 32), (32, 16)], [(4, 8), (4, 8)]),
    "conv_net": (conv_net, [(3, 3, 8, 8), (8,), (8, 8), (8, 8, 8, 8)], [(8,)]),
    "mixture": (mixture, [(16, 4), (4, 16, 32), (4, 32, 16), (4, 8, 16)], []),
    "mlp": (mlp, [(16, 32), (32, 8), (8, 16), (8, 8)], []),
    "loop": (loop, [(8, 8), (16, 8)], []),
    "branch": (branch, [(8, 8)], [(1,)]),
    "dropout": (dropout, [(8, 16)], [(2,)]),
    "order": (order, [(8, 8)], [(4,)]),
}


def text_of(name: str) -> str:
    """The program as jax lowers it."""
    function, floats, integers = PROGRAMS[name]
    kind = np.uint32 if name == "dropout" else np.int32
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in floats] + [jax.ShapeDtypeStruct(s, kind) for s in integers]
    return jax.jit(function, keep_unused=True).lower(*shapes).as_text()


def normalized(name: str, context: ir.Context) -> ir.Module:
    """The program at level 1."""
    module = parse_module(text_of(name), context, name)
    Normalize().apply(module, [])
    return module
