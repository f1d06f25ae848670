"""GShard mixture of experts: every second feed-forward layer is a set of experts, two of which see each token.

Lepikhin et al. 2020 (arXiv:2006.16668), algorithm 1. Tokens are cut into groups; inside a group every expert takes at
most `capacity` tokens, first choices before second ones, earlier tokens before later ones; what does not fit is
dropped. Dispatch and combination are einsums over one-hot tensors, so a partitioner sees plain products:

    expert_in[e,g,c,m]  = Σ_s dispatch[g,s,e,c] · x[g,s,m]          (expert-parallel: an all-to-all on each side)
    y[g,s,m]            = Σ_ec combine[g,s,e,c] · expert_out[e,g,c,m]

A group is cut out of the batch dimension as its major part, so a microbatch holds whole groups; capacity and the
auxiliary loss are per group, so a step over microbatches equals the step over the whole batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from . import gpt, text
from .layers import (
    Parameters,
    attention,
    attention_parameters,
    embed,
    layer_norm,
    mlp,
    mlp_parameters,
    norm_parameters,
    squared_error,
    token_losses,
)
from .optimizer import initial_state, step_function
from .step import Model, Role, Shapes, Source, Training, TrainStep, Tree, Values, option, require_divides

batches = text.batches


@dataclass(frozen=True)
class MoeConfig(Training):
    """Sizes of a mixture-of-experts transformer."""

    layers: int = option(4, "transformer layers")
    hidden: int = option(128, "width of the residual stream")
    heads: int = option(4, "attention heads")
    experts: int = option(4, "experts per MoE layer")
    group: int = option(64, "tokens per group: a multiple or a divisor of the sequence length")
    mlp_factor: int = option(4, "inner width of feed-forward layers and experts, in units of hidden")
    capacity_factor: float = option(2.0, "an expert takes capacity_factor · group / experts tokens of a group")
    moe_every: int = option(2, "each such layer is MoE: 2 means layers 1, 3, …; 1 means all")
    auxiliary: float = option(0.01, "weight of the load-balancing loss")
    vocabulary: int = option(512, "tokens in the vocabulary")
    sequence: int = option(64, "positions per example")
    shift: bool = option(False, "one batch argument, tokens of sequence+1 positions; targets are cut out inside")
    embeddings: bool = option(True, "false: the batch is hidden states and targets (B, S, M), squared error")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_divides("heads", self.heads, "hidden", self.hidden)
        require_divides("group", self.group, "batch · sequence", self.batch * self.sequence)
        if self.group % self.sequence and self.sequence % self.group:
            raise ValueError(
                f"group ({self.group}) must be a multiple or a divisor of sequence ({self.sequence}),"
                " so that a group never holds part of an example and part of another"
            )
        if self.experts < 2:
            raise ValueError("experts must be at least 2: each token has two")

    @property
    def capacity(self) -> int:
        """Tokens of a group that one expert takes."""
        return math.ceil(self.capacity_factor * self.group / self.experts)


def _preset(layers: int, hidden: int, heads: int, experts: int) -> MoeConfig:
    return MoeConfig(
        layers=layers,
        hidden=hidden,
        heads=heads,
        experts=experts,
        group=2048,
        mlp_factor=8,
        vocabulary=32000,
        sequence=1024,
        batch=1024,
        dtype="float16",
        loss_scale=4096.0,
        learning_rate=1e-4,
    )


PRESETS = MappingProxyType(
    {
        "tiny": MoeConfig(layers=2, hidden=32, vocabulary=64, sequence=16, group=32, batch=16),
        "380M": _preset(8, 768, 16, 8),
        "1.3B": _preset(16, 768, 16, 16),
        "2.4B": _preset(16, 1024, 16, 16),
        "10B": _preset(16, 1536, 16, 32),
        "27B": _preset(16, 2048, 16, 48),
        "70B": _preset(32, 2048, 16, 64),
    }
)


def expert_parameters(config: MoeConfig, source: Source) -> Parameters:
    """Gate (M, E) in f32, because routing is sensitive to rounding, and expert weights (E, M, F), (E, F, M)."""
    inner = config.mlp_factor * config.hidden
    return {
        "gate": source.normal((config.hidden, config.experts), "float32"),
        "up": source.normal((config.experts, config.hidden, inner), config.dtype),
        "down": source.normal((config.experts, inner, config.hidden), config.dtype, 0.02 / (2 * config.layers) ** 0.5),
    }


def is_moe(config: MoeConfig, layer: int) -> bool:
    """Whether layer number `layer` (from 0) has experts in place of a feed-forward layer."""
    return (layer + 1) % config.moe_every == 0


def layer_parameters(config: MoeConfig, source: Source, layer: int) -> Parameters:
    """Parameters of one layer: attention, and either `experts` or `mlp`."""
    width = (config.hidden, config.mlp_factor * config.hidden, config.layers, config.dtype)
    feed = (
        {"experts": expert_parameters(config, source)}
        if is_moe(config, layer)
        else {"mlp": mlp_parameters(source, *width)}
    )
    return {
        "attention_norm": norm_parameters(source, config.hidden, config.dtype),
        "attention": attention_parameters(source, config.hidden, config.heads, config.layers, config.dtype),
        "mlp_norm": norm_parameters(source, config.hidden, config.dtype),
        **feed,
    }


def parameters(config: MoeConfig, source: Source) -> Tree:
    """All parameters; without embeddings only the layers."""
    layers = [layer_parameters(config, source, i) for i in range(config.layers)]
    if not config.embeddings:
        return {"layers": layers}
    return {
        "embedding": source.normal((config.vocabulary, config.hidden), config.dtype),
        "position": source.normal((config.sequence, config.hidden), config.dtype, 0.01),
        "layers": layers,
        "final_norm": norm_parameters(source, config.hidden, config.dtype),
    }


def route(gates: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Top-2 routing with capacity.

    gates: (G, S, E) probabilities in f32. Returns the combination weights (G, S, E, C), zero where a token is not
    sent, and the load-balancing loss of each group (G,): E · Σ_e fraction_e · mean gate_e over first choices, 1 when
    the load is even.
    """
    experts = gates.shape[-1]
    first = jax.nn.one_hot(jnp.argmax(gates, -1), experts, dtype=gates.dtype)
    second = jax.nn.one_hot(jnp.argmax(gates * (1 - first), -1), experts, dtype=gates.dtype)
    balance = experts * (first.mean(1) * gates.mean(1)).sum(-1)
    gate1, gate2 = (gates * first).sum(-1), (gates * second).sum(-1)
    total = gate1 + gate2
    place1 = jnp.cumsum(first, axis=1) - first
    place2 = jnp.cumsum(second, axis=1) - second + first.sum(1, keepdims=True)

    def combine(chosen: jax.Array, place: jax.Array, weight: jax.Array) -> jax.Array:
        # A place at or beyond the capacity has no one-hot: the token is dropped.
        slot = jax.nn.one_hot((place * chosen).sum(-1).astype(jnp.int32), capacity, dtype=gates.dtype)
        return jnp.einsum("gse,gsc->gsec", chosen * weight[..., None], slot)

    return combine(first, place1, gate1 / total) + combine(second, place2, gate2 / total), balance


