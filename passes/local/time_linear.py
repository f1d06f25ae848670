"""Which ops let partial sums pass: f(a + b) = f(a) + f(b), read off one table.

A sum over microbatches may be taken before or after a linear op; the analysis leaves values partial as
long as that holds, and the cut (`time_cut`) later chooses where to add.  Scaling by a batch-independent value, shape
changes, adding partial sums, matrix products with a weight are linear; squares, maxima, conversions to
a narrower type (they round) and everything unknown are not.  For max and min the same table's
shape changes hold, since these only copy elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect.factors import reducer_of
from alpa_mlir.passes.local.time_states import INVARIANT, ZERO, State, partial

Rule = Callable[[ir.Operation, Sequence[State]], bool]


def unsplit_result(op: ir.Operation, states: Sequence[State]) -> State | None:
    """The state of the results of an op with invariant, zero and partial operands; None: it must be finished."""
    kinds = {s.combine for s in states if s.is_partial}
    if not kinds:
        return ZERO if _is_zero(op, states) else INVARIANT
    if len(kinds) > 1:
        return None
    (combine,) = kinds
    rules = _ADD if combine == "add" else _EXTREME
    rule = rules.get(op.name)
    if rule is None or not rule(op, states):
        return None
    if combine != "add" and op.name in _COMBINES and _COMBINES[op.name] != combine:
        return None
    return partial(combine)


def base_operands(op: ir.Operation) -> range:
    """Operands to which a reduction adds its terms: the start values of `reduce`, the target of `scatter`."""
    if op.name == "stablehlo.reduce":
        return range(len(op.operands) // 2, len(op.operands))
    if op.name == "stablehlo.scatter":
        return range((len(op.operands) - 1) // 2)
    return range(0)


def _is_zero(op: ir.Operation, states: Sequence[State]) -> bool:
    """A constant zero, or a linear op of zeros."""
    if op.name == "stablehlo.constant":
        return _zero_constant(op)
    if not any(s == ZERO for s in states):
        return False
    rule = _ADD.get(op.name)
    return rule is not None and rule(op, [partial("add") if s == ZERO else s for s in states])


def _zero_constant(op: ir.Operation) -> bool:
    value = op.attributes["value"]
    if not isinstance(value, ir.DenseElementsAttr) or not ir.DenseElementsAttr(value).is_splat:
        return False
    element = ir.DenseElementsAttr(value).get_splat_value()
    if isinstance(element, ir.FloatAttr):
        return float(ir.FloatAttr(element).value) == 0.0
    if isinstance(element, ir.IntegerAttr):
        kind = ir.RankedTensorType(op.results[0].type).element_type
        return int(ir.IntegerAttr(element).value) == 0 and ir.IntegerType(kind).width > 1
    return False


def _sums(state: State) -> bool:
    return state.is_partial or state == ZERO


def _all(_: ir.Operation, states: Sequence[State]) -> bool:
    return all(_sums(s) for s in states)


def _first(_: ir.Operation, states: Sequence[State]) -> bool:
    return _sums(states[0]) and all(s.is_fixed for s in states[1:])


def _product(_: ir.Operation, states: Sequence[State]) -> bool:
    return sum(s.is_partial for s in states) == 1


def _divide(op: ir.Operation, states: Sequence[State]) -> bool:
    return _first(op, states) and _is_float(op.results[0])


def _select(_: ir.Operation, states: Sequence[State]) -> bool:
    return states[0].is_fixed and _sums(states[1]) and _sums(states[2])


def _update_slice(_: ir.Operation, states: Sequence[State]) -> bool:
    return _sums(states[0]) and _sums(states[1]) and all(s.is_fixed for s in states[2:])


def _scatter(op: ir.Operation, states: Sequence[State]) -> bool:
    count = (len(states) - 1) // 2
    rest = (*states[:count], *states[count + 1 :])
    return reducer_of(op.regions[0]) == "add" and states[count].is_fixed and all(_sums(s) for s in rest)


def _added(op: ir.Operation, states: Sequence[State]) -> bool:
    return reducer_of(op.regions[0]) == "add" and _all(op, states)


def _widening(op: ir.Operation, states: Sequence[State]) -> bool:
    """Conversion to a float at least as wide adds no rounding that depends on where the sum is taken."""
    del states
    source, target = _element(op.operands[0]), _element(op.results[0])
    if not (isinstance(source, ir.FloatType) and isinstance(target, ir.FloatType)):
        return False
    return bool(target.width > source.width or target == source)


def _element(value: ir.Value) -> ir.Type:
    return ir.RankedTensorType(value.type).element_type


def _is_float(value: ir.Value) -> bool:
    element = _element(value)
    return isinstance(element, (ir.FloatType, ir.ComplexType))


_SHAPES: dict[str, Rule] = {
    "stablehlo.reshape": _first,
    "stablehlo.transpose": _first,
    "stablehlo.broadcast_in_dim": _first,
    "stablehlo.slice": _first,
    "stablehlo.reverse": _first,
    "stablehlo.dynamic_slice": _first,
    "stablehlo.gather": _first,
    "stablehlo.dynamic_update_slice": _update_slice,
    "stablehlo.concatenate": _all,
    "sdy.sharding_constraint": _first,
}
_ADD: dict[str, Rule] = {
    **_SHAPES,
    "stablehlo.add": _all,
    "stablehlo.subtract": _all,
    "stablehlo.negate": _first,
    "stablehlo.real": _first,
    "stablehlo.imag": _first,
    "stablehlo.multiply": _product,
    "stablehlo.dot_general": _product,
    "stablehlo.convolution": _product,
    "stablehlo.divide": _divide,
    "stablehlo.convert": _widening,
    "stablehlo.pad": _all,
    "stablehlo.select": _select,
    "stablehlo.reduce": _added,
    "stablehlo.reduce_window": _added,
    "stablehlo.scatter": _scatter,
}


def _no_zero(rule: Rule) -> Rule:
    """Zero is the neutral element of sums only."""
    return lambda op, states: ZERO not in states and rule(op, states)


def _repeatable(_: ir.Operation, states: Sequence[State]) -> bool:
    """max(max(a, c), max(b, c)) = max(max(a, b), c): an invariant operand may be taken M times."""
    return all(s.is_partial or s.is_fixed for s in states)


_EXTREME: dict[str, Rule] = {
    **{name: _no_zero(rule) for name, rule in _SHAPES.items() if name != "stablehlo.dynamic_update_slice"},
    "stablehlo.maximum": _repeatable,
    "stablehlo.minimum": _repeatable,
}
_COMBINES = {"stablehlo.maximum": "max", "stablehlo.minimum": "min"}
