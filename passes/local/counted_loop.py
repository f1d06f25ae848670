"""A loop that runs a given number of times, as `stablehlo.while` says it: microbatches or layers, one by one."""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.passes.local.shrink import integer


def counted_loop(starts: Sequence[ir.Value], trips: int, location: ir.Location) -> tuple[ir.Operation, ir.Block]:
    """A loop at the current insertion point, and its body, to be filled and ended.

    The loop's values, and the body's arguments, are the number of the round (an i32) and those that begin as `starts`;
    the body returns the next number and theirs.
    """
    kind = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
    values = [integer(0, kind), *starts]
    types = [v.type for v in values]
    loop = ir.Operation.create("stablehlo.while", types, values, regions=2)
    condition, body = (region.blocks.append(*types, arg_locs=[location] * len(types)) for region in loop.regions)
    with ir.InsertionPoint(condition):
        number = condition.arguments[0]
        go = stablehlo.compare(number, integer(trips, kind), stablehlo.ComparisonDirectionAttr.get("LT"))
        stablehlo.return_([go])
    return loop, body
