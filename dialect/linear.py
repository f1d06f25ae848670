"""Which ops are linear in which operands: where a partial sum may stay partial.

A value is *partial* over a mesh axis (or over microbatches) when every part holds an addend of it.  An
op maps addends to addends exactly when it is additive and homogeneous in its partial operands taken
together, the others being parameters: `f(Σ a_i, p) = Σ f(a_i, p)`.  For ops such as `add` this holds only
if *all* operands are partial (or zero); for products only if exactly one is.  Source: the StableHLO
specification, op by op; ops not listed here are not linear.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxlib.mlir import ir

from alpa_mlir.dialect.factors import reducer_of

Operands = frozenset[int]


def is_linear(op: ir.Operation, partial: Operands) -> bool:
    """Whether `op` turns addends of the operands numbered in `partial` into addends of its results."""
    if op.name in _PRODUCTS:
        return len(partial) == 1 and partial <= _PRODUCTS[op.name]
    joint = _JOINT.get(op.name)
    if joint is None or not all(_is_number(v) for v in op.results):
        return False
    together = joint(op)
    return partial <= together and all(is_zero(op.operands[i]) for i in together - partial)


def _is_number(value: ir.Value) -> bool:
    """Neither booleans nor tokens: their sums are not what partial means."""
    if not isinstance(value.type, ir.RankedTensorType):
        return False
    element = ir.RankedTensorType(value.type).element_type
    return not (isinstance(element, ir.IntegerType) and element.width == 1)


def is_zero(value: ir.Value) -> bool:
    """A constant zero, possibly broadcast or reshaped."""
    while not isinstance(value.owner, ir.Block):
        op = value.owner.operation
        if op.name in ("stablehlo.broadcast_in_dim", "stablehlo.reshape", "sdy.reshard"):
            value = op.operands[0]
            continue
        return op.name in ("stablehlo.constant", "sdy.constant") and _all_zero(op.attributes["value"])
    return False


def _all_zero(attribute: ir.Attribute) -> bool:
    if not isinstance(attribute, ir.DenseElementsAttr):
        return False
    dense = ir.DenseElementsAttr(attribute)
    if not dense.is_splat:
        return False
    splat = dense.get_splat_value()
    if isinstance(splat, ir.FloatAttr):
        return float(ir.FloatAttr(splat).value) == 0.0
    return isinstance(splat, ir.IntegerAttr) and int(ir.IntegerAttr(splat).value) == 0


def _all(op: ir.Operation) -> Operands:
    return frozenset(range(len(op.operands)))


def _these(*numbers: int) -> Callable[[ir.Operation], Operands]:
    return lambda op: frozenset(numbers)


def _sum(op: ir.Operation) -> Operands:
    return _all(op) if reducer_of(op.regions[0]) == "add" else frozenset()


def _scatter(op: ir.Operation) -> Operands:
    inputs = (len(op.operands) - 1) // 2
    return _all(op) - {inputs} if reducer_of(op.regions[0]) == "add" else frozenset()


def _convert(op: ir.Operation) -> Operands:
    """Floats to floats (each addend is rounded, as sums are); widened integers would lose their wrap-around."""
    types = (op.operands[0].type, op.results[0].type)
    return _all(op) if all(_is_float(t) for t in types) else frozenset()


def _divide(op: ir.Operation) -> Operands:
    """By a parameter, and not for integers, whose quotient is truncated."""
    return frozenset((0,)) if _is_float(op.results[0].type) else frozenset()


def _is_float(kind: ir.Type) -> bool:
    return isinstance(ir.RankedTensorType(kind).element_type, ir.FloatType | ir.ComplexType)


_PRODUCTS: dict[str, Operands] = {
    "stablehlo.multiply": frozenset((0, 1)),
    "stablehlo.dot_general": frozenset((0, 1)),
    "stablehlo.convolution": frozenset((0, 1)),
}

_JOINT: dict[str, Callable[[ir.Operation], Operands]] = {
    "stablehlo.add": _all,
    "stablehlo.subtract": _all,
    "stablehlo.negate": _all,
    "stablehlo.concatenate": _all,
    "stablehlo.convert": _convert,
    "stablehlo.reshape": _all,
    "stablehlo.transpose": _all,
    "stablehlo.broadcast_in_dim": _all,
    "stablehlo.reverse": _all,
    "stablehlo.slice": _all,
    "stablehlo.real": _all,
    "stablehlo.imag": _all,
    "stablehlo.complex": _all,
    "stablehlo.optimization_barrier": _all,
    "sdy.reshard": _all,
    "sdy.sharding_constraint": _all,
    "stablehlo.divide": _divide,
    "stablehlo.dynamic_slice": _these(0),
    "stablehlo.gather": _these(0),
    "stablehlo.select": _these(1, 2),
    "stablehlo.pad": _these(0, 1),
    "stablehlo.dynamic_update_slice": _these(0, 1),
    "stablehlo.reduce": _sum,
    "stablehlo.reduce_window": _sum,
    "stablehlo.scatter": _scatter,
}
