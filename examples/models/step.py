"""What a built-in model hands to the compiler: one step as a pure function, and what each argument is.

A compiler that distributes a training step needs more than the function: it must know which arguments
survive from one step to the next (state), which are split over examples (batch) and which never change
(constant), and which result replaces which state argument. `TrainStep` says exactly that and holds no
weights: its arguments are shapes. The same parameter function yields shapes for planning a 405B model and
numbers for training a small one, because it asks a `Source` for every array (`Shapes` or `Values`).

Mixed precision follows Micikevicius et al. 2018 (arXiv:1710.03740): 16-bit parameters and activations,
f32 master parameters in the optimizer's state, a constant loss scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any  # a pytree of arrays or of jax.ShapeDtypeStruct
Role = Literal["state", "batch", "constant"]


@dataclass(frozen=True)
class TrainStep:
    """One step of a program: `function(*arguments)` with the role of each positional argument.

    arguments: one pytree of `jax.ShapeDtypeStruct` (or arrays) per positional argument of `function`.
    roles:     one role per positional argument; it holds for every leaf of that argument.
    updates:   pairs (argument position, result position): that result, leaf by leaf, is the argument's
               value in the next step. Every "state" argument stands in exactly one pair.
    An inference step is one without state: parameters are "constant".
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Tree, ...]
    roles: tuple[Role, ...]
    updates: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.roles) != len(self.arguments):
            raise ValueError(f"{self.name}: {len(self.arguments)} arguments but {len(self.roles)} roles")
        unknown = sorted(set(self.roles) - {"state", "batch", "constant"})
        if unknown:
            raise ValueError(f"{self.name}: role {unknown[0]!r} is none of state, batch, constant")
        state = [i for i, role in enumerate(self.roles) if role == "state"]
        if sorted(argument for argument, _ in self.updates) != state:
            raise ValueError(f"{self.name}: state arguments {state} but updates {list(self.updates)}")

    @property
    def parameter_count(self) -> int:
        """Number of elements in the first argument, which holds the model's parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.arguments[0]))


def option(default: Any, meaning: str) -> Any:
    """A configuration field with the sentence that `alpa-mlir-export NAME --help` shows for it."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Training:
    """Fields that every model's configuration has."""

    batch: int = option(8, "examples per step")
    dtype: str = option("float32", "type of parameters and activations: float32, bfloat16 or float16")
    optimizer: str = option("adam", "adam or sgd (with momentum 0.9)")
    learning_rate: float = option(5e-4, "step size of the optimizer")
    master: bool = option(True, "with a 16-bit dtype, keep an f32 copy of the parameters in the optimizer's state")
    moments: str = option("float32", "type in which the optimizer keeps its moments")
    sums: str = option("float32", "type in which gradients are added up: float32, or dtype for half the memory")
    loss_scale: float = option(1.0, "factor on the loss before, and off the gradients after, the backward pass")
    remat: bool = option(False, "recompute each layer in the backward pass (jax.checkpoint)")

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        require_one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        require_one_of("optimizer", self.optimizer, ("adam", "sgd"))
        require_one_of("moments", self.moments, ("float32", "bfloat16", "float16"))
        require_one_of("sums", self.sums, dict.fromkeys(("float32", self.dtype)))
        if not (self.loss_scale > 0 and self.learning_rate > 0):
            raise ValueError("loss_scale and learning_rate must be positive")


def require_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def require_divides(divisor: str, small: int, dividend: str, large: int) -> None:
    """Raise ValueError unless `small` divides `large`."""
    if large % small:
        raise ValueError(f"{dividend} ({large}) must be a multiple of {divisor} ({small})")


class Source(Protocol):
    """Where a model's arrays come from. Every method gives an array, or its shape alone."""

    def normal(self, shape: tuple[int, ...], dtype: str, scale: float = 0.02) -> Any: ...
    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any: ...
    def cast(self, leaf: Any, dtype: str) -> Any: ...
    def integers(self, shape: tuple[int, ...], limit: int) -> Any: ...


@dataclass(frozen=True)
class Shapes:
    """A source of `jax.ShapeDtypeStruct`: nothing is allocated, nothing is traced."""

    def normal(self, shape: tuple[int, ...], dtype: str, scale: float = 0.02) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def cast(self, leaf: Any, dtype: str) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))

    def integers(self, shape: tuple[int, ...], limit: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype("int32"))


class Values:
    """A source of numpy arrays drawn from one seeded generator, in the order they are asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def normal(self, shape: tuple[int, ...], dtype: str, scale: float = 0.02) -> Any:
        return (scale * self.generator.standard_normal(shape, np.float32)).astype(jnp.dtype(dtype))

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        return np.full(shape, value, jnp.dtype(dtype))

    def cast(self, leaf: Any, dtype: str) -> Any:
        return leaf.astype(jnp.dtype(dtype))

    def integers(self, shape: tuple[int, ...], limit: int) -> Any:
        return self.generator.integers(0, limit, shape, np.int32)


class StepResult(NamedTuple):
    """What a training step returns; the first two replace the first two arguments."""

    params: Tree
    optimizer: Tree
    loss: jax.Array


@dataclass(frozen=True)
class Model:
    """A built-in model: its configuration class, named sizes, and three ways to make its step.

    build(config):            the training step, arguments are shapes.
    build_inference(config):  the forward pass alone, parameters are "constant".
    initial_values(config, seed): numpy arguments for `build(config).function`, one pytree per position.
    """

    name: str
    summary: str
    config: type[Training]
    presets: Mapping[str, Training]
    build: Callable[[Any], TrainStep]
    build_inference: Callable[[Any], TrainStep]
    initial_values: Callable[[Any, int], tuple[Tree, ...]]
