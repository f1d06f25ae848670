"""Which ops a compiler runs by themselves, and which it fuses with their neighbours.

XLA (and any fusing compiler) makes one kernel of many ops that compute element by element: values between them stay
in registers.  For what moves through memory an op is of one of these kinds:

* ``view``    another way to address the same elements: layout assignment makes nothing of it;
* ``point``   each element of the result is computed from a few elements of the operands, wherever it is needed;
* ``sum``     a reduction: its operands may be computed inside its kernel, its result is known only when that ends;
* ``alone``   a library call, a loop, or a kernel of its own: operands and results lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import rounds
from alpa_mlir.dialect.factors import OpFactors

VIEW, POINT, SUM, ALONE = "view", "point", "sum", "alone"

_VIEWS = frozenset(
    {
        "stablehlo.reshape",
        "stablehlo.transpose",
        "stablehlo.optimization_barrier",
        "sdy.reshard",
        "sdy.sharding_constraint",
        rounds.ENTER,
    }
)
_ALONE = (
    frozenset(
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
    | rounds.ENDS
)

_PARTS = frozenset({"stablehlo.slice", "stablehlo.dynamic_slice", "stablehlo.gather", rounds.SLICE})


def takes_part(op: ir.Operation) -> bool:
    """Whether an op reads no more of its first operand than its result holds."""
    return op.name in _PARTS


def copied_operands(op: ir.Operation) -> tuple[int, ...]:
    """The operands of a product that a backend copies whose products work on one layout (dimensions of size one aside).

    Of a `dot_general` batch dimensions stand first, then kept and contracted ones, each contiguous and in order, and
    the left operand's contracted ones last; of a convolution the input as batch, space, features, the kernel as space,
    input and output features.
    """
    if op.name == "stablehlo.dot_general":
        dot = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
        fits = (
            _stands(op.operands[0], dot.lhs_batching_dimensions, dot.lhs_contracting_dimensions, 0),
            _stands(op.operands[1], dot.rhs_batching_dimensions, dot.rhs_contracting_dimensions, 1),
        )
    elif op.name == "stablehlo.convolution":
        conv = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
        taken = [conv.input_batch_dimension, *conv.input_spatial_dimensions, conv.input_feature_dimension]
        kernel = [conv.kernel_input_feature_dimension, conv.kernel_output_feature_dimension]
        kernel = [*conv.kernel_spatial_dimensions, *kernel]
        fits = (_in_order(op.operands[0], taken), _in_order(op.operands[1], kernel))
    else:
        return ()
    return tuple(k for k, stands in enumerate(fits) if not stands)


def _in_order(operand: ir.Value, dims: Sequence[int]) -> bool:
    shape = ir.RankedTensorType(operand.type).shape
    real = [d for d in dims if shape[d] != 1]
    return real == sorted(real)


def _stands(operand: ir.Value, batch: Sequence[int], contracted: Sequence[int], side: int) -> bool:
    shape = ir.RankedTensorType(operand.type).shape
    real = [d for d, n in enumerate(shape) if n != 1]
    batch, contracted = ([d for d in dims if d in real] for dims in (batch, contracted))
    kept = [d for d in real if d not in batch and d not in contracted]
    if [*batch, *kept, *contracted] == real:
        return True
    return [*batch, *contracted, *kept] == real and (side == 1 or bool(batch))


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
