"""Simplification of what counts along a dimension: `iota`, comparisons of it, and its numbers one by one.

Frontends wrap the indices of a gather or scatter (`i < 0 ? i + n : i`) and broadcast them; upstream then does not see
that an index runs along the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.passes import splat
from alpa_mlir.passes.rules import defining, dimensions, in_place_of, integers, number_constant, rule
from alpa_mlir.passes.splat import Splat, dense_value, splat_of


@rule("iota")
def iota_of_one(op: ir.Operation) -> ir.Value | None:
    """An iota along a dimension of size 1 is zero."""
    element = ir.RankedTensorType(op.results[0].type).element_type
    if dimensions(op.results[0])[_along(op)] != 1 or isinstance(element, ir.ComplexType):
        return None
    return number_constant(op, 0.0 if isinstance(element, ir.FloatType) else 0)


@rule("broadcast_in_dim")
def broadcast_of_iota(op: ir.Operation) -> ir.Value | None:
    """A broadcast of an iota is an iota."""
    inner = defining(op.operands[0], "iota")
    if inner is None:
        return None
    along = integers(op, "broadcast_dimensions")[_along(inner)]
    if dimensions(op.results[0])[along] != dimensions(inner.results[0])[_along(inner)]:
        return None
    return _iota(op, along)


@rule("reshape")
def reshape_of_iota(op: ir.Operation) -> ir.Value | None:
    """A reshape of an iota that only adds or removes dimensions of size 1 is an iota."""
    inner = defining(op.operands[0], "iota")
    if inner is None:
        return None
    before, after = dimensions(inner.results[0]), dimensions(op.results[0])
    kept = [[d for d, size in enumerate(shape) if size != 1] for shape in (before, after)]
    if [before[d] for d in kept[0]] != [after[d] for d in kept[1]] or _along(inner) not in kept[0]:
        return None
    return _iota(op, kept[1][kept[0].index(_along(inner))])


@rule("slice")
def slice_of_iota(op: ir.Operation) -> ir.Value | None:
    """One place of an iota is the number of the place."""
    inner = defining(op.operands[0], "iota")
    kind = ir.RankedTensorType(op.results[0].type)
    if inner is None or kind.shape[_along(inner)] != 1 or isinstance(kind.element_type, ir.ComplexType):
        return None
    number = integers(op, "start_indices")[_along(inner)]
    return number_constant(op, float(number) if isinstance(kind.element_type, ir.FloatType) else number)


@rule("slice")
def slice_of_constant(op: ir.Operation) -> ir.Value | None:
    """One element of a constant of integers."""
    elements = dense_value(op.operands[0])
    if elements is None or not isinstance(elements, ir.DenseIntElementsAttr) or prod(dimensions(op.results[0])) != 1:
        return None
    if ir.IntegerType(elements.type.element_type).width == 1:
        return None
    starts, shape = integers(op, "start_indices"), dimensions(op.operands[0])
    return number_constant(op, int(elements[_position(starts, shape)]))


@rule("compare")
def compare_iota(op: ir.Operation) -> ir.Value | None:
    """A comparison of an iota with a number that is above or below all of its elements."""
    inner, number = defining(op.operands[0], "iota"), splat_of(op.operands[1])
    if inner is None or number is None or number.is_float or isinstance(number.value, bool):
        return None
    last = dimensions(inner.results[0])[_along(inner)] - 1
    ends = [splat.compare(splat.direction(op), Splat(n, number.element), number) for n in (0, last)]
    inside = 0 <= number.value <= last and splat.direction(op) in ("EQ", "NE")
    return None if inside or ends[0] != ends[1] else number_constant(op, ends[0])


def _position(place: Sequence[int], shape: Sequence[int]) -> int:
    """The number of an element in row-major order."""
    number = 0
    for at, size in zip(place, shape, strict=True):
        number = number * size + at
    return number


def _along(iota: ir.Operation) -> int:
    return int(ir.IntegerAttr(iota.attributes["iota_dimension"]).value)


def _iota(op: ir.Operation, along: int) -> ir.Value:
    made = stablehlo.IotaOp(op.results[0].type, along, loc=op.location, ip=ir.InsertionPoint(op))
    return in_place_of(op, made)
