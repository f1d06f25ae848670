"""Which ops a compiler runs by themselves, and which it fuses with their neighbours.

XLA (and any fusing compiler) makes one kernel of many ops that compute element by element: values between them stay
in registers.  For what moves through memory an op is of one of these kinds:

* ``view``    another way to address the same elements: layout assignment makes nothing of it;
* ``point``   each element of the result is computed from a few elements of the operands, wherever it is needed;
* ``sum``     a reduction: its operands may be computed inside its kernel, its result is known only when that ends;
* ``alone``   a library call, a loop, or a kernel of its own: operands and results lie in memory.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.factors import OpFactors

VIEW, POINT, SUM, ALONE = "view", "point", "sum", "alone"

_VIEWS = frozenset(
    {
        "stablehlo.reshape",
        "stablehlo.transpose",
        "stablehlo.optimization_barrier",
        "sdy.reshard",
        "sdy.sharding_constraint",
    }
)
_ALONE = frozenset(
    f"stablehlo.{name}"
    for name in (
        "cholesky",
        "convolution",
        "custom_call",
        "dynamic_update_slice",
        "fft",
        "rng",
        "rng_bit_generator",
        "triangular_solve",
    )
)

_PARTS = frozenset({"stablehlo.slice", "stablehlo.dynamic_slice", "stablehlo.gather"})


def takes_part(op: ir.Operation) -> bool:
    """Whether an op reads no more of its first operand than its result holds."""
    return op.name in _PARTS


def is_product(factors: OpFactors) -> bool:
    """Two operands contracted over a common reduction factor (dot_general, convolution)."""
    if len(factors.operands) != 2 or len(factors.results) != 1:
        return False
    left, right = ({f for d in m for f in d} for m in factors.operands)
    return any(factors.is_reduction(f) for f in sorted(left & right))


def kernel_kind(op: ir.Operation, factors: OpFactors) -> str:
    """The kind of an op: ``view``, ``point``, ``sum`` or ``alone``."""
    name = op.name
    if name in _VIEWS:
        return VIEW
    if name == "stablehlo.reduce":
        return SUM
    return ALONE if name in _ALONE or len(op.regions) or is_product(factors) else POINT
