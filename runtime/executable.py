"""From a stage function in the plan to an executable on the stage's devices.

The function is cut out into a module of its own and becomes the lowering of one jax primitive, which
`jax.jit` compiles ahead of time: the public road to PJRT, with jax's own checks of shapes and shardings on
every call (PJRT itself checks nothing and crashes).  The body is either one `sdy.manual_computation`, the
explicit program of one device, or sharded ops that XLA's Shardy partitioner turns into one.

`alpa.donate` on an argument lets a result take over its buffer.  Equal functions on equal devices compile once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend.core import Primitive
from jax.extend.mlir import ir as jax_ir
from jax.extend.mlir.dialects import func as jax_func
from jax.interpreters import mlir as jax_mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    read_sharding,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)
from alpa_mlir.runtime import compiled
from alpa_mlir.runtime.compiled import Store
from alpa_mlir.runtime.gloo import without_reduce_scatter
from alpa_mlir.runtime.lapack import ready_for

_NUMPY = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "ui8": np.uint8, "ui16": np.uint16, "ui32": np.uint32, "ui64": np.uint64,
    "i4": ml_dtypes.int4, "ui4": ml_dtypes.uint4,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn, "f8E5M2": ml_dtypes.float8_e5m2,
    "complex<f32>": np.complex64, "complex<f64>": np.complex128,
}  # fmt: skip


def dtype_of(element: str) -> np.dtype[Any]:
    """The numpy type of an MLIR element type such as `f32`, `bf16`, `ui32`, `i1`; CompileError for others."""
    if element not in _NUMPY:
        raise CompileError(f"tensors of {element} cannot be executed")
    found: np.dtype[Any] = np.dtype(_NUMPY[element])
    return found


@dataclass(frozen=True)
class Tensor:
    """Global shape, element type (MLIR spelling) and sharding of an argument or result of a stage function."""

    shape: tuple[int, ...]
    element: str
    sharding: Sharding

    def __str__(self) -> str:
        dims = "".join(f"{n}x" for n in self.shape)
        return f"tensor<{dims}{self.element}> sharded {self.sharding.text('mesh')}"


@dataclass(frozen=True)
class StageFunction:
    """A stage function by itself: a module's text with a public @main, and what its boundary looks like."""

    name: str
    text: str
    arguments: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    donated: tuple[int, ...]


def extract(module: ir.Module, name: str) -> StageFunction:
    """Cut the function `name` out of a module, with its mesh and whatever it calls; CompileError if it is missing."""
    found = functions(module)
    if name not in found:
        raise CompileError(f"the module has no function @{name}", module.operation.location)
    function = found[name]
    entries = argument_attributes(function)
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    arguments = _tensors(kind.inputs, entries, function)
    results = _tensors(kind.results, result_attributes(function), function)
    donated = tuple(i for i, entry in enumerate(entries) if alpa.DONATE in entry)
    return StageFunction(name, _standalone(module, found, name), arguments, results, donated)


def _tensors(
    types: Sequence[ir.Type], entries: Sequence[dict[str, ir.Attribute]], function: ir.Operation
) -> tuple[Tensor, ...]:
    found = []
    for kind, entry in zip(types, entries, strict=True):
        if not isinstance(kind, ir.RankedTensorType) or not kind.has_static_shape:
            raise CompileError(
                f"a stage function takes and gives tensors of static shape, not {kind}", function.location
            )
        sharding = read_sharding(entry[SHARDING])[1] if SHARDING in entry else Sharding.replicated(kind.rank)
        found.append(Tensor(tuple(kind.shape), str(kind.element_type), sharding))
    return tuple(found)


def _standalone(module: ir.Module, found: dict[str, ir.Operation], name: str) -> str:
    """The text of a module that holds the function as its public @main, its callees and the meshes."""
    with module.context, ir.Location.unknown():
        alone = ir.Module.create()
        used = _callees(found, name)
        for op in module.body.operations:
            if op.operation.name == "sdy.mesh":
                alone.body.append(op.operation.clone())
        for other in used:
            alone.body.append(found[other].clone())
        main = functions(alone)[name]
        main.attributes["sym_name"] = ir.StringAttr.get("main")
        main.attributes["sym_visibility"] = ir.StringAttr.get("public")
        for function in functions(alone).values():
            _plain(function)
        _drop_unused_meshes(alone)
        if all(mesh.device_count == 1 for mesh in meshes_of(alone).values()):
            _inline_manual_computations(main)
        return print_module(alone)


def _callees(found: dict[str, ir.Operation], name: str) -> list[str]:
    """The function and all it calls, in order of first use."""
    order, pending = [name], [name]
    while pending:
        for op in alpa.walk(found[pending.pop()]):
            if op.name == "func.call":
                callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
                if callee not in order and callee in found:
                    order.append(callee)
                    pending.append(callee)
    return order


def _plain(function: ir.Operation) -> None:
    """Drop what only the compiler reads, and say reshards as XLA's partitioner accepts them."""
    set_argument_attributes(function, [_without_alpa(e) for e in argument_attributes(function)])
    set_result_attributes(function, [_without_alpa(e) for e in result_attributes(function)])
    for op in [function, *alpa.walk(function)]:
        for attribute in [a for a in op.attributes if a.startswith("alpa.") or a == "mesh_shape"]:
            del op.attributes[attribute]
        if op.name == "sdy.reshard":
            constraint = sdy.ShardingConstraintOp(op.operands[0], op.attributes["sharding"], ip=ir.InsertionPoint(op))
            op.results[0].replace_all_uses_with(constraint.result)
    for op in [o for o in alpa.walk(function) if o.name == "sdy.reshard"]:
        op.erase()


