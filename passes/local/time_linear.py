"""Which ops let partial sums and extremes pass, in the states of the time axis.

A sum over microbatches may be taken before or after a linear op: f(a + b) = f(a) + f(b).  The analysis leaves values
partial as long as that holds (`dialect.linear` says where, for devices and microbatches alike), and the cut
(`time_cut`) later chooses where to add.  A maximum or minimum may be taken before or after ops that only copy
elements, and max(max(a, c), max(b, c)) = max(max(a, b), c): what is the same in every microbatch may be taken M times.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect.linear import Operands, copied_operands, is_linear, is_zero
from alpa_mlir.passes.local.time_states import INVARIANT, ZERO, State, partial

_EXTREMES = {"max": "stablehlo.maximum", "min": "stablehlo.minimum"}


def unsplit_result(op: ir.Operation, states: Sequence[State]) -> State | None:
    """The state of the results of an op with invariant, zero and partial operands; None: it must be finished."""
    kinds = {s.combine for s in states if s.is_partial}
    zeros = frozenset(i for i, s in enumerate(states) if s == ZERO)
    if not kinds:
        return ZERO if _is_zero(op, zeros) else INVARIANT
    if len(kinds) > 1:
        return None
    (combine,) = kinds
    parts = frozenset(i for i, s in enumerate(states) if s.is_partial)
    passes = is_linear(op, parts, zeros) if combine == "add" else _is_monotone(op, parts, combine)
    return partial(combine) if passes else None


def _is_zero(op: ir.Operation, zeros: Operands) -> bool:
    """A constant zero, or a linear op of zeros (each one may count as the addend, the others as known)."""
    return any(is_zero(v) for v in op.results) or any(is_linear(op, frozenset((i,)), zeros) for i in zeros)


def _is_monotone(op: ir.Operation, parts: Operands, combine: str) -> bool:
    """Whether extremes of the operands in `parts`, the others being invariant, are those of the result."""
    return op.name == _EXTREMES[combine] or parts <= copied_operands(op)
