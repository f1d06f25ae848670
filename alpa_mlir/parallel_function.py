"""`parallelize`: a jax function that runs as a plan on all devices of this process.

The first call with arguments of some shapes exports the function, plans it, compiles the stages; later calls only
run.  State stays where it is: what a call returns for a state argument, given to the next call, is not moved, and its
memory is taken over, as with `jax.jit(…, donate_argnums=…)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from alpa_mlir.api import Planned, function_name, plan, program_store
from alpa_mlir.foreign import make_step
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.runtime.execute import InProcess, devices_here


@dataclass(frozen=True)
class _Ready:
    """A plan for arguments of one shape, at work; `implementations` are those of results that are keys, else None."""

    planned: Planned
    running: InProcess
    arguments: tuple[Any, ...]
    results: Any
    implementations: tuple[Any, ...]
    dtypes: tuple[Any, ...]


class ParallelFunction:
    """What `parallelize` makes; call it like the function.  `plan_for` is the plan of a call."""

    def __init__(
        self,
        function: Callable[..., Any],
        roles: Sequence[str] | None,
        cluster: Cluster | str,
        platform: str,
        cache: bool,
        options: dict[str, Any],
    ) -> None:
        functools.update_wrapper(self, function)
        self._function, self._roles, self._cluster, self._options = function, roles, cluster, options
        self._platform, self._store = platform, program_store(cache)
        self._ready: dict[Any, _Ready] = {}

    def __call__(self, *arguments: Any) -> Any:
        """The function's results; arrays are on the devices of the stages that make them."""
        ready = self._for(arguments)
        wanted = jax.tree.leaves(ready.arguments)
        given = jax.tree.leaves(arguments)
        ready.running.place([_plain(value, like) for value, like in zip(given, wanted, strict=True)])
        found = ready.running.step()
        named = zip(found, ready.implementations, ready.dtypes, strict=True)
        return jax.tree.unflatten(ready.results, [_wrapped(value, name, dtype) for value, name, dtype in named])

    def plan_for(self, *arguments: Any) -> Planned:
        """The plan for a call with these arguments, arrays all of them."""
        return self._for(arguments).planned

    def _for(self, arguments: tuple[Any, ...]) -> _Ready:
        leaves, tree = jax.tree.flatten(arguments)
        key = (tree, tuple((np.shape(leaf), _dtype(leaf)) for leaf in leaves))
        if key not in self._ready:
            step = make_step(self._function, arguments, self._roles, function_name(self._function))
            self._ready[key] = self._make(step)
        return self._ready[key]

    def _make(self, step: TrainStep) -> _Ready:
        # A result is one array, on one stage.
        options = {**self._options, "unstack": False}
        if isinstance(self._cluster, str) and not options.keys() & {"nodes", "devices_per_node"}:
            options |= {"nodes": 1, "devices_per_node": len(devices_here(self._platform))}
        planned = plan(step, self._cluster, **options)
        likes, tree = jax.tree.flatten(jax.eval_shape(step.function, *step.arguments))
        implementations = tuple(_implementation(like) for like in likes)
        running = InProcess(planned.text, self._platform, self._store)
        dtypes = tuple([like.dtype for like in likes])
        return _Ready(planned, running, step.arguments, tree, implementations, dtypes)


def parallelize(
    function: Callable[..., Any] | None = None,
    *,
    roles: Sequence[str] | None = None,
    cluster: Cluster | str = "cpu",
    platform: str = "auto",
    cache: bool = True,
    **options: Any,
) -> Any:
    """Let a jax function run as a plan on this process's devices; also a decorator, with or without options.

    roles:    what each positional argument is, "state", "batch" or "constant"; default: what jax.jit donates is state,
              the rest batch. The first result with the shapes of a state argument replaces it.
    cluster:  what the planner takes the devices for; a preset's sizes are those of this process unless given.
    platform: "cpu", "cuda", or "auto": what jax computes on in this process.
    cache:    whether compiled programs are kept for the next time, where alpa-mlir-run keeps its own.
    options:  as for `alpa_mlir.plan`.

    Arguments are positional pytrees of arrays. Raises `CompileError` where the function cannot be planned.
    """
    if function is None:
        return functools.partial(parallelize, roles=roles, cluster=cluster, platform=platform, cache=cache, **options)
    return ParallelFunction(function, roles, cluster, platform, cache, options)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else type(leaf)


def _is_key(dtype: Any) -> bool:
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def _plain(value: Any, like: jax.ShapeDtypeStruct) -> Any:
    """An argument as `@main` takes it: keys of jax.random as their integers, numbers as arrays, arrays of numpy in 32
    bits where jax computes in these."""
    if _is_key(like.dtype):
        return jax.random.key_data(value)
    return value if isinstance(value, jax.Array) else np.asarray(value, like.dtype)


def _implementation(like: jax.ShapeDtypeStruct) -> Any:
    """Of keys of jax.random the implementation, which only a traced key tells; None for other arrays."""
    if not _is_key(like.dtype):
        return None
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


def _wrapped(value: jax.Array, implementation: Any, dtype: Any) -> Any:
    """A result of `@main` as the function gives it: keys as keys, elements shorter than a byte as such."""
    if implementation is not None:
        return jax.random.wrap_key_data(value, impl=implementation)
    return value if value.dtype == dtype else value.astype(dtype)
