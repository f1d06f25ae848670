"""A stack of dense layers with a squared-error loss: the smallest program that has interesting plans.

With a large batch and small layers the best plan is data parallel; with a small batch and large layers it
alternates column- and row-partitioned weights, so that every second product ends in an all-reduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from .layers import Parameters, squared_error
from .optimizer import initial_state, step_function
from .step import Model, Shapes, Source, Training, TrainStep, Tree, Values, option, require_one_of


@dataclass(frozen=True)
class MlpConfig(Training):
    """Sizes of the MLP."""

    batch: int = option(32, "examples per step")
    layers: int = option(6, "dense layers")
    hidden: int = option(256, "width of every layer, input and output included")
    bias: bool = option(True, "dense layers have a bias")
    activation: str = option("relu", "relu, gelu, tanh or none, between the layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("activation", self.activation, ("relu", "gelu", "tanh", "none"))


ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "none": lambda x: x}
PRESETS = MappingProxyType({"tiny": MlpConfig(layers=2, hidden=32, batch=16)})


def parameters(config: MlpConfig, source: Source) -> Tree:
    """One {weight (M, M), bias (M,)} per layer."""
    shape, scale = (config.hidden, config.hidden), (2.0 / config.hidden) ** 0.5
    layers = []
    for _ in range(config.layers):
        layer = {"weight": source.normal(shape, config.dtype, scale)}
        if config.bias:
            layer["bias"] = source.full((config.hidden,), config.dtype, 0.0)
        layers.append(layer)
    return {"layers": layers}


def batch(config: MlpConfig, source: Source) -> tuple[Tree, ...]:
    """Inputs and targets, each (B, M)."""
    shape = (config.batch, config.hidden)
    return source.normal(shape, config.dtype, 1.0), source.normal(shape, config.dtype, 1.0)


def forward(config: MlpConfig, params: Tree, x: jax.Array) -> jax.Array:
    """Outputs (B, M) of inputs (B, M)."""
    activation = ACTIVATIONS[config.activation]

    def layer(p: Parameters, x: jax.Array) -> jax.Array:
        y = x @ p["weight"]
        return y + p["bias"] if "bias" in p else y

    apply = jax.checkpoint(layer) if config.remat else layer
    for index, p in enumerate(params["layers"]):
        x = apply(p, x)
        if index + 1 < config.layers:
            x = activation(x)
    return x


def _arguments(config: MlpConfig, source: Source) -> tuple[Tree, ...]:
    params = parameters(config, source)
    return (params, initial_state(config, params, source), *batch(config, source))


def build(config: MlpConfig) -> TrainStep:
    """Training step (params, optimizer, inputs, targets) -> (params, optimizer, loss)."""

    def loss(params: Tree, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return squared_error(forward(config, params, inputs), targets)

    return TrainStep(
        "mlp",
        step_function("mlp", config, loss),
        _arguments(config, Shapes()),
        ("state", "state", "batch", "batch"),
        ((0, 0), (1, 1)),
    )


def build_inference(config: MlpConfig) -> TrainStep:
    """Forward pass (params, inputs) -> outputs."""

    def mlp(params: Tree, inputs: jax.Array) -> jax.Array:
        return forward(config, params, inputs)

    shapes = (parameters(config, Shapes()), batch(config, Shapes())[0])
    return TrainStep("mlp", mlp, shapes, ("constant", "batch"))


def initial_values(config: MlpConfig, seed: int = 0) -> tuple[Tree, ...]:
    """Random arguments of the training step."""
    return _arguments(config, Values(seed))


MODEL = Model("mlp", "stack of dense layers, squared error", MlpConfig, PRESETS, build, build_inference, initial_values)
