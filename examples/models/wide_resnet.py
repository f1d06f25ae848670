"""Wide-ResNet: bottleneck blocks whose 3×3 convolution is `width` times wider (Zagoruyko & Komodakis 2016).

Batch norm's running statistics are state: they are an argument of the step that a result replaces. Batch statistics
mix examples, so such a step split into microbatches normalises each microbatch by itself; with --norm group
(Wu & He 2018) every example is normalised alone and splitting the batch is exact.
Images are NHWC, convolution weights HWIO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .layers import Parameters, token_losses
from .optimizer import OptimizerState, apply_gradients, initial_state
from .step import (
    Model,
    Role,
    Shapes,
    Source,
    Training,
    TrainStep,
    Tree,
    Values,
    option,
    require_divides,
    require_one_of,
)

BLOCKS = MappingProxyType({14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)})
MOMENTUM = 0.9  # of the running statistics
GROUPS = 4  # of group norm
ACTIVATIONS = MappingProxyType({"relu": jax.nn.relu, "silu": jax.nn.silu})


@dataclass(frozen=True)
class WideResnetConfig(Training):
    """Sizes of a Wide-ResNet."""

    batch: int = option(16, "examples per step")
    depth: int = option(26, "layers: 14, 26, 50 or 101")
    channels: int = option(8, "channels of the first stage's blocks; each stage doubles them")
    width: int = option(2, "factor on the channels of the 3×3 convolutions")
    image: int = option(16, "height and width of an image; from 64 on the stem shrinks it by 4")
    classes: int = option(16, "classes")
    norm: str = option("batch", "batch (with running statistics) or group")
    activation: str = option(
        "silu", "relu (the named sizes), or silu: smooth, so that rounding flips no gradient and runs can be compared"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("norm", self.norm, ("batch", "group"))
        require_one_of("activation", self.activation, tuple(ACTIVATIONS))
        require_divides("8", 8, "image", self.image)
        require_divides("4", GROUPS, "channels", self.channels)
        if self.depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, not {self.depth}")

    @property
    def large_images(self) -> bool:
        """Whether the stem is a 7×7 convolution of stride 2 and a pooling of stride 2, as on ImageNet."""
        return self.image >= 64


def _preset(depth: int, channels: int, width: int) -> WideResnetConfig:
    return WideResnetConfig(
        depth=depth, channels=channels, width=width, image=224, classes=1024, batch=1536, activation="relu"
    )


PRESETS = MappingProxyType(
    {
        "tiny": WideResnetConfig(depth=14, channels=8, image=16),
        "250M": _preset(50, 160, 2),
        "1B": _preset(50, 320, 2),
        "2B": _preset(50, 448, 2),
        "4B": _preset(50, 640, 2),
        "6.8B": _preset(50, 320, 16),
        "13B": _preset(101, 320, 16),
    }
)


class WideResnetResult(NamedTuple):
    """What the training step returns; the first three replace the first three arguments."""

    params: Tree
    optimizer: OptimizerState
    statistics: Tree
    loss: jax.Array


class Builder(NamedTuple):
    """Makes the parameters of convolutions with their norm, and beside them the running statistics."""

    config: WideResnetConfig
    source: Source

    def unit(self, size: int, inputs: int, outputs: int) -> tuple[Parameters, Parameters]:
        """A size×size convolution with its norm."""
        dtype, source = self.config.dtype, self.source
        scale = (2.0 / (size * size * inputs)) ** 0.5
        p = {
            "kernel": source.normal((size, size, inputs, outputs), dtype, scale),
            "scale": source.full((outputs,), dtype, 0.0),
            "bias": source.full((outputs,), dtype, 0.0),
        }
        if self.config.norm == "group":
            return p, {}
        return p, {
            "mean": source.full((outputs,), "float32", 0.0),
            "variance": source.full((outputs,), "float32", 1.0),
        }

    def block(self, inputs: int, channels: int, changes: bool) -> tuple[Parameters, Parameters]:
        """1×1, wide 3×3, 1×1; with a 1×1 on the shortcut where the shape `changes`."""
        wide = channels * self.config.width
        units = {
            "reduce": self.unit(1, inputs, channels),
            "wide": self.unit(3, channels, wide),
            "expand": self.unit(1, wide, 4 * channels),
        }
        if changes:
            units["shortcut"] = self.unit(1, inputs, 4 * channels)
        return {k: p for k, (p, _) in units.items()}, {k: s for k, (_, s) in units.items()}


def block_shapes(config: WideResnetConfig) -> Iterator[tuple[int, int, int]]:
    """Of each block in order: input channels, inner channels, stride."""
    inputs = config.channels
    for stage, count in enumerate(BLOCKS[config.depth]):
        channels = config.channels * 2**stage
        for index in range(count):
            yield inputs, channels, 2 if index == 0 and stage > 0 else 1
            inputs = 4 * channels


def parameters(config: WideResnetConfig, source: Source) -> tuple[Tree, Tree]:
    """Parameters and running statistics (which are empty with group norm)."""
    builder = Builder(config, source)
    stem = builder.unit(7 if config.large_images else 3, 3, config.channels)
    blocks = [builder.block(i, c, i != 4 * c or s > 1) for i, c, s in block_shapes(config)]
    features = 4 * config.channels * 2 ** (len(BLOCKS[config.depth]) - 1)
    params = {
        "stem": stem[0],
        "blocks": [p for p, _ in blocks],
        "weight": source.normal((features, config.classes), config.dtype, 0.01),
        "bias": source.full((config.classes,), config.dtype, 0.0),
    }
    return params, {"stem": stem[1], "blocks": [s for _, s in blocks]}


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution (N, H, W, I) with (h, w, I, O), padded so that the size shrinks by the stride alone."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def group_norm(p: Parameters, x: jax.Array) -> jax.Array:
    """Normalise each example over space and channel groups."""
    wide = x.astype(jnp.float32).reshape(*x.shape[:3], GROUPS, x.shape[3] // GROUPS)
    centred = wide - wide.mean((1, 2, 4), keepdims=True)
    normal = centred * jax.lax.rsqrt((centred * centred).mean((1, 2, 4), keepdims=True) + 1e-5)
    return normal.reshape(x.shape).astype(x.dtype) * (1 + p["scale"]) + p["bias"]


def batch_norm(p: Parameters, s: Parameters, x: jax.Array, training: bool) -> tuple[jax.Array, Parameters]:
    """Normalise each channel by the batch's statistics (training) or the running ones; return the new running ones."""
    wide = x.astype(jnp.float32)
    if training:
        mean = wide.mean((0, 1, 2))
        variance = (wide * wide).mean((0, 1, 2)) - mean * mean
        new = {
            "mean": MOMENTUM * s["mean"] + (1 - MOMENTUM) * mean,
            "variance": MOMENTUM * s["variance"] + (1 - MOMENTUM) * variance,
        }
    else:
        mean, variance, new = s["mean"], s["variance"], s
    normal = (wide - mean) * jax.lax.rsqrt(variance + 1e-5)
    return normal.astype(x.dtype) * (1 + p["scale"]) + p["bias"], new


