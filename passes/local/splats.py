"""Constants whose elements are all one number, of any element type: neutral start values and factors."""

from __future__ import annotations

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo


def splat(kind: ir.Type, value: float) -> ir.Value:
    """A tensor of type `kind` full of `value`, at the current insertion point and location."""
    element = ir.RankedTensorType(kind).element_type
    if isinstance(element, ir.ComplexType):
        # The bindings make no constants of complex numbers.
        parts = ir.RankedTensorType.get(ir.RankedTensorType(kind).shape, ir.ComplexType(element).element_type)
        return stablehlo.complex(splat(parts, value), splat(parts, 0))
    if isinstance(element, ir.IntegerType):
        scalar: ir.Attribute = ir.IntegerAttr.get(element, int(value))
    else:
        scalar = ir.FloatAttr.get(element, float(value))
    return stablehlo.constant(ir.DenseElementsAttr.get_splat(kind, scalar))
