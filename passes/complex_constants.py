"""Constants of complex numbers as `stablehlo.complex` of two constants of floats.

The Python bindings can neither read nor make attributes of complex elements (any access raises TypeError), while MLIR's
printer and parser know them.  So they are read from the op's text, `dense<(re, im)>`, nested lists of such pairs, or
the bytes in hexadecimal digits of a large one, and are not met again by the passes that follow.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.passes.splat import CONSTANT

_ELEMENTS = re.compile(r"dense<(.*?)> : tensor<", re.DOTALL)
_PAIR = re.compile(r"\(([^(),]*),([^(),]*)\)")
_BYTES = re.compile(r'"0x([0-9A-Fa-f]*)"')


def split_complex_constants(root: ir.Operation) -> None:
    """Rewrite every constant of complex numbers below `root`."""
    for op in [op for op in walk(root) if op.name == CONSTANT and _is_complex(op.results[0])]:
        with ir.InsertionPoint(op), op.location:
            real, imaginary = (stablehlo.constant(part) for part in _parts(op))
            op.results[0].replace_all_uses_with(stablehlo.complex(real, imaginary))
        op.erase()


def _is_complex(value: ir.Value) -> bool:
    return isinstance(ir.RankedTensorType(value.type).element_type, ir.ComplexType)


def _parts(op: ir.Operation) -> tuple[ir.Attribute, ir.Attribute]:
    """The real and the imaginary part of a constant as attributes."""
    kind = ir.RankedTensorType(op.results[0].type)
    part = ir.RankedTensorType.get(kind.shape, ir.ComplexType(kind.element_type).element_type)
    found = _ELEMENTS.search(op.get_asm(print_generic_op_form=True))
    assert found is not None, "a constant prints its elements"
    text = found.group(1)
    raw = _BYTES.fullmatch(text)
    if raw is None:
        real, imaginary = (_PAIR.sub(keep, text) for keep in (r"\1", r"\2"))
        return ir.Attribute.parse(f"dense<{real}> : {part}"), ir.Attribute.parse(f"dense<{imaginary}> : {part}")
    number = np.complex64 if part.element_type.width == 32 else np.complex128
    elements = np.frombuffer(bytes.fromhex(raw.group(1)), number).reshape(kind.shape)
    return _dense(elements.real, part), _dense(elements.imag, part)


def _dense(elements: np.ndarray[Any, np.dtype[Any]], kind: ir.Type) -> ir.Attribute:
    return ir.DenseElementsAttr.get(np.ascontiguousarray(elements), type=kind)
