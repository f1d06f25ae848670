"""BERT: a bidirectional post-norm encoder with a masked-language-model loss (Devlin et al. 2019).

The loss is a weighted mean: Σ weight · loss / Σ weight, with weight 1 where a token was masked. Its denominator
depends on the batch alone, which is what makes it exact over microbatches although it is not a plain mean.
Without embeddings the batch is hidden states and targets and the loss is squared error: the bare layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

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
    squared_error,
    token_losses,
)
from .optimizer import initial_state, step_function
from .step import Model, Role, Shapes, Source, Training, TrainStep, Tree, Values, option, require_divides

MASKED_EVERY = 7  # about the 15 % of the paper


@dataclass(frozen=True)
class BertConfig(Training):
    """Sizes of a BERT."""

    layers: int = option(4, "encoder layers")
    hidden: int = option(128, "width of the residual stream")
    heads: int = option(4, "attention heads")
    vocabulary: int = option(512, "tokens in the vocabulary, the last of which is the mask")
    sequence: int = option(64, "positions per example")
    embeddings: bool = option(True, "false: the batch is hidden states and targets (B, S, M), squared error")
    shift = False  # the built-in text gives tokens and targets apart

    def __post_init__(self) -> None:
        super().__post_init__()
        require_divides("heads", self.heads, "hidden", self.hidden)


def _preset(layers: int, hidden: int, heads: int) -> BertConfig:
    return BertConfig(
        layers=layers,
        hidden=hidden,
        heads=heads,
        vocabulary=30528,
        sequence=512,
        batch=256,
        dtype="float16",
        loss_scale=4096.0,
        learning_rate=1e-4,
    )


PRESETS = MappingProxyType(
    {
        "tiny": BertConfig(layers=2, hidden=32, vocabulary=64, sequence=16),
        "110M": _preset(12, 768, 12),
        "340M": _preset(24, 1024, 16),
    }
)


def layer_parameters(config: BertConfig, source: Source) -> Parameters:
    """Parameters of one layer."""
    return {
        "attention": attention_parameters(source, config.hidden, config.heads, config.layers, config.dtype),
        "attention_norm": norm_parameters(source, config.hidden, config.dtype),
        "mlp": mlp_parameters(source, config.hidden, 4 * config.hidden, config.layers, config.dtype),
        "mlp_norm": norm_parameters(source, config.hidden, config.dtype),
    }


def parameters(config: BertConfig, source: Source) -> Tree:
    """All parameters; without embeddings only the layers."""
    layers = [layer_parameters(config, source) for _ in range(config.layers)]
    if not config.embeddings:
        return {"layers": layers}
    return {
        "embedding": source.normal((config.vocabulary, config.hidden), config.dtype),
        "position": source.normal((config.sequence, config.hidden), config.dtype),
        "embedding_norm": norm_parameters(source, config.hidden, config.dtype),
        "layers": layers,
        "head": source.normal((config.hidden, config.hidden), config.dtype),
        "head_norm": norm_parameters(source, config.hidden, config.dtype),
        "head_bias": source.full((config.vocabulary,), config.dtype, 0.0),
    }


def forward(config: BertConfig, params: Tree, inputs: jax.Array) -> jax.Array:
    """Logits (B, S, V) of tokens (B, S), or hidden states of hidden states without embeddings."""

    def layer(p: Parameters, x: jax.Array) -> jax.Array:
        x = layer_norm(p["attention_norm"], x + attention(p["attention"], x, causal=False))
        return layer_norm(p["mlp_norm"], x + mlp(p["mlp"], x))

    if not config.embeddings:
        return run_layers(config, layer, params["layers"], inputs)
    x = layer_norm(params["embedding_norm"], embed(params["embedding"], inputs) + params["position"])
    x = run_layers(config, layer, params["layers"], x)
    x = layer_norm(params["head_norm"], jax.nn.gelu(jnp.einsum("bsm,mn->bsn", x, params["head"])))
    return jnp.einsum("bsm,vm->bsv", x, params["embedding"]) + params["head_bias"]


def batch(config: BertConfig, source: Source) -> tuple[Tree, ...]:
    """Masked tokens, targets (both i32) and weights (f32), each (B, S); or hidden states and targets (B, S, M)."""
    shape = (config.batch, config.sequence)
    if not config.embeddings:
        wide = (*shape, config.hidden)
        return source.normal(wide, config.dtype, 1.0), source.normal(wide, config.dtype, 1.0)
    tokens = source.integers(shape, config.vocabulary)
    return tokens, tokens, source.full(shape, "float32", 1.0)


def masked_text(config: BertConfig, seed: int) -> tuple[Tree, ...]:
    """The first batch of the built-in text with every seventh position masked."""
    targets, _ = next(text.batches(config, 1, seed))
    row, column = np.indices(targets.shape)
    masked = (row + column) % MASKED_EVERY == 0
    tokens = targets.copy()
    tokens[masked] = config.vocabulary - 1
    return tokens, targets, masked.astype("float32")


def build(config: BertConfig) -> TrainStep:
    """Training step (params, optimizer, tokens, targets, weights) -> (params, optimizer, loss)."""

    def loss(params: Tree, inputs: jax.Array, targets: jax.Array, *weights: jax.Array) -> jax.Array:
        output = forward(config, params, inputs)
        if not config.embeddings:
            return squared_error(output, targets)
        return (token_losses(output, targets) * weights[0]).sum() / weights[0].sum()

    params = parameters(config, Shapes())
    shapes = batch(config, Shapes())
    roles: list[Role] = ["batch"] * len(shapes)
    return TrainStep(
        "bert",
        step_function("bert", config, loss),
        (params, initial_state(config, params, Shapes()), *shapes),
        ("state", "state", *roles),
        ((0, 0), (1, 1)),
    )


def build_inference(config: BertConfig) -> TrainStep:
    """Forward pass (params, tokens (B, S)) -> logits (B, S, V)."""

    def bert(params: Tree, inputs: jax.Array) -> jax.Array:
        return forward(config, params, inputs)

    shapes = (parameters(config, Shapes()), batch(config, Shapes())[0])
    return TrainStep("bert", bert, shapes, ("constant", "batch"))


def initial_values(config: BertConfig, seed: int = 0) -> tuple[Tree, ...]:
    """Random parameters and a batch of the built-in text (or random hidden states)."""
    source = Values(seed)
    params = parameters(config, source)
    first = masked_text(config, seed) if config.embeddings else batch(config, source)
    return (params, initial_state(config, params, source), *first)


MODEL = Model(
    "bert", "bidirectional encoder, masked tokens", BertConfig, PRESETS, build, build_inference, initial_values
)
