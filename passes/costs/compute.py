"""Seconds of an op's local piece: a roofline over products, and memory traffic for the rest.

    C10  product (two operands share a reduction factor): max(2·multiplications / speed(dtype),
         (operands + result) bytes / memory bandwidth); the local share is 1 / extent of the axes on its factors
    C11  other reductions: bytes of operands and result / memory bandwidth
    C12  ops without fixed or reduction factors fuse with their neighbours: half of their result's bytes
         are counted as traffic (in a fused chain most intermediate values stay in registers)
    C13  everything else (gather, slice, sort, …): twice the result's bytes (what is written was read)

Williams, Waterman, Patterson 2009 (roofline). A product's multiplications are
result elements × elements of the second operand that are not in the result, as for any einsum.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from alpa_mlir.dialect.factors import PASS, OpFactors
from alpa_mlir.passes.costs.cluster import Cluster


def is_product(factors: OpFactors) -> bool:
    """Two operands contracted over a common reduction factor (dot_general, convolution)."""
    if len(factors.operands) != 2 or len(factors.results) != 1:
        return False
    left, right = ({f for d in m for f in d} for m in factors.operands)
    return any(factors.is_reduction(f) for f in sorted(left & right))


def is_fusable(factors: OpFactors) -> bool:
    """No reduction and no fixed factor larger than one: computed point by point, together with neighbours."""
    return all(k == PASS or n == 1 for k, n in zip(factors.kinds, factors.sizes, strict=True))


def product_flops(factors: OpFactors, shapes: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> float:
    """Operations of a whole product: 2 · result elements · contracted elements of the second operand."""
    kept = {f for d in factors.results[0] for f in d}
    contracted = [n for n, dim in zip(shapes[1], factors.operands[1], strict=True) if not any(f in kept for f in dim)]
    return 2.0 * prod(result) * prod(contracted)


def compute_seconds(
    kind: str, cluster: Cluster, dtype: str, flops: float, operand_bytes: float, result_bytes: float
) -> float:
    """Seconds of a local piece with `flops` operations and the given local bytes (rules C10 to C13)."""
    traffic = cluster.memory_bandwidth
    if kind == "product":
        return max(flops / cluster.speed(dtype), (operand_bytes + result_bytes) / traffic)
    if kind == "reduction":
        return (operand_bytes + result_bytes) / traffic
    return (0.5 if kind == "fused" else 2.0) * result_bytes / traffic


def compute_kind(factors: OpFactors) -> str:
    """Which rule prices an op: product (C10), reduction (C11), fused (C12) or moved (C13)."""
    if is_product(factors):
        return "product"
    if any(factors.is_reduction(f) for f in range(len(factors.kinds))):
        return "reduction"
    return "fused" if is_fusable(factors) else "moved"