def forward(
    config: WideResnetConfig, params: Tree, statistics: Tree, images: jax.Array, *, training: bool
) -> tuple[jax.Array, Tree]:
    """Logits (N, classes) of images (N, H, W, 3), and the new running statistics."""
    activation = ACTIVATIONS[config.activation]

    def unit(p: Parameters, s: Parameters, x: jax.Array, stride: int = 1) -> tuple[jax.Array, Parameters]:
        x = convolve(x, p["kernel"], stride)
        return (group_norm(p, x), s) if config.norm == "group" else batch_norm(p, s, x, training)

    def block(p: Any, s: Any, x: jax.Array, stride: int) -> tuple[jax.Array, Parameters]:
        new = dict(s)
        shortcut = x
        if "shortcut" in p:
            shortcut, new["shortcut"] = unit(p["shortcut"], s["shortcut"], x, stride)
        y, new["reduce"] = unit(p["reduce"], s["reduce"], x)
        y, new["wide"] = unit(p["wide"], s["wide"], activation(y), stride)
        y, new["expand"] = unit(p["expand"], s["expand"], activation(y))
        return activation(y + shortcut), new

    apply = jax.checkpoint(block, static_argnums=3) if config.remat else block
    x, stem = unit(params["stem"], statistics["stem"], images, 2 if config.large_images else 1)
    x = activation(x)
    if config.large_images:
        # A literal: jax differentiates a window maximum only if it sees that the start value is -inf.
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    blocks = []
    for p, s, (_, _, stride) in zip(params["blocks"], statistics["blocks"], block_shapes(config), strict=True):
        x, new = apply(p, s, x, stride)
        blocks.append(new)
    features = x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
    return features @ params["weight"] + params["bias"], {"stem": stem, "blocks": blocks}


def batch(config: WideResnetConfig, source: Source) -> tuple[Tree, ...]:
    """Images (N, H, W, 3) and labels (N,) i32."""
    images = source.normal((config.batch, config.image, config.image, 3), config.dtype, 1.0)
    return images, source.integers((config.batch,), config.classes)


def build(config: WideResnetConfig) -> TrainStep:
    """Training step (params, optimizer, statistics, images, labels) -> (params, optimizer, statistics, loss)."""

    def wide_resnet(
        params: Tree, optimizer: OptimizerState, statistics: Tree, images: jax.Array, labels: jax.Array
    ) -> WideResnetResult:
        def loss(p: Tree) -> tuple[jax.Array, Tree]:
            logits, new = forward(config, p, statistics, images, training=True)
            return token_losses(logits, labels).mean() * config.loss_scale, new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        params, optimizer = apply_gradients(config, params, optimizer, gradients)
        return WideResnetResult(params, optimizer, new, value / config.loss_scale)

    roles: tuple[Role, ...] = ("state", "state", "state", "batch", "batch")
    return TrainStep("wide_resnet", wide_resnet, _arguments(config, Shapes()), roles, ((0, 0), (1, 1), (2, 2)))


def build_inference(config: WideResnetConfig) -> TrainStep:
    """Forward pass with the running statistics, (params, statistics, images) -> logits."""

    def wide_resnet(params: Tree, statistics: Tree, images: jax.Array) -> jax.Array:
        return forward(config, params, statistics, images, training=False)[0]

    params, statistics = parameters(config, Shapes())
    arguments = (params, statistics, batch(config, Shapes())[0])
    return TrainStep("wide_resnet", wide_resnet, arguments, ("constant", "constant", "batch"))


def _arguments(config: WideResnetConfig, source: Source) -> tuple[Tree, ...]:
    params, statistics = parameters(config, source)
    return (params, initial_state(config, params, source), statistics, *batch(config, source))


def initial_values(config: WideResnetConfig, seed: int = 0) -> tuple[Tree, ...]:
    """Random arguments of the training step."""
    return _arguments(config, Values(seed))


MODEL = Model(
    "wide_resnet",
    "bottleneck convolutions, batch or group norm",
    WideResnetConfig,
    PRESETS,
    build,
    build_inference,
    initial_values,
)
