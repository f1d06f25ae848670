"""Read a program from a file, whatever form of StableHLO it is in: recognised by content, never by name.

| form | begins with |
|---|---|
| StableHLO text | anything else that is UTF-8 |
| MLIR bytecode | `ML\\xefR`, producer `MLIR…` |
| portable artifact (VHLO bytecode) | `ML\\xefR`, producer `StableHLO_v…` |
| serialized `jax.export` | a flatbuffer whose field 13 is a portable artifact |

A serialized jax.export is a flatbuffer table (jax's `serialization.fbs`). Only its module is wanted, so only that
field is read, with bounds checks, rather than `jax.export.deserialize`: that one refuses a file whose pytrees hold
classes (an optax state, a NamedTuple) which the reading process has not registered.

The bytecode reader of MLIR may abort the process on a damaged file. Bytecode is therefore read once in a child process
(`python -m alpa_mlir.model_file`), and here only if the child survived; it costs a fraction of a second.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import BYTECODE_MAGIC, functions, make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.reading import Unreadable, read_file, read_open

MODULE_FIELD = 13  # Exported.mlir_module_serialized in serialization.fbs; flatbuffers never renumber a field
REFUSED = 65  # the child's exit status for a CompileError, unlike that of a crash
SECONDS, SECONDS_PER_MEGABYTE = 60, 2  # a damaged file may send the bytecode reader into an endless loop


def read_model(path: str | Path, context: ir.Context) -> ir.Module:
    """The module in the file `path`, or on standard input for "-", in `context` (see `dialect.context.make_context`).

    Raises `CompileError` at the file, or at a line of it, for whatever is not one of the four forms.
    """
    return module_from_bytes(read_bytes(path), context, "<stdin>" if str(path) == "-" else str(path))


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, or of standard input for "-". Raises `CompileError` if it cannot be read."""
    if str(path) != "-":
        return read_file(path)
    try:
        return read_open(sys.stdin.buffer)
    except (OSError, Unreadable) as e:
        why = getattr(e, "strerror", None) or e
        raise CompileError(f"cannot read the file: {why}", "<stdin>:1:1") from None


def module_from_bytes(raw: bytes, context: ir.Context, filename: str) -> ir.Module:
    """The module in `raw`, in any of the four forms; `filename` is for errors. Raises `CompileError`."""
    exported = exported_module(raw)
    if exported is not None:
        module = _parse_bytecode(exported, context, filename)
        _require_static(module, filename)
        return module
    if raw.startswith(BYTECODE_MAGIC):
        return _parse_bytecode(raw, context, filename)
    if b"\0" in raw:
        # MLIR's lexer would take it for the end of the file and read a shorter program.
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise CompileError("neither MLIR text (it has a NUL byte) nor any binary form", f"{filename}:{line}:1")
    return _parse(raw, context, filename)


def exported_module(raw: bytes) -> bytes | None:
    """The portable artifact inside a serialized jax.export, or None if `raw` is not a whole one.

    A flatbuffer starts with the offset of its root table; a table starts with the distance back to its vtable:
    u16 vtable size, u16 table size, then one u16 per field, the field's offset in the table or 0. A vector field
    holds the distance to a u32 length that the elements follow.
    """
    try:
        (table,) = struct.unpack_from("<I", raw, 0)
        (back,) = struct.unpack_from("<i", raw, table)
        vtable = table - back
        if vtable < 4:
            return None
        (vtable_size,) = struct.unpack_from("<H", raw, vtable)
        slot = 4 + 2 * MODULE_FIELD
        if slot + 2 > vtable_size:
            return None
        (field,) = struct.unpack_from("<H", raw, vtable + slot)
        (distance,) = struct.unpack_from("<I", raw, table + field)
        vector = table + field + distance
        (length,) = struct.unpack_from("<I", raw, vector)
    except struct.error:
        return None
    artifact = raw[vector + 4 : vector + 4 + length]
    whole = field != 0 and len(artifact) == length and artifact.startswith(BYTECODE_MAGIC)
    return artifact if whole else None


def _parse_bytecode(raw: bytes, context: ir.Context, filename: str) -> ir.Module:
    """Parse bytecode that a child process has parsed before us; its refusal is ours."""
    command = [sys.executable, "-m", "alpa_mlir.model_file", filename]
    limit = SECONDS + SECONDS_PER_MEGABYTE * len(raw) / 2**20
    try:
        probe = subprocess.run(command, input=raw, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise CompileError(f"damaged bytecode: not read after {limit:.0f} s", f"{filename}:1:1") from None
    if probe.returncode == REFUSED:
        location, _, message = probe.stdout.decode(errors="replace").partition("\0")
        raise CompileError(message, location)
    if probe.returncode != 0:
        raise CompileError(
            f"damaged bytecode: reading it ended the reader (exit status {probe.returncode})", f"{filename}:1:1"
        )
    return _parse(raw, context, filename)


def _parse(raw: bytes, context: ir.Context, filename: str) -> ir.Module:
    """Parse with errors at `filename`: the bindings call every buffer "-", and bytecode's position 0:0."""
    try:
        return parse_module(raw, context, filename)
    except CompileError as e:
        if e.location.startswith("-:0:"):
            raise CompileError(e.message, f"{filename}:1:1", e.notes) from None
        if e.location.startswith("-:"):
            raise CompileError(e.message, filename + e.location[1:], e.notes) from None
        raise


def _require_static(module: ir.Module, filename: str) -> None:
    """Refuse what jax.export alone can say: symbolic shapes, and a platform chosen by an argument."""
    main = functions(module).get("main")
    if main is None:
        return
    for argument in main.regions[0].blocks[0].arguments:
        tensor = ir.ShapedType(argument.type) if isinstance(argument.type, ir.RankedTensorType) else None
        if tensor is not None and not tensor.has_static_shape:
            raise CompileError(
                f"argument {argument.arg_number} has the symbolic shape {argument.type}:"
                " export the function with the sizes it is to run with",
                f"{filename}:1:1",
            )
    attributes = ir.ArrayAttr(main.attributes["arg_attrs"]) if "arg_attrs" in main.attributes else ()
    if any("_platform_index" in str(a) for a in attributes):
        raise CompileError(
            "exported for several platforms: export it with platforms=(…) of a single name", f"{filename}:1:1"
        )


def _probe(filename: str) -> int:
    """Child process: parse standard input; 0 if it is a module, REFUSED with `location NUL message` on stdout."""
    try:
        _parse(sys.stdin.buffer.read(), make_context(), filename)
    except CompileError as e:
        sys.stdout.buffer.write(f"{e.location}\0{e.message}".encode(errors="replace"))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_probe(sys.argv[1]))
