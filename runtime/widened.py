"""A program with its floats of 16 bits or fewer as f32: what its results are but for rounding.

Tells rounding from a mistake: two correct runs of a program in short floats differ, as each adds in its own order, but
neither is much farther from the same program in f32 than the other.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime.stage_function import StageFunction

_SHORT = r"(?:bf16|f16|f[864]E\w+)"
_TENSOR = re.compile(rf"(?<=[<x]){_SHORT}(?=>)")


def is_short(element: str) -> bool:
    """Whether this is the MLIR spelling of a float of 16 bits or fewer."""
    return re.fullmatch(_SHORT, element) is not None


def short_floats(function: StageFunction) -> frozenset[str]:
    """Those that a program computes with."""
    return frozenset(re.findall(rf"tensor<(?:\d+x)*({_SHORT})>", function.text))


def widened(function: StageFunction) -> StageFunction | None:
    """The same program with f32 for all short floats; None where it says more of them than a type can.

    (Constants that are not one number throughout, casts of bits.)
    """
    module = parse_module(function.text, make_context())
    try:
        for other in functions(module).values():
            for op in list(alpa.walk(other)):
                if op.name == "stablehlo.constant":
                    _widen_constant(op)
        text = _TENSOR.sub("f32", print_module(module))
        parse_module(text, make_context())
    except (CompileError, ir.MLIRError, ValueError, TypeError):
        return None
    sides = [
        tuple([replace(t, element="f32") if is_short(t.element) else t for t in side])
        for side in (function.arguments, function.results)
    ]
    return replace(function, write=partial(str, text), arguments=sides[0], results=sides[1])


def _widen_constant(op: ir.Operation) -> None:
    """Put f32 and a conversion in the place of a constant of a short type; ValueError for several numbers."""
    kind = ir.RankedTensorType(op.results[0].type)
    if not is_short(str(kind.element_type)):
        return
    value = ir.DenseElementsAttr(op.attributes["value"])
    if not value.is_splat:
        raise ValueError("a constant of several numbers")
    with op.context, op.location, ir.InsertionPoint(op):
        number = ir.FloatAttr.get(ir.F32Type.get(), ir.FloatAttr(value.get_splat_value()).value)
        wide = ir.DenseElementsAttr.get_splat(ir.RankedTensorType.get(kind.shape, ir.F32Type.get()), number)
        constant = stablehlo.ConstantOp(wide)
        short = stablehlo.ConvertOp(kind, constant.result)
        op.results[0].replace_all_uses_with(short.result)
    op.erase()