def _inline_manual_computations(function: ir.Operation) -> None:
    """On one device a manual computation is its own body; XLA runs no partitioner there that could unwrap it."""
    for op in [o for o in alpa.walk(function) if o.name == "sdy.manual_computation"]:
        block = op.regions[0].blocks[0]
        for argument, operand in zip(block.arguments, op.operands, strict=True):
            argument.replace_all_uses_with(operand)
        *body, end = [inner.operation for inner in block.operations]
        for inner in body:
            inner.move_before(op)
        for result, value in zip(op.results, list(end.operands), strict=True):
            result.replace_all_uses_with(value)
        op.erase()


def _without_alpa(entry: dict[str, ir.Attribute]) -> dict[str, ir.Attribute]:
    return {name: attribute for name, attribute in entry.items() if name == SHARDING}


def _drop_unused_meshes(module: ir.Module) -> None:
    text = "\n".join(str(f) for f in functions(module).values())
    for op in list(module.body.operations):
        if op.operation.name == "sdy.mesh":
            name = ir.StringAttr(op.operation.attributes["sym_name"]).value
            if f"@{name}," not in text:
                op.operation.erase()


call_module = Primitive("alpa_stage")
"""Calls the @main of a module given as text."""
call_module.multiple_results = True


def _avals(*_: Any, text: str, results: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in results]


def _lower(context: Any, *operands: Any, text: str, results: Any) -> list[Any]:
    outer = context.module_context
    module = jax_ir.Module.parse(text, outer.context)
    name = jax_mlir.merge_mlir_modules(outer.module, "stage", module, dst_symtab=outer.symbol_table)
    types = [jax_mlir.aval_to_ir_type(outer, aval) for aval in context.avals_out]
    return list(jax_func.CallOp(types, jax_ir.FlatSymbolRefAttr.get(name), operands).results)


call_module.def_abstract_eval(_avals)
jax_mlir.register_lowering(call_module, _lower)


def jax_mesh(mesh: Mesh, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The jax mesh of a stage: `devices` in row-major order."""
    return jax.sharding.Mesh(np.array(devices, dtype=object).reshape(mesh.shape), mesh.axis_names)


def named(mesh: jax.sharding.Mesh, sharding: Sharding) -> NamedSharding:
    """The jax sharding that says the same; CompileError for partial values."""
    if sharding.partial:
        raise CompileError(f"a value partial over {list(sharding.partial)} cannot be passed between functions")
    return NamedSharding(mesh, PartitionSpec(*(axes if axes else None for axes in sharding.dims)))


class Compiler:
    """Compiles programs, each distinct one once per mesh, or takes them from `store` (see `compiled`)."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._cache: dict[Any, jax.stages.Compiled] = {}

    def compile(self, function: StageFunction, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
        """An executable that takes and gives jax arrays sharded over `mesh`; CompileError where XLA refuses."""
        ready_for(function.text)
        # The name is left out: equal stages have equal programs.
        what = (function.text, function.arguments, function.results, function.donated)
        return self.obtain(what, mesh, lambda: _lowered(function, mesh), f"@{function.name}")

    def obtain(
        self, what: Hashable, mesh: jax.sharding.Mesh, lower: Callable[[], jax.stages.Lowered], name: str
    ) -> jax.stages.Compiled:
        """The executable of what `lower` gives; `what` says all that decides it, and has a telling repr."""
        if (what, mesh) not in self._cache:
            self._cache[what, mesh] = self._load_or_compile(what, mesh, lower, name)
        return self._cache[what, mesh]

    def _load_or_compile(
        self, what: Hashable, mesh: jax.sharding.Mesh, lower: Callable[[], jax.stages.Lowered], name: str
    ) -> jax.stages.Compiled:
        key = compiled.digest(what, mesh) if self._store is not None else None
        if self._store is None or key is None:
            return _compile(lower, name)
        found = compiled.load(self._store, key, mesh)
        if found is None:
            found = _compile(lower, name)
            compiled.save(self._store, key, found)
        return found


def _compile(lower: Callable[[], jax.stages.Lowered], name: str) -> jax.stages.Compiled:
    try:
        # jax warns where it finds no result of the donated argument's type: the plan's choice, not the user's.
        with jax.enable_x64(True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
            return lower().compile()
    except (jax.errors.JaxRuntimeError, jax_ir.MLIRError) as e:
        first = str(e).strip().splitlines()[0]
        raise CompileError(f"XLA cannot compile {name}: {first}") from e


def _lowered(function: StageFunction, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    results = tuple((t.shape, dtype_of(t.element)) for t in function.results)
    ins = tuple(named(mesh, t.sharding) for t in function.arguments)
    outs = [named(mesh, t.sharding) for t in function.results]
    on_cpus_of_many = mesh.is_multi_process and mesh.devices.flat[0].platform == "cpu"
    text = without_reduce_scatter(function.text) if on_cpus_of_many else function.text

    def stage(*operands: Any) -> list[Any]:
        return list(call_module.bind(*operands, text=text, results=results))

    stage.__name__ = function.name
    jitted = jax.jit(stage, in_shardings=ins, out_shardings=outs, donate_argnums=function.donated, keep_unused=True)
    return jitted.lower(*(jax.ShapeDtypeStruct(t.shape, dtype_of(t.element)) for t in function.arguments))
