"""Run a step before and after `alpa-microbatch` on one device and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import backend
from jaxlib import _jax
from jaxlib.mlir import ir
from on_devices import QUICK

from alpa_mlir.dialect.alpa import verify
from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.passes.microbatch import Microbatch
from alpa_mlir.passes.normalize import Normalize

Arrays = list[np.ndarray]


def level1(step: Callable[..., Any], arguments: Sequence[Any], roles: Sequence[str]) -> tuple[ir.Module, Arrays]:
    """A jax function at level 1 and its flat inputs; one role per positional argument."""
    text = jax.jit(step, keep_unused=True).lower(*arguments).as_text(debug_info=True)
    counts = [len(jax.tree.leaves(a)) for a in arguments]
    flat = [role for role, n in zip(roles, counts, strict=True) for _ in range(n)]
    numbers = {kind: ",".join(str(i) for i, r in enumerate(flat) if r == kind) for kind in ("batch", "state")}
    module = parse_module(text, make_context())
    Normalize(batch_args=numbers["batch"] or "none", state_args=numbers["state"]).apply(module, [])
    return module, [np.asarray(leaf) for a in arguments for leaf in jax.tree.leaves(a)]


def microbatched(module: ir.Module, count: int, **options: bool) -> ir.Module:
    """A verified copy at level 2."""
    copy = clone_module(module)
    Microbatch(count=count, **options).apply(copy, [])
    assert copy.operation.verify()
    verify(copy)
    return copy


def execute(module: ir.Module, inputs: Arrays) -> Arrays:
    """Results of `@main` on one device."""
    device = jax.devices("cpu")[0]
    options = backend.get_compile_options(1, 1, env_options_overrides=QUICK)
    program = device.client.compile_and_load(print_module(module), _jax.DeviceList((device,)), options)
    kept = program.execute_sharded([jax.device_put(v, device) for v in inputs])
    return [np.asarray(r[0]) for r in kept.disassemble_into_single_device_arrays()]


def close(actual: Arrays, expected: Arrays, tolerance: float = 1e-5) -> None:
    """Every result within `tolerance` of the largest magnitude of the expected one (noise around zero: 1e-4)."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == e.dtype, i
        if e.size:
            wide = np.complex128 if np.iscomplexobj(e) else np.float64
            bound = tolerance * max(1e-4, float(np.abs(e.astype(wide)).max()))
            np.testing.assert_allclose(a.astype(wide), e.astype(wide), rtol=0, atol=bound, err_msg=f"result {i}")


def check(
    step: Callable[..., Any],
    arguments: Sequence[Any],
    roles: Sequence[str],
    counts: Sequence[int] = (1, 4),
    tolerance: float = 1e-5,
) -> dict[int, ir.Module]:
    """Compare level 2 with level 1 for each number of microbatches; returns the level-2 modules."""
    module, inputs = level1(step, arguments, roles)
    expected = execute(module, inputs)
    made = {}
    for count in counts:
        made[count] = microbatched(module, count)
        close(execute(made[count], inputs), expected, tolerance)
    return made


def bindings_of(module: ir.Module, name: str) -> tuple[list[str], list[str]]:
    """The bindings of a derived function's arguments and results."""
    from alpa_mlir.dialect.alpa import bindings
    from alpa_mlir.dialect.sharding import argument_attributes, result_attributes

    function = functions(module)[name]
    return (
        [str(b) for b in bindings(argument_attributes(function))],
        [str(b) for b in bindings(result_attributes(function))],
    )


def op_names(module: ir.Module, name: str) -> list[str]:
    """Names of the top-level ops of a function."""
    return [op.operation.name for op in functions(module)[name].regions[0].blocks[0].operations]
