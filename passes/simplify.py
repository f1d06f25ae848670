"""Algebraic simplification of StableHLO: what the frontends leave behind and a planner should not see.

jaxlib links no StableHLO folder, and MLIR's `canonicalize` leaves these ops alone.  One sweep in program order is
enough: when an op is looked at, its operands have been simplified.  Numbers stay as they are to the last bit, floats
are never reassociated; only the sign of a zero may change (`x + 0.0` becomes `x`), as in XLA's own simplifier.

Ops that carry a user's `sdy.sharding` are left alone.  Each rule is a small function registered for an op: it
returns the value that replaces the op's result, or None.  Ops that lose their last use are left to MLIR's dead
code elimination.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.sharding import SHARDING
from alpa_mlir.passes import simplify_iota, simplify_parts, splat
from alpa_mlir.passes.rules import (
    defining,
    dimensions,
    in_place_of,
    integers,
    number_constant,
    rule,
    simpler,
    splat_constant,
)
from alpa_mlir.passes.splat import splat_element, splat_of

MORE_RULES = (simplify_iota, simplify_parts)
"""Where further rules are."""


def simplify(root: ir.Operation) -> None:
    """Apply the rules to every op below `root`, in program order, regions before the op that holds them."""
    for region in root.regions:
        for block in region.blocks:
            for op in list(block.operations):
                _simplify_op(op.operation)


def _simplify_op(op: ir.Operation) -> None:
    simplify(op)
    if SHARDING in op.attributes:
        return
    value = simpler(op)
    if value is not None:
        op.results[0].replace_all_uses_with(value)
        op.erase()


@rule("reshape", "transpose", "broadcast_in_dim")
def shape_of_splat(op: ir.Operation) -> ir.Value | None:
    """A constant of equal elements in another shape is such a constant."""
    return splat_constant(op, splat_element(op.operands[0]))


@rule("slice", "reverse", "dynamic_slice")
def part_of_splat(op: ir.Operation) -> ir.Value | None:
    """So is a part of one."""
    return splat_constant(op, splat_element(op.operands[0]))


@rule("reshape", "convert", "slice", "dynamic_slice")
def identity(op: ir.Operation) -> ir.Value | None:
    """Reshape or convert to the same type; a slice of everything."""
    return op.operands[0] if op.operands[0].type == op.results[0].type else None


@rule("broadcast_in_dim")
def identity_broadcast(op: ir.Operation) -> ir.Value | None:
    """A broadcast to the same type that moves no dimension."""
    dims = integers(op, "broadcast_dimensions")
    same = op.operands[0].type == op.results[0].type and dims == list(range(len(dims)))
    return op.operands[0] if same else None


@rule("reshape")
def reshape_of_reshape(op: ir.Operation) -> ir.Value | None:
    """reshape(reshape(x)) = reshape(x)."""
    inner = defining(op.operands[0], "reshape")
    if inner is None:
        return None
    source = inner.operands[0]
    if source.type == op.results[0].type:
        return source
    made = stablehlo.ReshapeOp(op.results[0].type, source, loc=op.location, ip=ir.InsertionPoint(op))
    return in_place_of(op, made)


@rule("reshape")
def reshape_of_new_dimensions(op: ir.Operation) -> ir.Value | None:
    """reshape(broadcast_in_dim(x)) = x where the broadcast only adds dimensions of size 1 that the reshape removes."""
    inner = defining(op.operands[0], "broadcast_in_dim")
    if inner is None or inner.operands[0].type != op.results[0].type:
        return None
    source = inner.operands[0]
    dims = integers(inner, "broadcast_dimensions")
    return source if dims == sorted(dims) and prod(dimensions(source)) == prod(dimensions(inner.results[0])) else None


@rule("transpose")
def transpose_chain(op: ir.Operation) -> ir.Value | None:
    """transpose(x, identity) = x; transpose(transpose(x)) = transpose(x)."""
    permutation = integers(op, "permutation")
    source = op.operands[0]
    inner = defining(source, "transpose")
    if inner is not None:
        first = integers(inner, "permutation")
        permutation = [first[i] for i in permutation]
        source = inner.operands[0]
    if permutation == list(range(len(permutation))):
        return source
    if inner is None:
        return None
    made = stablehlo.TransposeOp(source, permutation, loc=op.location, ip=ir.InsertionPoint(op))
    return in_place_of(op, made)


@rule("convert")
def convert_constant(op: ir.Operation) -> ir.Value | None:
    """Conversion of a constant of equal elements."""
    number = splat_of(op.operands[0])
    if number is None:
        return None
    return number_constant(op, splat.convert(number, ir.RankedTensorType(op.results[0].type).element_type))


@rule("convert")
def convert_there_and_back(op: ir.Operation) -> ir.Value | None:
    """convert(convert(x)) = x where the first conversion lost nothing."""
    inner = defining(op.operands[0], "convert")
    if inner is None or inner.operands[0].type != op.results[0].type:
        return None
    narrow, wide = (str(ir.RankedTensorType(v.type).element_type) for v in (inner.operands[0], inner.results[0]))
    return inner.operands[0] if splat.widens(narrow, wide) else None


@rule(*splat.ARITHMETIC)
def fold_arithmetic(op: ir.Operation) -> ir.Value | None:
    """Arithmetic on two constants of equal elements."""
    left = splat_of(op.operands[0])
    right = splat_of(op.operands[1]) if left is not None else None
    if left is None or right is None:
        return None
    return number_constant(op, splat.arithmetic(op.name.removeprefix("stablehlo."), left, right))


@rule("compare")
def fold_compare(op: ir.Operation) -> ir.Value | None:
    """Comparison of two constants of equal elements."""
    left = splat_of(op.operands[0])
    right = splat_of(op.operands[1]) if left is not None else None
    if left is None or right is None:
        return None
    return number_constant(op, splat.compare(splat.direction(op), left, right))


def _neutral(op: ir.Operation, number: int, sides: Sequence[int]) -> ir.Value | None:
    """The other operand, where the operand on one of `sides` is `number` everywhere."""
    for side in sides:
        found = splat_of(op.operands[side])
        if found is not None and not isinstance(found.value, bool) and found.value == number:
            return op.operands[1 - side]
    return None


@rule("add")
def add_zero(op: ir.Operation) -> ir.Value | None:
    """x + 0 = x."""
    return _neutral(op, 0, (1, 0))


@rule("subtract")
def subtract_zero(op: ir.Operation) -> ir.Value | None:
    """x - 0 = x."""
    return _neutral(op, 0, (1,))


@rule("multiply")
def multiply_one(op: ir.Operation) -> ir.Value | None:
    """x * 1 = x."""
    return _neutral(op, 1, (1, 0))


@rule("divide")
def divide_one(op: ir.Operation) -> ir.Value | None:
    """x / 1 = x."""
    return _neutral(op, 1, (1,))


@rule("multiply")
def multiply_zero(op: ir.Operation) -> ir.Value | None:
    """x * 0 = 0 for integers (not for floats: x may be infinite)."""
    for operand in op.operands:
        number = splat_of(operand)
        if number is not None and not number.is_float and number.value == 0:
            return operand
    return None


@rule("and", "or")
def logic_with_constant(op: ir.Operation) -> ir.Value | None:
    """x & true = x, x & false = false, x | false = x, x | true = true."""
    for side in (0, 1):
        number = splat_of(op.operands[side])
        if number is not None and isinstance(number.value, bool):
            keeps = number.value == (op.name == "stablehlo.and")
            return op.operands[1 - side] if keeps else op.operands[side]
    return None


@rule("negate", "not")
def twice(op: ir.Operation) -> ir.Value | None:
    """negate(negate(x)) = x; not(not(x)) = x."""
    inner = defining(op.operands[0], op.name.removeprefix("stablehlo."))
    return inner.operands[0] if inner is not None else None


@rule("negate")
def negate_constant(op: ir.Operation) -> ir.Value | None:
    """Negation of a constant of equal elements."""
    number = splat_of(op.operands[0])
    if number is None or number.value != number.value:
        return None
    return number_constant(op, -number.value)


@rule("select")
def select_known(op: ir.Operation) -> ir.Value | None:
    """select(true, a, b) = a; select(p, a, a) = a."""
    predicate, yes, no = op.operands
    if yes == no:
        return yes
    known = splat_of(predicate)
    if known is None:
        return None
    return yes if known.value else no


@rule("pad")
def pad_nothing(op: ir.Operation) -> ir.Value | None:
    """A pad by zero on every side."""
    edges = ("edge_padding_low", "edge_padding_high", "interior_padding")
    return None if any(any(integers(op, name)) for name in edges) else op.operands[0]


@rule("concatenate")
def concatenate_one(op: ir.Operation) -> ir.Value | None:
    """A concatenation of one tensor."""
    return op.operands[0] if len(op.operands) == 1 else None
