"""Rules of `simplify`: a register of small functions by op, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.passes import splat

Rule = Callable[[ir.Operation], ir.Value | None]
"""The value that replaces the result of an op, or None."""
RULES: dict[str, list[Rule]] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for `stablehlo.<name>`s."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES.setdefault(f"stablehlo.{name}", []).append(function)
        return function

    return add


def simpler(op: ir.Operation) -> ir.Value | None:
    """What the first rule that fits puts in place of the result of an op; None where none fits."""
    found = (simplify(op) for simplify in RULES.get(op.name, ()))
    return next((value for value in found if value is not None), None)


def defining(value: ir.Value, name: str) -> ir.Operation | None:
    """The op that defines `value`, if it is a `stablehlo.<name>`."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        return None
    op: ir.Operation = owner.operation
    return op if op.name == f"stablehlo.{name}" else None


def integers(op: ir.Operation, name: str) -> list[int]:
    """An attribute of integers."""
    return list(ir.DenseI64ArrayAttr(op.attributes[name]))


def dimensions(value: ir.Value) -> list[int]:
    """The shape of a tensor."""
    return list(ir.RankedTensorType(value.type).shape)


def constant(op: ir.Operation, elements: ir.Attribute) -> ir.Value:
    """A constant of the type of the op's result right before the op."""
    return stablehlo.ConstantOp(elements, loc=op.location, ip=ir.InsertionPoint(op)).result


def in_place_of(op: ir.Operation, made: ir.OpView) -> ir.Value:
    """The result of a new op, which takes over what users said of the old one (`alpa.layer`)."""
    for name in op.attributes:
        if name.startswith("alpa."):
            made.operation.attributes[name] = op.attributes[name]
    return made.operation.results[0]


def splat_constant(op: ir.Operation, element: ir.Attribute | None) -> ir.Value | None:
    """A constant, in place of an op, all elements of which are this one; None for none."""
    if element is None:
        return None
    return constant(op, ir.DenseElementsAttr.get_splat(op.results[0].type, element))


def number_constant(op: ir.Operation, number: splat.Number | None) -> ir.Value | None:
    """A constant, in place of an op, all elements of which are this number; None for none."""
    if number is None:
        return None
    kind = ir.RankedTensorType(op.results[0].type).element_type
    return splat_constant(op, splat.element_attribute(number, kind))
