"""A LLaMA-style decoder: RMS norm, rotary positions, SwiGLU, grouped key/value heads, untied output (arXiv:2407.21783).

Query heads are kept as (key/value head, query per key/value head), so that grouped attention is one einsum and no
tensor is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from . import gpt, text
from .layers import Parameters, embed, masked_softmax, run_layers, stacked, token_losses
from .optimizer import initial_state, step_function
from .step import Model, Shapes, Source, Training, TrainStep, Tree, Values, option, require_divides

batches = text.batches


@dataclass(frozen=True)
class LlamaConfig(Training):
    """Sizes of a LLaMA."""

    layers: int = option(4, "decoder layers")
    hidden: int = option(128, "width of the residual stream")
    inner: int = option(352, "inner width of the feed-forward layers")
    heads: int = option(8, "query heads")
    kv_heads: int = option(4, "key/value heads, a divisor of heads")
    vocabulary: int = option(512, "tokens in the vocabulary")
    sequence: int = option(64, "positions per example")
    theta: float = option(500000.0, "base of the rotary frequencies")
    shift: bool = option(False, "one batch argument, tokens of sequence+1 positions; targets are cut out inside")
    scan: bool = option(False, "the layers as a loop, their parameters stacked (jax.lax.scan)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_divides("2 · heads", 2 * self.heads, "hidden", self.hidden)
        require_divides("kv_heads", self.kv_heads, "heads", self.heads)

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


def _preset(layers: int, hidden: int, inner: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=128256,
        sequence=4096,
        batch=256,
        dtype="bfloat16",
        learning_rate=1e-4,
    )


PRESETS = MappingProxyType(
    {
        "tiny": LlamaConfig(layers=2, hidden=32, inner=64, heads=4, kv_heads=2, vocabulary=64, sequence=16),
        "8B": _preset(32, 4096, 14336, 32, 8),
        "70B": _preset(80, 8192, 28672, 64, 8),
        "405B": _preset(126, 16384, 53248, 128, 8),
    }
)


def layer_parameters(config: LlamaConfig, source: Source) -> Parameters:
    """Parameters of one layer: K key/value heads, Q queries for each, heads of size D."""
    kv, per_kv, size = config.kv_heads, config.heads // config.kv_heads, config.head_size
    hidden, dtype, small = config.hidden, config.dtype, 0.02 / (2 * config.layers) ** 0.5
    return {
        "attention_norm": source.full((hidden,), dtype, 0.0),
        "query": source.normal((hidden, kv, per_kv, size), dtype),
        "key": source.normal((hidden, kv, size), dtype),
        "value": source.normal((hidden, kv, size), dtype),
        "out": source.normal((kv, per_kv, size, hidden), dtype, small),
        "mlp_norm": source.full((hidden,), dtype, 0.0),
        "gate": source.normal((hidden, config.inner), dtype),
        "up": source.normal((hidden, config.inner), dtype),
        "down": source.normal((config.inner, hidden), dtype, small),
    }


def parameters(config: LlamaConfig, source: Source) -> Tree:
    """All parameters; the output table is not tied to the embedding."""
    table = (config.vocabulary, config.hidden)
    layers = [layer_parameters(config, source) for _ in range(config.layers)]
    return {
        "embedding": source.normal(table, config.dtype),
        "layers": stacked(layers) if config.scan else layers,
        "final_norm": source.full((config.hidden,), config.dtype, 0.0),
        "output": source.normal(table, config.dtype),
    }


def rms_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    """x / √(mean x² + ε) · (1 + scale) over the last dimension."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-5)
    return normal.astype(x.dtype) * (1 + scale)


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (arXiv:2104.09864) on x (B, S, …, D): halves of D turn by position · theta^(-2i/D)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * frequency
    angle = angle.reshape(x.shape[1], *(1 for _ in x.shape[2:-1]), half)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], -1).astype(x.dtype)


def grouped_attention(config: LlamaConfig, p: Parameters, x: jax.Array) -> jax.Array:
    """Causal self-attention with shared key/value heads, (B, S, M) -> (B, S, M)."""
    query = rotate(jnp.einsum("bsm,mkqd->bskqd", x, p["query"]), config.theta)
    key = rotate(jnp.einsum("bsm,mkd->bskd", x, p["key"]), config.theta)
    value = jnp.einsum("bsm,mkd->bskd", x, p["value"])
    scores = jnp.einsum("bskqd,btkd->bkqst", query * (config.head_size**-0.5), key)
    weights = masked_softmax(scores, causal=True)
    mixed = jnp.einsum("bkqst,btkd->bskqd", weights, value)
    return jnp.einsum("bskqd,kqdm->bsm", mixed, p["out"])


def forward(config: LlamaConfig, params: Tree, tokens: jax.Array) -> jax.Array:
    """Logits (B, S, V) of tokens (B, S)."""

    def layer(p: Parameters, x: jax.Array) -> jax.Array:
        x = x + grouped_attention(config, p, rms_norm(p["attention_norm"], x))
        normal = rms_norm(p["mlp_norm"], x)
        inner = jax.nn.silu(jnp.einsum("bsm,mf->bsf", normal, p["gate"]))
        inner = inner * jnp.einsum("bsm,mf->bsf", normal, p["up"])
        return x + jnp.einsum("bsf,fm->bsm", inner, p["down"])

    x = run_layers(config, layer, params["layers"], embed(params["embedding"], tokens))
    return jnp.einsum("bsm,vm->bsv", rms_norm(params["final_norm"], x), params["output"])


def build(config: LlamaConfig) -> TrainStep:
    """Training step (params, optimizer, tokens[, targets]) -> (params, optimizer, mean cross entropy)."""

    def loss(params: Tree, *batch: jax.Array) -> jax.Array:
        tokens, targets = gpt.tokens_and_targets(config, batch)
        return token_losses(forward(config, params, tokens), targets).mean()

    params = parameters(config, Shapes())
    return TrainStep(
        "llama",
        step_function("llama", config, loss),
        (params, initial_state(config, params, Shapes()), *gpt.batch_shapes(config)),
        ("state", "state", *gpt.batch_roles(config)),
        ((0, 0), (1, 1)),
    )


def build_inference(config: LlamaConfig) -> TrainStep:
    """Forward pass (params, tokens (B, S)) -> logits (B, S, V)."""

    def llama(params: Tree, tokens: jax.Array) -> jax.Array:
        return forward(config, params, tokens)

    tokens = jax.ShapeDtypeStruct((config.batch, config.sequence), jnp.dtype("int32"))
    return TrainStep("llama", llama, (parameters(config, Shapes()), tokens), ("constant", "batch"))


def initial_values(config: LlamaConfig, seed: int = 0) -> tuple[Tree, ...]:
    """Random parameters and the first batch of the built-in text."""
    source = Values(seed)
    params = parameters(config, source)
    return (params, initial_state(config, params, source), *next(batches(config, 1, seed)))


MODEL = Model("llama", "decoder with rotary positions", LlamaConfig, PRESETS, build, build_inference, initial_values)
