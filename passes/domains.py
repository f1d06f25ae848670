"""Which arguments a program takes a root or a logarithm of: they must not be drawn negative.

`alpa-mlir-run` without `--inputs` draws arguments at random.  An optimizer that divides by the root of its
state (Adam, RMSProp) makes NaN of a negative one, and a comparison of NaN with NaN shows nothing.  So the
program is asked: an argument that reaches the operand of a root or logarithm through operations that keep
signs (sums, products with constants, reshapes) is marked `alpa.nonnegative`.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.sharding import argument_attributes, set_argument_attributes

ROOTS = ("stablehlo.sqrt", "stablehlo.rsqrt", "stablehlo.cbrt", "stablehlo.log", "stablehlo.power")
"""Ops whose first operand must not be negative."""

KEEPS_SIGN = (
    "stablehlo.add",
    "stablehlo.broadcast_in_dim",
    "stablehlo.concatenate",
    "stablehlo.convert",
    "stablehlo.reshape",
    "stablehlo.slice",
    "stablehlo.transpose",
)
"""Ops whose result is nonnegative where all their operands are."""


def mark_nonnegative(main: ir.Operation) -> None:
    """Set `alpa.nonnegative` on the float arguments of `main` whose root or logarithm is taken."""
    pending = [op.operands[0] for op in walk(main) if op.name in ROOTS]
    block = main.regions[0].blocks[0]
    seen: set[ir.Value] = set()
    marked: set[int] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if isinstance(value.owner, ir.Block):
            if value.owner == block and _is_float(value):
                marked.add(ir.BlockArgument(value).arg_number)
        else:
            pending.extend(_sources(value.owner.operation))
    entries = argument_attributes(main)
    for number, entry in enumerate(entries):
        entry.pop(alpa.NONNEGATIVE, None)
        if number in marked:
            entry[alpa.NONNEGATIVE] = ir.UnitAttr.get(main.context)
    set_argument_attributes(main, entries)


def _is_float(value: ir.Value) -> bool:
    kind = value.type
    return isinstance(kind, ir.RankedTensorType) and isinstance(ir.RankedTensorType(kind).element_type, ir.FloatType)


def _sources(op: ir.Operation) -> list[ir.Value]:
    """The operands that must be nonnegative for the op's result to be so, as far as signs can tell."""
    if op.name in KEEPS_SIGN:
        return list(op.operands)
    if op.name == "stablehlo.select":
        return list(op.operands)[1:]
    if op.name == "stablehlo.divide":
        return [op.operands[0]] if _is_scale(op.operands[1]) else []
    if op.name == "stablehlo.multiply":
        left, right = op.operands
        return [v for v, other in ((left, right), (right, left)) if _is_scale(other)]
    return []


def _is_scale(value: ir.Value) -> bool:
    """A constant, or one number spread over a tensor (a bias correction, a learning rate)."""
    if isinstance(value.owner, ir.Block):
        return shape_of(value) == ()
    op = value.owner.operation
    if op.name == "stablehlo.broadcast_in_dim":
        return shape_of(op.operands[0]) == ()
    return op.name == "stablehlo.constant" or shape_of(value) == ()
