"""Run modules on one CPU device and, localised or by XLA's partitioner, on a mesh of them (tests only)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.extend.mlir import ir as jax_ir
from jax.extend.mlir.dialects import func as jax_func
from jax.interpreters import mlir as jax_mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import SHARDING, argument_attributes, read_sharding, result_attributes

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of XLA that make it compile in less time than it takes by default."""

_call = Primitive("tested_module")
_call.multiple_results = True
_call.def_abstract_eval(lambda *_, text, outs: [jax.core.ShapedArray(s, d) for s, d in outs])


def _lower(lowering, *values, text, outs):
    module = jax_ir.Module.parse(text, lowering.module_context.context)
    name = jax_mlir.merge_mlir_modules(
        lowering.module_context.module, "tested", module, dst_symtab=lowering.module_context.symbol_table
    )
    types = [jax_mlir.aval_to_ir_type(lowering.module_context, a) for a in lowering.avals_out]
    return list(jax_func.CallOp(types, jax_ir.FlatSymbolRefAttr.get(name), values).results)


jax_mlir.register_lowering(_call, _lower)


def numpy_type(element: ir.Type) -> np.dtype:
    text = str(element)
    if text.startswith("complex"):
        return np.dtype(np.complex64)
    if text == "i1":
        return np.dtype(bool)
    if text == "bf16":
        return np.dtype(jax.numpy.bfloat16)
    return np.dtype({"f": "float", "i": "int", "u": "uint"}[text[0]] + text.lstrip("fiu"))


def boundary(module: ir.Module):
    """(shape, dtype) of the arguments and of the results of @main, as lists."""
    kind = ir.FunctionType(ir.TypeAttr(functions(module)["main"].attributes["function_type"]).value)
    of = [ir.RankedTensorType(t) for t in (*kind.inputs, *kind.results)]
    found = [(tuple(t.shape), numpy_type(t.element_type)) for t in of]
    return found[: len(kind.inputs)], found[len(kind.inputs) :]


def random_inputs(module: ir.Module, rng: np.random.Generator) -> list[np.ndarray]:
    """Values for @main: normal floats, small non-negative integers."""
    found = []
    for shape, dtype in boundary(module)[0]:
        if dtype.kind in "iu":
            found.append(rng.integers(0, 7, shape).astype(dtype))
        elif dtype.kind == "b":
            found.append(rng.integers(0, 2, shape).astype(bool))
        elif dtype.kind == "c":
            found.append((rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype))
        else:
            found.append(rng.normal(size=shape).astype(dtype))
    return found


def _shardings(module: ir.Module, mesh: Mesh | None):
    main = functions(module)["main"]
    if mesh is None:
        return [None] * len(argument_attributes(main)), [None] * len(result_attributes(main))
    devices = np.array(jax.devices()[: mesh.device_count]).reshape(mesh.shape)
    on = jax.sharding.Mesh(devices, mesh.axis_names)

    def named(entry):
        if SHARDING not in entry:
            return NamedSharding(on, PartitionSpec())
        return NamedSharding(on, PartitionSpec(*(d or None for d in read_sharding(entry[SHARDING])[1].dims)))

    return [named(e) for e in argument_attributes(main)], [named(e) for e in result_attributes(main)]


def compile_all(modules: Sequence[ir.Module], mesh: Mesh | None = None):
    """One executable that runs the @main of all modules on one device, or on the mesh."""
    texts = [print_module(m) for m in modules]
    boundaries = [boundary(m) for m in modules]
    outs = [tuple(b[1]) for b in boundaries]
    shardings = [_shardings(m, mesh) for m in modules]
    counts = [len(b[0]) for b in boundaries]

    def run(*values):
        found, at = [], 0
        for text, out, n in zip(texts, outs, counts, strict=True):
            found.append(_call.bind(*values[at : at + n], text=text, outs=out))
            at += n
        return found

    flat_in = tuple(s for i, _ in shardings for s in i)
    options = {} if mesh is None else {"in_shardings": flat_in, "out_shardings": [o for _, o in shardings]}
    shapes = [jax.ShapeDtypeStruct(s, d) for b in boundaries for s, d in b[0]]
    return jax.jit(run, keep_unused=True, **options).lower(*shapes).compile(compiler_options=QUICK)


def run_all(modules: Sequence[ir.Module], inputs: Sequence[Sequence[np.ndarray]], mesh: Mesh | None = None):
    """The results of @main of each module as numpy arrays."""
    flat = [v for values in inputs for v in values]
    results = compile_all(modules, mesh)(*flat)
    return [[np.asarray(v) for v in values] for values in results]


def as_addends(values: Sequence[np.ndarray], module: ir.Module, rng: np.random.Generator) -> list[np.ndarray]:
    """Inputs as a localised module takes them: a partial argument becomes addends that sum to it exactly."""
    found = []
    for value, (shape, _) in zip(values, boundary(module)[0], strict=True):
        if len(shape) != value.ndim:
            owner = rng.integers(0, shape[0], value.shape)
            value = np.stack([np.where(owner == i, value, np.zeros_like(value)) for i in range(shape[0])])
        found.append(value)
    return found


def assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], what: str = "", tolerance=2e-5) -> None:
    """Equal up to rounding, relative to each result's largest magnitude; a leading dimension of addends is summed."""
    assert len(found) == len(expected)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.ndim == b.ndim + 1:
            a = a.sum(0, dtype=a.dtype)
        assert a.shape == b.shape, f"{what}: result {number} has shape {a.shape}, not {b.shape}"
        if a.dtype.kind in "biu":
            assert np.array_equal(a, b), f"{what}: result {number} differs"
            continue
        a, b = a.astype(np.complex128), b.astype(np.complex128)
        scale = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0)))
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance, err_msg=f"{what}: result {number}")