def expert_layer(config: MoeConfig, p: Parameters, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Experts on (B, S, M) activations: the result (B, S, M) and the mean load-balancing loss (scalar, f32)."""
    groups = config.batch * config.sequence // config.group
    tokens = x.reshape(groups, config.group, config.hidden)
    logits = jnp.einsum("gsm,me->gse", tokens.astype(jnp.float32), p["gate"])
    weights, balance = route(jax.nn.softmax(logits, axis=-1), config.capacity)
    dispatch = (weights > 0).astype(x.dtype)
    inputs = jnp.einsum("gsec,gsm->egcm", dispatch, tokens)
    inner = jax.nn.gelu(jnp.einsum("egcm,emf->egcf", inputs, p["up"]))
    outputs = jnp.einsum("egcf,efm->egcm", inner, p["down"])
    combined = jnp.einsum("gsec,egcm->gsm", weights.astype(x.dtype), outputs)
    return combined.reshape(x.shape), balance.mean()


def run_stack(config: MoeConfig, layers: list[Parameters], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All layers on (B, S, M) activations: the result and the summed load-balancing loss."""

    def layer(p: Parameters, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + attention(p["attention"], layer_norm(p["attention_norm"], x), causal=True)
        normal = layer_norm(p["mlp_norm"], x)
        if "mlp" in p:
            return x + mlp(p["mlp"], normal), jnp.float32(0)
        y, balance = expert_layer(config, p["experts"], normal)
        return x + y, balance

    apply = jax.checkpoint(layer) if config.remat else layer
    auxiliary = jnp.float32(0)
    for p in layers:
        x, balance = apply(p, x)
        auxiliary += balance
    return x, auxiliary


def forward(config: MoeConfig, params: Tree, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (B, S, V), or hidden states without embeddings, and the load-balancing loss."""
    if not config.embeddings:
        return run_stack(config, params["layers"], inputs)
    x = embed(params["embedding"], inputs) + params["position"]
    x, auxiliary = run_stack(config, params["layers"], x)
    return jnp.einsum("bsm,vm->bsv", layer_norm(params["final_norm"], x), params["embedding"]), auxiliary


def batch(config: MoeConfig, source: Source) -> tuple[Tree, ...]:
    """Hidden states and targets of the form without embeddings."""
    shape = (config.batch, config.sequence, config.hidden)
    return source.normal(shape, config.dtype, 1.0), source.normal(shape, config.dtype, 1.0)


def build(config: MoeConfig) -> TrainStep:
    """Training step (params, optimizer, tokens[, targets]) -> (params, optimizer, loss)."""

    def loss(params: Tree, *batch: jax.Array) -> jax.Array:
        if config.embeddings:
            inputs, targets = gpt.tokens_and_targets(config, batch)
        else:
            inputs, targets = batch
        output, auxiliary = forward(config, params, inputs)
        error = token_losses(output, targets).mean() if config.embeddings else squared_error(output, targets)
        return error + config.auxiliary * auxiliary

    params = parameters(config, Shapes())
    shapes = gpt.batch_shapes(config) if config.embeddings else batch(config, Shapes())
    roles: list[Role] = ["batch"] * len(shapes)
    return TrainStep(
        "moe",
        step_function("moe", config, loss),
        (params, initial_state(config, params, Shapes()), *shapes),
        ("state", "state", *roles),
        ((0, 0), (1, 1)),
    )


def build_inference(config: MoeConfig) -> TrainStep:
    """Forward pass (params, tokens (B, S)) -> logits (B, S, V)."""

    def moe(params: Tree, inputs: jax.Array) -> jax.Array:
        return forward(config, params, inputs)[0]

    tokens = jax.ShapeDtypeStruct((config.batch, config.sequence), jnp.dtype("int32"))
    inputs = tokens if config.embeddings else batch(config, Shapes())[0]
    return TrainStep("moe", moe, (parameters(config, Shapes()), inputs), ("constant", "batch"))


def initial_values(config: MoeConfig, seed: int = 0) -> tuple[Tree, ...]:
    """Random parameters and the first batch of the built-in text (or random hidden states)."""
    source = Values(seed)
    params = parameters(config, source)
    first = next(batches(config, 1, seed)) if config.embeddings else batch(config, source)
    return (params, initial_state(config, params, source), *first)


MODEL = Model("moe", "GShard mixture of experts", MoeConfig, PRESETS, build, build_inference, initial_values)
