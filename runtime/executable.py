"""From a stage function in the plan to an executable on the stage's devices.

The function, cut out into a module of its own (`stage_function`), becomes the lowering of one jax primitive, which
`jax.jit` compiles ahead of time: the public road to PJRT, with jax's own checks of shapes and shardings on
every call (PJRT itself checks nothing and crashes).  Equal functions on equal devices compile once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend.core import Primitive
from jax.extend.mlir import ir as jax_ir
from jax.extend.mlir.dialects import func as jax_func
from jax.interpreters import mlir as jax_mlir
from jax.sharding import NamedSharding, PartitionSpec

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.runtime import compiled
from alpa_mlir.runtime.compiled import Store
from alpa_mlir.runtime.gloo import without_reduce_scatter
from alpa_mlir.runtime.lapack import ready_for
from alpa_mlir.runtime.stage_function import StageFunction

_NUMPY = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "ui8": np.uint8, "ui16": np.uint16, "ui32": np.uint32, "ui64": np.uint64,
    "i4": ml_dtypes.int4, "ui4": ml_dtypes.uint4, "i2": ml_dtypes.int2, "ui2": ml_dtypes.uint2,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn, "f8E5M2": ml_dtypes.float8_e5m2, "f8E8M0FNU": ml_dtypes.float8_e8m0fnu,
    "f8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "f8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "f8E4M3B11FNUZ": ml_dtypes.float8_e4m3b11fnuz, "f8E4M3": ml_dtypes.float8_e4m3, "f8E3M4": ml_dtypes.float8_e3m4,
    "f4E2M1FN": ml_dtypes.float4_e2m1fn,
    "complex<f32>": np.complex64, "complex<f64>": np.complex128,
}  # fmt: skip
_STORED = {"i4": "i8", "ui4": "ui8", "i2": "i8", "ui2": "ui8", "f4E2M1FN": "f8E4M3FN"}
"""Elements shorter than a byte, between programs: jax refuses its own arrays of them on several devices, because the
layout that it gives such an array is not the one that it compiles for."""


def exact_dtype(element: str) -> np.dtype[Any]:
    """The numpy type of an MLIR element type such as `f32`, `bf16`, `ui32`, `i4`; CompileError for others."""
    if element not in _NUMPY:
        raise CompileError(f"tensors of {element} cannot be executed")
    found: np.dtype[Any] = np.dtype(_NUMPY[element])
    return found


def dtype_of(element: str) -> np.dtype[Any]:
    """The numpy type in which values of an MLIR element type lie between programs: a byte where it is shorter."""
    return exact_dtype(_STORED.get(element, element))


def stored(value: np.ndarray[Any, Any], element: str) -> np.ndarray[Any, Any]:
    """An array of an element type as it lies between programs; one of another type stays as it is."""
    exact = exact_dtype(element)
    if value.dtype.kind == "V" and value.dtype.itemsize == exact.itemsize:
        value = value.view(exact)  # numpy's files keep such types as raw bytes
    return value.astype(dtype_of(element), copy=False) if value.dtype == exact else value


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
    results = tuple((t.shape, exact_dtype(t.element)) for t in function.results)
    takes = [exact_dtype(t.element) for t in function.arguments]
    gives = [dtype_of(t.element) for t in function.results]
    ins = tuple(named(mesh, t.sharding) for t in function.arguments)
    outs = [named(mesh, t.sharding) for t in function.results]
    on_cpus_of_many = mesh.is_multi_process and mesh.devices.flat[0].platform == "cpu"
    text = without_reduce_scatter(function.text) if on_cpus_of_many else function.text

    def stage(*operands: Any) -> list[Any]:
        values = [v.astype(d) for v, d in zip(operands, takes, strict=True)]
        found = call_module.bind(*values, text=text, results=results)
        return [v.astype(d) for v, d in zip(found, gives, strict=True)]

    stage.__name__ = function.name
    jitted = jax.jit(stage, in_shardings=ins, out_shardings=outs, donate_argnums=function.donated, keep_unused=True)
    return jitted.lower(*(jax.ShapeDtypeStruct(t.shape, dtype_of(t.element)) for t in function.arguments))
