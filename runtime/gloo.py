"""What must not be left to gloo, XLA's transport between processes on CPUs: its reduce-scatter.

Gloo's reduce-scatter returns when its own part has arrived, and frees the buffer from which it may still be sending:
under load the receiver then gets a tail of whatever stands there next (seen with parts of 256 KiB on busy cores, one
run in three; nothing reports it).  An all-to-all moves the same bytes and is awaited on both sides, so a
reduce-scatter is written as one, followed by the sum of the parts in the order of the ranks.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError


def without_reduce_scatter(text: str) -> str:
    """The text of a module with every `stablehlo.reduce_scatter` written as an all-to-all and sums.

    CompileError where a reduction is more than one operation on two scalars.
    """
    if "stablehlo.reduce_scatter" not in text:
        return text
    module = parse_module(text, make_context())
    for op in [o for o in walk(module.operation) if o.name == "stablehlo.reduce_scatter"]:
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_exchanged(op))
        op.erase()
    return print_module(module)


def _exchanged(op: ir.Operation) -> ir.Value:
    """The same value by an all-to-all: one part from each member of the group, then combined."""
    operand = op.operands[0]
    kind = ir.RankedTensorType(operand.type)
    dim = int(ir.IntegerAttr(op.attributes["scatter_dimension"]).value)
    groups = op.attributes["replica_groups"]
    members = int(np.array(ir.DenseIntElementsAttr(groups)).shape[1])
    part = [*kind.shape]
    part[dim] //= members
    before, after = part[:dim], part[dim:]
    parted = ir.RankedTensorType.get([*before, members, *after], kind.element_type)
    channel = op.attributes.get("channel_handle")
    apart = stablehlo.reshape(parted, operand)
    moved = stablehlo.AllToAllOp([apart], dim, dim, members, groups, channel_handle=channel, results=[parted])
    single = ir.RankedTensorType.get(part, kind.element_type)
    parts = [_part(moved.results[0], dim, i, single) for i in range(members)]
    name = _combiner(op)
    return reduce(lambda a, b: ir.Operation.create(name, results=[single], operands=[a, b]).results[0], parts)


def _part(value: ir.Value, dim: int, number: int, kind: ir.Type) -> ir.Value:
    """Entry `number` of a dimension, which goes away."""
    shape = list(ir.RankedTensorType(value.type).shape)
    starts = [number if d == dim else 0 for d in range(len(shape))]
    limits = [number + 1 if d == dim else n for d, n in enumerate(shape)]
    return stablehlo.reshape(kind, stablehlo.slice(value, starts, limits, [1] * len(shape)))


def _combiner(op: ir.Operation) -> str:
    """The name of the one operation of a reducer's body."""
    *body, _ = [inner.operation for inner in op.regions[0].blocks[0].operations]
    if len(body) != 1 or len(body[0].operands) != 2:
        raise CompileError("a reduce-scatter between processes must combine by one operation", op.location)
    return str(body[0].name)
