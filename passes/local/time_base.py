"""Take the start value out of a sum: `sum(x, start = b)` becomes `sum(x, start = 0) + b`.

A microbatch's part of a sum must start from zero, else the start value were added M times.
"""

from __future__ import annotations

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.factors import added_once
from alpa_mlir.passes.local.splats import splat


def detach_base(op: ir.Operation) -> None:
    """Rewrite a `reduce` or `scatter` that adds, in place: same value (up to the order of additions)."""
    ip = ir.InsertionPoint(op)
    base = added_once(op)
    with ip, op.location:
        zeros = [splat(op.operands[i].type, 0) for i in base]
        clone = op.clone(ip).operation
        for i, zero in zip(base, zeros, strict=True):
            clone.operands[i] = zero
        for i, old, new in zip(base, op.results, clone.results, strict=True):
            start = op.operands[i]
            if start.type != old.type:
                start = stablehlo.broadcast_in_dim(old.type, start, ir.DenseI64ArrayAttr.get([]))
            old.replace_all_uses_with(stablehlo.add(new, start))
    op.erase()
