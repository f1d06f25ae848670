"""Seconds of an op's local piece: a roofline over products, and memory traffic for the rest.

    C10  product (two operands share a reduction factor): max(2·multiplications / speed(dtype), bytes read / memory
         bandwidth) + bytes written / memory bandwidth: operands stream in during the multiplications, but a tile of
         the result is written when all of its own are done; the local share is 1 / extent of the axes on its factors
    C11  everything else: bytes read and written / memory bandwidth. What moves is decided by fusion (T1 to T3,
         `fusion.py`): values between ops that are computed point by point stay in registers
    C12  each time that an op is computed point by point, its result (a reduction's operand) passes through registers
         and the nearest caches, 16 times as fast as memory

Williams, Waterman, Patterson 2009 (roofline). A product's multiplications are
result elements × elements of the second operand that are not in the result, as for any einsum.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from alpa_mlir.dialect.factors import PASS, OpFactors
from alpa_mlir.dialect.kernels import is_product
from alpa_mlir.passes.costs.cluster import Cluster

REGISTERS = 16.0
"""How many times faster registers and the nearest caches are than memory (rule C12).

A V100's L1 caches give 80 x 128 bytes a cycle, about 14 TB/s, beside 0.9 TB/s of memory; CPU cores are alike."""


def is_fusable(factors: OpFactors) -> bool:
    """No reduction and no fixed factor larger than one: computed point by point, together with neighbours."""
    return all(k == PASS or n == 1 for k, n in zip(factors.kinds, factors.sizes, strict=True))


def product_flops(factors: OpFactors, shapes: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> float:
    """Operations of a whole product: 2 · result elements · contracted elements of the second operand."""
    kept = {f for d in factors.results[0] for f in d}
    contracted = [n for n, dim in zip(shapes[1], factors.operands[1], strict=True) if not any(f in kept for f in dim)]
    return 2.0 * prod(result) * prod(contracted)


def compute_seconds(
    cluster: Cluster, dtype: str, flops: Any, read: Any, written: Any, computed: Any = 0.0, larger: Any = max
) -> Any:
    """Seconds of a local piece: a product's operations, bytes read, written, computed point by point (C10 to C12).

    With `larger` numpy's maximum: of many pieces, amounts being arrays.
    """
    traffic = cluster.memory_speed
    return larger(flops / cluster.speed(dtype), read / traffic) + (written + computed / REGISTERS) / traffic


def adding_seconds(sums: float, cluster: Cluster) -> float:
    """Seconds to add what a microbatch makes to so many bytes of sums: two values are read, one is written (C11)."""
    return 3 * sums / cluster.memory_speed


def compute_kind(factors: OpFactors) -> str:
    """Which rule prices an op: product (C10), reduction (C11), point by point (fused) or other (moved)."""
    if is_product(factors):
        return "product"
    if any(factors.is_reduction(f) for f in range(len(factors.kinds))):
        return "reduction"
    return "fused" if is_fusable(factors) else "moved"
