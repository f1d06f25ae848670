"""A ready MLIR context: the one place that knows where the bindings come from.

Everything else imports `ir` and the op classes from here, so that jaxlib's bindings can be exchanged
for stock MLIR ones in one file.  The dialect list is that of `jax.interpreters.mlir.make_ir_context`;
unregistered ops are allowed because the instructions of a plan are unregistered `alpa.*` ops.
"""

from __future__ import annotations

import ctypes

from jaxlib.mlir import ir
from jaxlib.mlir import passmanager as passmanager
from jaxlib.mlir._mlir_libs import _jax_mlir_ext, _mlir
from jaxlib.mlir.dialects import chlo, mhlo, mpmd, sdy
from jaxlib.mlir.dialects import func as func
from jaxlib.mlir.dialects import stablehlo as stablehlo

from alpa_mlir.dialect.diagnostics import CompileError, from_mlir_error

BYTECODE_MAGIC = b"ML\xefR"

_pass_libraries: list[bool] = []


def make_context() -> ir.Context:
    """A context with every dialect of the compiler loaded and `alpa.*` ops allowed."""
    context = ir.Context()
    registry = ir.DialectRegistry()
    _jax_mlir_ext.register_dialects(registry)
    context.append_dialect_registry(registry)
    context.load_all_available_dialects()
    for dialect in (sdy, mpmd, chlo, stablehlo):
        dialect.register_dialect(context)
    mhlo.register_mhlo_dialect(context)
    context.allow_unregistered_dialects = True
    if not _pass_libraries:
        stablehlo.register_stablehlo_passes()
        # Else every look at an `alpa.*` op looks for a Python module of its dialect in all of sys.path, in vain.
        _mlir.globals.append_dialect_search_prefix("alpa_mlir.dialect")
        _pass_libraries.append(True)
    return context


def parse_module(source: bytes | str, context: ir.Context, filename: str = "-") -> ir.Module:
    """The module in `source`: StableHLO text, MLIR bytecode or a portable artifact (VHLO bytecode).

    Raises `CompileError` at `filename:line:col` for anything else.
    """
    raw = source.encode() if isinstance(source, str) else source
    if raw.startswith(BYTECODE_MAGIC):
        return _parse_bytecode(raw, context, filename)
    if not raw.strip():
        raise CompileError("the file is empty: expected an MLIR module", f"{filename}:1:1")
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        raise CompileError(
            "neither MLIR text (not UTF-8) nor MLIR bytecode (no 'MLïR' at its start)", f"{filename}:1:1"
        ) from e
    return _parse(text, context, filename)


def _parse(source: bytes | str, context: ir.Context, filename: str) -> ir.Module:
    try:
        return ir.Module.parse(source, context)
    except ir.MLIRError as e:
        raise from_mlir_error(e, filename) from None


def _parse_bytecode(raw: bytes, context: ir.Context, filename: str) -> ir.Module:
    if b"StableHLO_v" not in raw[:64]:
        return _parse(raw, context, filename)
    try:
        return stablehlo.deserialize_portable_artifact(context, raw)
    except (ir.MLIRError, ValueError) as e:
        message = str(e).strip().splitlines()[0] if str(e).strip() else "unreadable"
        raise CompileError(f"not a readable StableHLO portable artifact: {message}", f"{filename}:1:1") from None


def print_module(module: ir.Module, *, locations: bool = False) -> str:
    """The module as text that parses back identically, ending in a newline."""
    text: str = module.operation.get_asm(enable_debug_info=locations, large_elements_limit=None)
    return text if text.endswith("\n") else text + "\n"


def clone_module(module: ir.Module) -> ir.Module:
    """A deep copy in the same context."""
    with module.context, ir.Location.unknown():
        copy = ir.Module.create()
    replace_module(copy, module)
    return copy


def replace_module(module: ir.Module, other: ir.Module) -> None:
    """Give `module` the attributes and a copy of the body of `other`, a module of the same context."""
    for op in list(module.body.operations):
        op.operation.erase()
    for name in list(module.operation.attributes):
        del module.operation.attributes[name]
    for name in other.operation.attributes:
        module.operation.attributes[name] = other.operation.attributes[name]
    for op in other.body.operations:
        module.body.append(op.operation.clone())


def functions(module: ir.Module) -> dict[str, ir.Operation]:
    """The functions of a module by name, in order (valid only while the module object is held)."""
    found: dict[str, ir.Operation] = {}
    for op in module.body.operations:
        if op.operation.name == "func.func":
            found[ir.StringAttr(op.operation.attributes["sym_name"]).value] = op.operation
    return found


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def op_id(op: ir.Operation | ir.OpView) -> int:
    """The address of an operation: a key that stays the same while the op is changed.

    `hash(op)` is structural and changes under mutation, so it must not key a dict or a set.
    """
    return int(_get_pointer(op.operation._CAPIPtr, b"jaxlib.mlir.ir.Operation._CAPIPtr"))
