"""One's own jax function as a step, named `package.module:function` or `path/file.py:function`.

The name may stand for, tried in this order:

1. a `alpa_mlir.models.TrainStep`;
2. a function with example arguments: `NAME_arguments` in the same module (a tuple, or a function that returns one), or
   an attribute `example_arguments` of the function. Each example argument is a pytree of arrays, of numbers or of
   `jax.ShapeDtypeStruct`. Optional beside it, `NAME_roles` or an attribute `roles`: "state", "batch" or "constant" per
   argument;
3. a function that can be called without arguments and returns a `TrainStep`, or `(function, arguments)`, or
   `(function, arguments, roles)`.

Without roles, arguments donated by `jax.jit(…, donate_argnums=…)` are state and all others batch. A state argument is
replaced by the first result, not yet taken, whose arrays have the same shapes and types in the same order.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.lowering import function_location, result_positions, same_shapes
from alpa_mlir.models.step import TrainStep, Tree

# What code that is not ours may raise while it is imported or traced; jax's own errors derive from these.
FOREIGN_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


class UnknownNameError(Exception):
    """The name given on the command line leads nowhere: wrong usage, not a fault in a program."""


def load_step(name: str) -> TrainStep:
    """The step that `name` stands for. Raises `UnknownNameError`, or `CompileError` for a fault in the foreign code."""
    place, _, attribute = name.rpartition(":")
    module = _import(place)
    owner = module
    for part in attribute.split("."):
        if not hasattr(owner, part):
            raise UnknownNameError(f"{place} has no {attribute!r}")
        owner = getattr(owner, part)
    with located_errors(f"{getattr(module, '__file__', None) or place}:1:1"):
        return _step(owner, module, attribute)


@contextmanager
def located_errors(default: str) -> Iterator[None]:
    """Turn an exception of foreign code into a `CompileError` at the innermost line that is neither ours nor jax's.

    default: the location where no such line is known.
    """
    try:
        yield
    except FOREIGN_ERRORS as e:
        lines = str(e).strip().splitlines()
        message = f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__
        if isinstance(e, SyntaxError) and e.filename:
            location = f"{e.filename}:{e.lineno}:{e.offset or 1}"
        else:
            location = _innermost(e) or default
        raise CompileError(message, location) from e


def _innermost(error: BaseException) -> str | None:
    ours = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        library = "site-packages" in name or name.startswith(("<", ours)) or name == contextmanager.__code__.co_filename
        if not library and not name.startswith(str(Path(inspect.__file__).parent)):
            return f"{name}:{frame.lineno}:{(frame.colno or 0) + 1}"
    return None


def _import(place: str) -> ModuleType:
    """Import a module by dotted name, searched in the current directory first, or by the path of a .py file."""
    return _import_file(place) if place.endswith(".py") else _import_name(place)


def _import_file(place: str) -> ModuleType:
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UnknownNameError(f"no file {place!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    with located_errors(f"{place}:1:1"):
        spec.loader.exec_module(module)
    return module


def _import_name(place: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if not all(part.isidentifier() for part in place.split(".")):
        raise UnknownNameError(f"{place!r} is not a module's name")
    with located_errors(f"{place}:1:1"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as e:
            if e.name and (place == e.name or place.startswith(e.name + ".")):
                raise UnknownNameError(f"no module {place!r}") from None
            raise


def _step(thing: Any, module: ModuleType, name: str) -> TrainStep:
    if isinstance(thing, TrainStep):
        return thing
    if not callable(thing):
        raise UnknownNameError(f"{name!r} is neither a function nor a TrainStep")
    arguments = _beside(thing, module, name, "arguments", "example_arguments")
    if arguments is not None:
        return make_step(thing, arguments, _beside(thing, module, name, "roles", "roles"), name)
    required = [
        p.name
        for p in inspect.signature(thing).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        raise CompileError(
            f"{name} takes {', '.join(required)} but has no example arguments: define {name}_arguments beside it,"
            " a tuple of arrays or jax.ShapeDtypeStruct, one per parameter",
            function_location(thing),
        )
    made = thing()
    if isinstance(made, TrainStep):
        return made
    if isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0]):
        return make_step(made[0], made[1], made[2] if len(made) == 3 else None, name)
    raise CompileError(
        f"{name}() must return a TrainStep, (function, arguments) or (function, arguments, roles),"
        f" not {type(made).__name__}",
        function_location(thing),
    )


def _beside(thing: Any, module: ModuleType, name: str, suffix: str, attribute: str) -> Any:
    """A companion of the function: `NAME_suffix` in its module, or its own attribute; called if it is a function."""
    found = getattr(module, f"{name}_{suffix}", getattr(thing, attribute, None))
    return found() if callable(found) else found


def make_step(function: Callable[..., Any], arguments: Any, roles: Any, name: str) -> TrainStep:
    """A step from a jax function, jitted or not, and example arguments.

    roles: one per argument, or None: what jax.jit donates is state, the rest batch. Raises `CompileError`.
    """
    if not isinstance(arguments, tuple | list):
        raise CompileError(
            f"the example arguments of {name} must be a tuple, not {type(arguments).__name__}",
            function_location(function),
        )
    shapes = tuple(jax.tree.map(_shape, argument) for argument in arguments)
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    traced = jitted.trace(*shapes)
    if roles is None:
        donated = [[leaf.donated for leaf in jax.tree.leaves(a)] for a in traced.args_info[0]]
        roles = ["state" if leaves and all(leaves) else "batch" for leaves in donated]
    if len(roles) != len(shapes) or any(role not in ("state", "batch", "constant") for role in roles):
        raise CompileError(
            f"the roles of {name} must be {len(shapes)} of state, batch and constant, not {roles!r}",
            function_location(function),
        )
    updates = _infer_updates(function, name, roles, shapes, result_positions(traced.out_info))
    return TrainStep(name, function, shapes, tuple(roles), updates)


def _infer_updates(
    function: Any, name: str, roles: Sequence[str], arguments: Sequence[Tree], results: Sequence[Tree]
) -> tuple[tuple[int, int], ...]:
    """For each state argument the first result, not yet taken, that has its shapes."""
    updates = []
    free = list(range(len(results)))
    for argument, role in enumerate(roles):
        if role != "state":
            continue
        fits = [k for k in free if same_shapes(arguments[argument], results[k])]
        if not fits:
            raise CompileError(
                f"argument {argument} of {name} is state, but no result has the same arrays to replace it",
                function_location(function),
            )
        updates.append((argument, fits[0]))
        free.remove(fits[0])
    return tuple(updates)


def _shape(leaf: Tree) -> jax.ShapeDtypeStruct:
    array = leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True))
