"""The pieces that the transformer models share, as functions of a parameter dictionary.

Weights keep the head dimension apart, (hidden, 3, heads, head size), so that no reshape stands between a
projection and attention: a partitioner sees the head dimension on every tensor. Query, key and value come from
one matrix product: its backward pass then has a single sum over heads, as in Megatron-LM (arXiv:1909.08053).
Softmax, normalisation and loss are computed in f32 whatever the type of the activations.

Shapes: B examples, S positions, M hidden, H heads, D head size, F inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from .step import Source, Training, Tree

Parameters = dict[str, Any]


def norm_parameters(source: Source, hidden: int, dtype: str) -> Parameters:
    """Scale and bias of a layer norm, each (M,)."""
    return {"scale": source.full((hidden,), dtype, 0.0), "bias": source.full((hidden,), dtype, 0.0)}


def layer_norm(p: Parameters, x: jax.Array) -> jax.Array:
    """Normalise the last dimension of x to mean 0, variance 1, then scale by 1 + `scale` and shift."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)
    return normal * (1 + p["scale"]) + p["bias"]


def attention_parameters(source: Source, hidden: int, heads: int, layers: int, dtype: str) -> Parameters:
    """Fused query/key/value (M, 3, H, D) and output (H, D, M) weights, and the output's bias.

    A bias on keys has no effect on the softmax: its gradient is rounding noise, which Adam would turn into steps.
    """
    size = hidden // heads
    return {
        "qkv": source.normal((hidden, 3, heads, size), dtype),
        "out": source.normal((heads, size, hidden), dtype, 0.02 / (2 * layers) ** 0.5),
        "out_bias": source.full((hidden,), dtype, 0.0),
    }


def attention(p: Parameters, x: jax.Array, *, causal: bool) -> jax.Array:
    """Multi-head self-attention, (B, S, M) -> (B, S, M)."""
    qkv = jnp.einsum("bsm,mthd->bsthd", x, p["qkv"])
    query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bshd,bthd->bhst", query * (query.shape[-1] ** -0.5), key)
    weights = masked_softmax(scores, causal=causal)
    mixed = jnp.einsum("bhst,bthd->bshd", weights, value)
    return jnp.einsum("bshd,hdm->bsm", mixed, p["out"]) + p["out_bias"]


def masked_softmax(scores: jax.Array, *, causal: bool) -> jax.Array:
    """Softmax over the last dimension of (…, S, S) scores; a causal one never looks at later positions."""
    wide = scores.astype(jnp.float32)
    if causal:
        length = scores.shape[-1]
        visible = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
        wide = jnp.where(visible, wide, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(wide, axis=-1).astype(scores.dtype)


def mlp_parameters(source: Source, hidden: int, inner: int, layers: int, dtype: str) -> Parameters:
    """Two dense layers M -> F -> M with biases."""
    return {
        "up": source.normal((hidden, inner), dtype),
        "up_bias": source.full((inner,), dtype, 0.0),
        "down": source.normal((inner, hidden), dtype, 0.02 / (2 * layers) ** 0.5),
        "down_bias": source.full((hidden,), dtype, 0.0),
    }


def mlp(p: Parameters, x: jax.Array) -> jax.Array:
    """GELU feed-forward layer, (B, S, M) -> (B, S, M)."""
    inner = jax.nn.gelu(jnp.einsum("bsm,mf->bsf", x, p["up"]) + p["up_bias"])
    return jnp.einsum("bsf,fm->bsm", inner, p["down"]) + p["down_bias"]


def embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a (V, M) table for (B, S) tokens, which must lie in 0…V-1: (B, S, M)."""
    # Without bounds handling the program is one plain gather, and its gradient one plain scatter.
    return table.at[tokens].get(mode="promise_in_bounds", wrap_negative_indices=False)


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy in nats of each target: logits (…, V), targets (…) in 0…V-1, result (…) in f32."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # A one-hot product, not a gather: it stays local when the vocabulary is partitioned.
    chosen = jax.nn.one_hot(targets, logits.shape[-1], dtype=jnp.float32)
    return -(log_probabilities * chosen).sum(-1)


def squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared difference, in f32."""
    difference = output.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(difference * difference)


def stacked(layers: list[Parameters]) -> Parameters:
    """The parameters of equal layers as one tree of arrays with a slice for each, as `jax.lax.scan` takes them."""

    def together(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
        return np.stack(leaves)

    return cast("Parameters", jax.tree.map(together, *layers))


def run_layers(
    config: Training, layer: Callable[[Parameters, jax.Array], Tree], stack: list[Parameters] | Parameters, x: jax.Array
) -> jax.Array:
    """Apply `layer` once per element of `stack`, or of what is stacked in it, recomputing it in the backward pass with
    config.remat."""
    apply = jax.checkpoint(layer) if config.remat else layer
    if isinstance(stack, dict):
        return cast("jax.Array", jax.lax.scan(lambda x, p: (apply(p, x), None), x, stack)[0])
    for parameters in stack:
        x = apply(parameters, x)
    return x
