"""Values without elements: a constant says all of them, and no device need be given any.

XLA's partitioner folds what it marks such operands with, and then refuses a function that has no other.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.factors import shape_of


def replace_empty(main: ir.Operation) -> None:
    """Let every op read a constant instead of a value without elements."""
    for op in list(walk(main)):
        for number, value in enumerate(op.operands):
            if 0 in (shape_of(value) or ()) and not _is_constant(value):
                op.operands[number] = _empty(value.type, op)


def _is_constant(value: ir.Value) -> bool:
    return not isinstance(value.owner, ir.Block) and value.owner.operation.name == "stablehlo.constant"


def _empty(kind: ir.Type, before: ir.Operation) -> ir.Value:
    module = ir.Module.parse(f"module {{ %0 = stablehlo.constant dense<> : {kind} }}", before.context)
    (made,) = module.body.operations
    return made.operation.clone(ip=ir.InsertionPoint(before)).results[0]
