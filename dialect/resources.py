"""Constants whose elements stand apart from the text, as resources of the file: made constants like others.

    %0 = stablehlo.constant dense_resource<weights> : tensor<4xf32>
    {-# dialect_resources: { builtin: { weights: "0x04000000…" } } #-}

XLA does not read them. A resource is four bytes that say its alignment, then the elements, as `dense<"0x…">` has them.
"""

from __future__ import annotations

import re

from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.diagnostics import CompileError

CONSTANTS = ("stablehlo.constant", "mhlo.constant")
_RESOURCE = re.compile(r"dense_resource<(.*)> : (.*)", re.DOTALL)
_BLOB = re.compile(r'([\w.$-]+|"[^"]*"): "0x([0-9A-Fa-f]*)"')
_ALIGNMENT = 8
"""Digits of the four bytes before the elements."""


def inline_resources(module: ir.Module) -> None:
    """Put the elements into the constants. CompileError at a constant whose resource is missing or does not fit."""
    ops = [op for op in walk(module.operation) if op.name in CONSTANTS and _is_resource(op)]
    if not ops:
        return
    blobs = _blobs(module)
    for op in ops:
        found = _RESOURCE.fullmatch(str(op.attributes["value"]))
        assert found is not None
        name, kind = found.groups()
        if name not in blobs:
            raise CompileError(f"the file has no resource {name}", op.location)
        try:
            value = ir.Attribute.parse(f'dense<"0x{blobs[name][_ALIGNMENT:]}"> : {kind}', module.context)
        except ir.MLIRError:
            size = max(0, len(blobs[name]) - _ALIGNMENT) // 2
            raise CompileError(f"the resource {name} has {size} bytes: not those of {kind}", op.location) from None
        op.attributes["value"] = value


def _is_resource(op: ir.Operation) -> bool:
    try:
        ir.DenseResourceElementsAttr(op.attributes["value"])
    except (ValueError, TypeError):  # the second: the bindings have no class for constants of complex numbers
        return False
    return True


def _blobs(module: ir.Module) -> dict[str, str]:
    """The resources as hexadecimal digits; the bindings tell them in the module's text alone."""
    text: str = module.operation.get_asm(large_elements_limit=None)
    _, _, section = text.rpartition("{-#")
    return {name: digits for name, digits in _BLOB.findall(section)}
