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

from alpa_mlir.dialect import rounds
from alpa_mlir.dialect.factors import reducer_of

Operands = frozenset[int]
CONSTANTS = ("stablehlo.constant", "sdy.constant")


def is_linear(op: ir.Operation, partial: Operands, zeros: Operands | None = None) -> bool:
    """Whether `op` turns addends of the operands numbered in `partial` into addends of its results.

    `zeros` are the operands known to be zero, where the caller knows more than `is_zero` finds.
    """
    if not all(_is_number(v) for v in op.results):
        return False
    if op.name in _PRODUCTS:
        return len(partial) == 1 and partial <= _PRODUCTS[op.name]
    joint = _JOINT.get(op.name)
    if joint is None:
        return False
    together = joint(op)
    rest = together - partial
    return partial <= together and all(is_zero(op.operands[i]) if zeros is None else i in zeros for i in rest)


def copied_operands(op: ir.Operation) -> Operands:
    """Operands whose elements `op` moves about unchanged, where its other operands say: empty if it computes."""
    copied = _COPIES.get(op.name)
    return copied(op) if copied is not None else frozenset()


def is_zero(value: ir.Value) -> bool:
    """A constant zero of numbers, possibly broadcast or reshaped."""
    while not isinstance(value.owner, ir.Block):
        op = value.owner.operation
        if op.name in ("stablehlo.broadcast_in_dim", "stablehlo.reshape", "sdy.reshard"):
            value = op.operands[0]
            continue
        if op.name == "stablehlo.complex":
            return all(is_zero(part) for part in op.operands)
        return op.name in CONSTANTS and _is_number(value) and _all_zero(op.attributes["value"])
    return False


def _is_number(value: ir.Value) -> bool:
    """Neither booleans nor tokens: their sums are not what partial means."""
    if not isinstance(value.type, ir.RankedTensorType):
        return False
    element = ir.RankedTensorType(value.type).element_type
    return not (isinstance(element, ir.IntegerType) and element.width == 1)


def _all_zero(attribute: ir.Attribute) -> bool:
    if not isinstance(attribute, ir.DenseElementsAttr) or not ir.DenseElementsAttr(attribute).is_splat:
        return False
    splat = ir.DenseElementsAttr(attribute).get_splat_value()
    return isinstance(splat, (ir.FloatAttr, ir.IntegerAttr)) and splat.value == 0


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
    """Floats to floats at least as wide: a narrower type would round every addend, not the sum once.

    Widened integers would lose their wrap-around.
    """
    narrow, wide = _float(op.operands[0]), _float(op.results[0])
    if narrow is None or wide is None:
        return frozenset()
    return _all(op) if narrow == wide or narrow.width < wide.width else frozenset()


def _divide(op: ir.Operation) -> Operands:
    """By a parameter, and not for integers, whose quotient is truncated."""
    return frozenset((0,)) if _float(op.results[0]) is not None else frozenset()


def _float(value: ir.Value) -> ir.FloatType | None:
    """The type of the floats, or of the parts of the complex numbers, in a tensor; None for integers."""
    element = ir.RankedTensorType(value.type).element_type
    if isinstance(element, ir.ComplexType):
        element = ir.ComplexType(element).element_type
    return element if isinstance(element, ir.FloatType) else None


_PRODUCTS: dict[str, Operands] = {
    "stablehlo.multiply": frozenset((0, 1)),
    "stablehlo.dot_general": frozenset((0, 1)),
    "stablehlo.convolution": frozenset((0, 1)),
}

_COPIES: dict[str, Callable[[ir.Operation], Operands]] = {
    "stablehlo.concatenate": _all,
    "stablehlo.reshape": _all,
    "stablehlo.transpose": _all,
    "stablehlo.broadcast_in_dim": _all,
    "stablehlo.reverse": _all,
    "stablehlo.slice": _all,
    "stablehlo.optimization_barrier": _all,
    "sdy.reshard": _all,
    "sdy.sharding_constraint": _all,
    "stablehlo.dynamic_slice": _these(0),
    "stablehlo.gather": _these(0),
    "stablehlo.select": _these(1, 2),
    "stablehlo.pad": _these(0, 1),
    "stablehlo.dynamic_update_slice": _these(0, 1),
    **dict.fromkeys((rounds.ENTER, rounds.LEAVE, rounds.SLICE, rounds.STACK), _all),
}

_JOINT: dict[str, Callable[[ir.Operation], Operands]] = {
    **_COPIES,
    "stablehlo.add": _all,
    "stablehlo.subtract": _all,
    "stablehlo.negate": _all,
    "stablehlo.convert": _convert,
    "stablehlo.real": _all,
    "stablehlo.imag": _all,
    "stablehlo.complex": _all,
    "stablehlo.divide": _divide,
    "stablehlo.reduce": _sum,
    "stablehlo.reduce_window": _sum,
    "stablehlo.scatter": _scatter,
}
