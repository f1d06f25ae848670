"""One op, made smaller: the rewrite shared by microbatches (time) and shards (devices).

Splitting a program over an axis means: shrink every dimension whose factor carries the axis, and leave
the op otherwise as it is.  For most ops only the types change (the attributes of `dot_general`,
`transpose`, `reduce`, … speak of dimensions, not of sizes).  A few attributes do speak of sizes, and two
ops speak of positions:

* `slice`, `dynamic_slice`, `gather`: extents of dimensions that are taken whole follow the operand;
* `convolution`: group counts are ratios of sizes and are computed anew;
* `iota` and constants that are not splats hold other values in each part: they need the part's offset.

This file is mechanical; which factors may be split is decided by `alpa_mlir.dialect.factors`.
Compare Shardy's `sdy-convert-global-to-local` and GSPMD (Xu et al. 2021, §4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.factors import shape_of

Shape = tuple[int, ...]
Offset = Callable[[int], ir.Value | None]
"""For a dimension of the result: where the part begins in the whole, as an integer scalar value.

Asked only for dimensions that shrink; None stands for zero.
"""


def shrink_op(
    op: ir.Operation,
    operands: Sequence[ir.Value],
    result_shapes: Sequence[Shape],
    ip: ir.InsertionPoint,
    offset: Offset,
) -> list[ir.Value]:
    """Clone `op` at `ip` with new operands (of local shapes) and local result shapes; returns its results.

    Regions (reducers, comparators) are cloned as they are.  Discardable attributes stay, so a caller
    that shrinks a sharded op removes `sdy.sharding` from the clone itself.  `offset` is asked for the
    dimensions along which an `iota` or a constant was split.
    """
    op = op.operation
    shrunk = any(shape_of(r) != tuple(s) for r, s in zip(op.results, result_shapes, strict=True))
    if shrunk and op.name in _SOURCES:
        return [_SOURCES[op.name](op, tuple(result_shapes[0]), ip, offset)]
    clone = op.clone(ip).operation
    for i, value in enumerate(operands):
        clone.operands[i] = value
    for result, shape in zip(clone.results, result_shapes, strict=True):
        if shape_of(result) not in (None, tuple(shape)):
            result.set_type(tensor_type(shape, result))
    fix = _FIXES.get(op.name)
    if fix is not None:
        fix(op, clone)
    return list(clone.results)


def tensor_type(shape: Sequence[int], like: ir.Value) -> ir.RankedTensorType:
    """The tensor type with `like`'s elements and another shape."""
    element = ir.RankedTensorType(like.type).element_type
    return ir.RankedTensorType.get(list(shape), element, loc=ir.Location.unknown(like.context))


def _shape(value: ir.Value) -> Shape:
    shape = shape_of(value)
    assert shape is not None, "only static tensors are shrunk"
    return shape


def _numbers(op: ir.Operation, name: str) -> list[int]:
    return [int(n) for n in ir.DenseI64ArrayAttr(op.attributes[name])]


def _set_numbers(op: ir.Operation, name: str, values: Sequence[int]) -> None:
    op.attributes[name] = ir.DenseI64ArrayAttr.get(list(values), context=op.context)


def _fix_slice(old: ir.Operation, new: ir.Operation) -> None:
    """A dimension that is taken whole stays whole; others kept their size."""
    limits = _numbers(old, "limit_indices")
    before, after = _shape(old.operands[0]), _shape(new.operands[0])
    if before != after:
        _set_numbers(new, "limit_indices", [m if n != m else k for n, m, k in zip(before, after, limits, strict=True)])


def _fix_dynamic_slice(_: ir.Operation, new: ir.Operation) -> None:
    _set_numbers(new, "slice_sizes", _shape(new.results[0]))


def _fix_gather(_: ir.Operation, new: ir.Operation) -> None:
    """Operand dimensions that are neither collapsed nor batching appear in the result as offset dims."""
    numbers = stablehlo.GatherDimensionNumbers(new.attributes["dimension_numbers"])
    result = _shape(new.results[0])
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    sizes = _numbers(new, "slice_sizes")
    kept = [d for d in range(len(sizes)) if d not in gone]
    for d, r in zip(kept, numbers.offset_dims, strict=True):
        sizes[d] = result[r]
    _set_numbers(new, "slice_sizes", sizes)


