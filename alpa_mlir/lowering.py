"""A jax step as a StableHLO module whose arguments say what they are (level 0 of docs/ir.md).

Positions of a Python function become positions in `@main` by flattening: argument i's leaves follow those of
arguments 0…i-1. Every leaf gets `alpa.role`; a leaf of a state argument also `alpa.updates = k`, the position of the
result leaf that replaces it, and the same as `tf.aliasing_output = k`, which stock tools understand as donation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import ROLE, UPDATES
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.models.step import TrainStep, Tree


def lower(step: TrainStep, platform: str = "cpu") -> ir.Module:
    """The step as StableHLO, lowered for `platform` ("cpu", "cuda", "rocm" or "tpu") without needing one.

    Raises `CompileError` at the function if a result does not fit the state argument that it replaces; what tracing
    the function raises passes through.
    """
    traced = jax.jit(step.function, keep_unused=True).trace(*step.arguments)
    lowered = traced.lower(lowering_platforms=(platform,))
    module = lowered.compiler_ir("stablehlo")
    _annotate(module, leaf_roles(step), leaf_updates(step, lowered.out_info))
    return module


def leaf_roles(step: TrainStep) -> list[str]:
    """The role of each argument of `@main`."""
    return [role for role, tree in zip(step.roles, step.arguments, strict=True) for _ in jax.tree.leaves(tree)]


def result_positions(results: Tree) -> Sequence[Tree]:
    """The results by position: the elements of a tuple or list, or the one result."""
    return results if isinstance(results, tuple | list) else (results,)


def leaf_updates(step: TrainStep, results: Tree) -> dict[int, int]:
    """Argument of `@main` -> the result of `@main` that replaces it, from the step's pairs of positions.

    results: the function's result as a pytree of leaves with shape and dtype. Raises `CompileError` on a misfit.
    """
    parts = result_positions(results)
    argument_starts = _starts(step.arguments)
    result_starts = _starts(parts)
    found: dict[int, int] = {}
    for argument, result in step.updates:
        if result >= len(parts):
            raise CompileError(
                f"result {result} is to replace argument {argument}, but there are only {len(parts)} results",
                function_location(step.function),
            )
        old, new = jax.tree.leaves(step.arguments[argument]), jax.tree.leaves(parts[result])
        misfit = _misfit(step.arguments[argument], parts[result])
        if misfit:
            raise CompileError(
                f"result {result} cannot replace argument {argument}: {misfit}", function_location(step.function)
            )
        for i in range(min(len(old), len(new))):
            found[argument_starts[argument] + i] = result_starts[result] + i
    return found


def _starts(trees: Sequence[Tree]) -> list[int]:
    """Position of the first leaf of each tree when all leaves are laid in a row."""
    return [0, *itertools.accumulate(len(jax.tree.leaves(tree)) for tree in trees)]


def same_shapes(old: Tree, new: Tree) -> bool:
    """Whether two pytrees have the same number of leaves, of the same shapes and types, in order."""
    return _misfit(old, new) is None


def _misfit(old: Tree, new: Tree) -> str | None:
    """The first difference of two pytrees' leaves, in words."""
    before = jax.tree_util.tree_leaves_with_path(old)
    after = jax.tree.leaves(new)
    if len(before) != len(after):
        return f"{len(before)} arrays before, {len(after)} after"
    for (path, a), b in zip(before, after, strict=True):
        if _type(a) != _type(b):
            name = jax.tree_util.keystr(path) or "it"
            return f"{name} is {_type(a)} before and {_type(b)} after"
    return None


def _type(leaf: Any) -> str:
    array = leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def function_location(function: Any) -> str:
    """`file:line:1` of a Python function, seen through jax.jit and functools.wraps; "-" if it has no source."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(getattr(function, "func", function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}:1" if code is not None else "-"


def _annotate(module: ir.Module, roles: Sequence[str], updates: dict[int, int]) -> None:
    """Write role and update of every argument on `@main`."""
    main = functions(module)["main"]
    count = len(main.regions[0].blocks[0].arguments)
    if count != len(roles):
        raise AssertionError(f"jax lowered {len(roles)} leaves to {count} arguments")
    present = ir.ArrayAttr(main.attributes["arg_attrs"]) if "arg_attrs" in main.attributes else [None] * count
    with module.context:
        i32, i64 = ir.IntegerType.get_signless(32), ir.IntegerType.get_signless(64)
        rows = []
        for index, (role, old) in enumerate(zip(roles, present, strict=True)):
            row = {} if old is None else {a.name: a.attr for a in ir.DictAttr(old)}
            row[ROLE] = ir.StringAttr.get(role)
            if index in updates:
                row[UPDATES] = ir.IntegerAttr.get(i64, updates[index])
                row["tf.aliasing_output"] = ir.IntegerAttr.get(i32, updates[index])
            rows.append(ir.DictAttr.get(row))
        main.attributes["arg_attrs"] = ir.ArrayAttr.get(rows)
