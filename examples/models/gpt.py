"""GPT: a pre-norm causal transformer with learned positions and tied embeddings (Radford et al. 2019).

Named sizes are those of the Alpa paper's evaluation (OSDI'22, table 5): sequence 1024, vocabulary 51200, f16.
Parameters: about 12·layers·hidden² + vocabulary·hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from . import text
from .layers import (
    Parameters,
    attention,
    attention_parameters,
    embed,
    layer_norm,
    mlp,
    mlp_parameters,
    norm_parameters,
    run_layers,
    stacked,
    token_losses,
)
from .optimizer import initial_state, step_function
from .step import Model, Role, Shapes, Source, Training, TrainStep, Tree, Values, option, require_divides

batches = text.batches


@dataclass(frozen=True)
class GptConfig(Training):
    """Sizes of a GPT."""

    layers: int = option(4, "transformer layers")
    hidden: int = option(256, "width of the residual stream")
    heads: int = option(8, "attention heads")
    vocabulary: int = option(512, "tokens in the vocabulary")
    sequence: int = option(64, "positions per example")
    shift: bool = option(False, "one batch argument, tokens of sequence+1 positions; targets are cut out inside")
    scan: bool = option(False, "the layers as a loop, their parameters stacked (jax.lax.scan)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_divides("heads", self.heads, "hidden", self.hidden)


def _preset(layers: int, hidden: int, heads: int) -> GptConfig:
    return GptConfig(
        layers=layers,
        hidden=hidden,
        heads=heads,
        vocabulary=51200,
        sequence=1024,
        batch=1024,
        dtype="float16",
        loss_scale=4096.0,
        learning_rate=1e-4,
    )


PRESETS = MappingProxyType(
    {
        "tiny": GptConfig(layers=2, hidden=32, heads=4, vocabulary=64, sequence=16),
        "125M": _preset(12, 768, 12),
        "350M": _preset(24, 1024, 16),
        "1.3B": _preset(24, 2048, 32),
        "2.6B": _preset(32, 2560, 32),
        "6.7B": _preset(32, 4096, 32),
        "15B": _preset(48, 5120, 40),
        "39B": _preset(48, 8192, 64),
        "76B": _preset(60, 10240, 80),
    }
)


def layer_parameters(config: GptConfig, source: Source) -> Parameters:
    """Parameters of one layer."""
    return {
        "attention_norm": norm_parameters(source, config.hidden, config.dtype),
        "attention": attention_parameters(source, config.hidden, config.heads, config.layers, config.dtype),
        "mlp_norm": norm_parameters(source, config.hidden, config.dtype),
        "mlp": mlp_parameters(source, config.hidden, 4 * config.hidden, config.layers, config.dtype),
    }


def parameters(config: GptConfig, source: Source) -> Tree:
    """All parameters: token and position tables, layers, final norm."""
    layers = [layer_parameters(config, source) for _ in range(config.layers)]
    return {
        "embedding": source.normal((config.vocabulary, config.hidden), config.dtype),
        "position": source.normal((config.sequence, config.hidden), config.dtype, 0.01),
        "layers": stacked(layers) if config.scan else layers,
        "final_norm": norm_parameters(source, config.hidden, config.dtype),
    }


def batch_shapes(config: text.LanguageConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a language model's batch arguments: tokens and targets (B, S), or tokens (B, S+1) with `shift`."""
    length = config.sequence + 1 if config.shift else config.sequence
    tokens = jax.ShapeDtypeStruct((config.batch, length), jnp.dtype("int32"))
    return (tokens,) if config.shift else (tokens, tokens)


def tokens_and_targets(config: text.LanguageConfig, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets, each (B, S), from the batch arguments."""
    return (batch[0][:, :-1], batch[0][:, 1:]) if config.shift else (batch[0], batch[1])


def batch_roles(config: text.LanguageConfig) -> tuple[Role, ...]:
    """One "batch" per batch argument."""
    return ("batch",) if config.shift else ("batch", "batch")


def forward(config: GptConfig, params: Tree, tokens: jax.Array) -> jax.Array:
    """Logits (B, S, V) of tokens (B, S)."""

    def layer(p: Parameters, x: jax.Array) -> jax.Array:
        x = x + attention(p["attention"], layer_norm(p["attention_norm"], x), causal=True)
        return x + mlp(p["mlp"], layer_norm(p["mlp_norm"], x))

    x = embed(params["embedding"], tokens) + params["position"]
    x = run_layers(config, layer, params["layers"], x)
    return jnp.einsum("bsm,vm->bsv", layer_norm(params["final_norm"], x), params["embedding"])


def build(config: GptConfig) -> TrainStep:
    """Training step (params, optimizer, tokens[, targets]) -> (params, optimizer, mean cross entropy)."""

    def loss(params: Tree, *batch: jax.Array) -> jax.Array:
        tokens, targets = tokens_and_targets(config, batch)
        return token_losses(forward(config, params, tokens), targets).mean()

    params = parameters(config, Shapes())
    return TrainStep(
        "gpt",
        step_function("gpt", config, loss),
        (params, initial_state(config, params, Shapes()), *batch_shapes(config)),
        ("state", "state", *batch_roles(config)),
        ((0, 0), (1, 1)),
    )


def build_inference(config: GptConfig) -> TrainStep:
    """Forward pass (params, tokens (B, S)) -> logits (B, S, V)."""

    def gpt(params: Tree, tokens: jax.Array) -> jax.Array:
        return forward(config, params, tokens)

    tokens = jax.ShapeDtypeStruct((config.batch, config.sequence), jnp.dtype("int32"))
    return TrainStep("gpt", gpt, (parameters(config, Shapes()), tokens), ("constant", "batch"))


def initial_values(config: GptConfig, seed: int = 0) -> tuple[Tree, ...]:
    """Random parameters and the first batch of the built-in text."""
    source = Values(seed)
    params = parameters(config, source)
    return (params, initial_state(config, params, source), *next(batches(config, 1, seed)))


MODEL = Model("gpt", "causal transformer, tied embeddings", GptConfig, PRESETS, build, build_inference, initial_values)