def _fix_convolution(_: ir.Operation, new: ir.Operation) -> None:
    """Feature groups = input features / kernel input features; batch groups = input batch / output batch."""
    numbers = stablehlo.ConvDimensionNumbers(new.attributes["dimension_numbers"])
    lhs, rhs, out = _shape(new.operands[0]), _shape(new.operands[1]), _shape(new.results[0])
    features = lhs[numbers.input_feature_dimension] // rhs[numbers.kernel_input_feature_dimension]
    batches = lhs[numbers.input_batch_dimension] // out[numbers.output_batch_dimension]
    i64 = ir.IntegerType.get_signless(64, new.context)
    new.attributes["feature_group_count"] = ir.IntegerAttr.get(i64, features)
    new.attributes["batch_group_count"] = ir.IntegerAttr.get(i64, batches)


_FIXES: dict[str, Callable[[ir.Operation, ir.Operation], None]] = {
    "stablehlo.slice": _fix_slice,
    "stablehlo.dynamic_slice": _fix_dynamic_slice,
    "stablehlo.gather": _fix_gather,
    "stablehlo.convolution": _fix_convolution,
}


def _shrink_constant(op: ir.Operation, shape: Shape, ip: ir.InsertionPoint, offset: Offset) -> ir.Value:
    """A splat is resized; other constants are cut at the part's offset."""
    whole = ir.DenseElementsAttr(op.attributes["value"])
    clone = op.clone(ip).operation
    if not whole.is_splat:
        offsets = {d: offset(d) for d, n in enumerate(_shape(op.results[0])) if n != shape[d]}
        return cut(clone.results[0], shape, offsets, ip, op.location)
    kind = tensor_type(shape, op.results[0])
    clone.attributes["value"] = ir.DenseElementsAttr.get_splat(kind, whole.get_splat_value())
    clone.results[0].set_type(kind)
    return clone.results[0]


def _shrink_iota(op: ir.Operation, shape: Shape, ip: ir.InsertionPoint, offset: Offset) -> ir.Value:
    """iota along a split dimension counts from the part's offset."""
    dim = int(ir.IntegerAttr(op.attributes["iota_dimension"]).value)
    clone = op.clone(ip).operation
    result = clone.results[0]
    result.set_type(tensor_type(shape, result))
    start = offset(dim) if _shape(op.results[0])[dim] != shape[dim] else None
    if start is None:
        return result
    with ip, op.location:
        scalar = tensor_type((), result)
        if start.type != scalar:
            start = stablehlo.convert(scalar, start)
        spread = stablehlo.broadcast_in_dim(result.type, start, ir.DenseI64ArrayAttr.get([], context=op.context))
        return stablehlo.add(result, spread)


_SOURCES: dict[str, Callable[[ir.Operation, Shape, ir.InsertionPoint, Offset], ir.Value]] = {
    "stablehlo.constant": _shrink_constant,
    "sdy.constant": _shrink_constant,
    "stablehlo.iota": _shrink_iota,
}


def cut(
    whole: ir.Value,
    shape: Sequence[int],
    offsets: dict[int, ir.Value | None],
    ip: ir.InsertionPoint,
    location: ir.Location,
) -> ir.Value:
    """`dynamic_slice` of `whole` to `shape`; `offsets[d]` is the start along d (absent or None: zero).

    All starts must be integer scalars of one type.
    """
    given = [v for v in offsets.values() if v is not None]
    with ip, location:
        kind = given[0].type if given else ir.RankedTensorType.get([], ir.IntegerType.get_signless(32, whole.context))
        zero: ir.Value | None = None
        starts: list[ir.Value] = []
        for d in range(len(shape)):
            start = offsets.get(d)
            if start is None:
                zero = integer(0, kind) if zero is None else zero
                start = zero
            starts.append(start)
        return stablehlo.dynamic_slice(whole, starts, ir.DenseI64ArrayAttr.get(list(shape), context=whole.context))


def integer(value: int, kind: ir.Type) -> ir.Value:
    """A constant of the integer tensor type `kind`, at the current insertion point and location."""
    tensor = ir.RankedTensorType(kind)
    element = ir.IntegerType(tensor.element_type)
    if element.is_unsigned:
        attribute = ir.DenseElementsAttr.get(np.full(tensor.shape, value, f"uint{element.width}"))
        return stablehlo.constant(attribute)
    splat = ir.DenseElementsAttr.get_splat(tensor, ir.IntegerAttr.get(element, value))
    return stablehlo.constant(splat)
