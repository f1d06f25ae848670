"""Constants whose elements are all equal, and exact arithmetic on them.

Only what is defined to the last bit is computed here: integer arithmetic modulo 2ⁿ and the IEEE operations
+ − × ÷, rounded once.  16-bit floats are computed in f32 and rounded: f32 has more than twice their
digits, so the second rounding changes nothing (Figueroa 1995).  What would come out subnormal or NaN is left to the
device, whose treatment of both may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

CONSTANT = "stablehlo.constant"
_COMPUTED_IN: dict[str, Callable[[float], Any]] = {
    "f16": np.float32,
    "bf16": np.float32,
    "f32": np.float32,
    "f64": np.float64,
}
_DIGITS = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}
_SMALLEST = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}

Number = bool | int | float


@dataclass(frozen=True)
class Splat:
    """The one value of a constant and its element type, e.g. (1.0, "bf16"); `i1` holds a bool."""

    value: Number
    element: str

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point."""
        return isinstance(self.value, float)


def dense_value(value: ir.Value) -> ir.DenseElementsAttr | None:
    """The elements of a constant of floats or integers; None for anything else."""
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.operation.name != CONSTANT:
        return None
    element = ir.ShapedType(value.type).element_type
    if not isinstance(element, (ir.FloatType, ir.IntegerType)):
        return None
    elements = owner.attributes["value"]
    return elements if isinstance(elements, ir.DenseElementsAttr) else None


def splat_element(value: ir.Value) -> ir.Attribute | None:
    """The element of a splat constant as an attribute of any element type; None for anything else."""
    elements = dense_value(value)
    return elements.get_splat_value() if elements is not None and elements.is_splat else None


def splat_of(value: ir.Value) -> Splat | None:
    """The number in a splat constant; None for anything else."""
    element = splat_element(value)
    if element is None:
        return None
    return Splat(element.value, str(ir.ShapedType(value.type).element_type))


def element_attribute(number: Number, kind: ir.Type) -> ir.Attribute | None:
    """`number` as an attribute of an element type; floats are rounded to nearest even, integers wrap.

    None for unsigned numbers that the bindings cannot pass on (2⁶³ and above).
    """
    if isinstance(kind, ir.FloatType):
        return ir.FloatAttr.get(kind, float(number), loc=ir.Location.unknown(kind.context))
    width = ir.IntegerType(kind).width
    if width == 1:
        return ir.BoolAttr.get(bool(number), kind.context)
    wrapped = _wrapped(int(number), width, ir.IntegerType(kind).is_unsigned)
    return ir.IntegerAttr.get(kind, wrapped) if wrapped < 2**63 else None


def _wrapped(number: int, width: int, unsigned: bool) -> int:
    number &= (1 << width) - 1
    return number - (1 << width) if not unsigned and number >> (width - 1) else number


def convert(splat: Splat, target: ir.Type) -> Number | None:
    """What `stablehlo.convert` makes of the number; None where it is not defined to the last bit."""
    value = splat.value
    if isinstance(target, ir.FloatType):
        if str(target) not in _COMPUTED_IN or (splat.is_float and splat.element not in _COMPUTED_IN):
            return None
        if isinstance(value, int) and abs(value) > 2**53:
            return None
        return _kept(float(value), str(target))
    if not isinstance(target, ir.IntegerType):
        return None
    integer = ir.IntegerType(target)
    if integer.width == 1:
        return bool(value != 0)
    if not isinstance(value, float):
        return int(value)
    low, high = _range(integer)
    return int(value) if math.isfinite(value) and low <= int(value) <= high else None


def _range(kind: ir.IntegerType) -> tuple[int, int]:
    return (0, 2**kind.width - 1) if kind.is_unsigned else (-(2 ** (kind.width - 1)), 2 ** (kind.width - 1) - 1)


def _kept(value: float, element: str) -> float | None:
    """The value, unless it is NaN or would be subnormal in the element type."""
    if math.isnan(value) or (value != 0 and abs(value) < _SMALLEST[element]):
        return None
    return value


_INTEGER: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": max,
    "minimum": min,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}
_FLOATING: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": max,
    "minimum": min,
}
_ORDER: dict[str, Callable[[Number, Number], bool]] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
}
ARITHMETIC = tuple(dict.fromkeys((*_INTEGER, *_FLOATING)))


def arithmetic(operation: str, left: Splat, right: Splat) -> Number | None:
    """`stablehlo.<operation>` on two numbers of one type; None where it is not defined to the last bit.

    Integers come out unwrapped: `element_attribute` wraps them. On `i1`, add is or and multiply is and.
    """
    if isinstance(left.value, bool):
        operation = {"add": "or", "multiply": "and", "maximum": "or", "minimum": "and"}.get(operation, operation)
    if not left.is_float:
        function = _INTEGER.get(operation)
        return function(int(left.value), int(right.value)) if function is not None else None
    kind = _COMPUTED_IN.get(left.element)
    if operation not in _FLOATING or kind is None or not _ordered(left.value, right.value):
        return None
    with np.errstate(all="ignore"):
        result = float(_FLOATING[operation](kind(left.value), kind(right.value)))
    return _kept(result, left.element)


def compare(direction: str, left: Splat, right: Splat) -> bool | None:
    """`stablehlo.compare` on two numbers of one type; None where it depends on the kind of comparison."""
    return _ORDER[direction](left.value, right.value) if _ordered(left.value, right.value) else None


def direction(op: ir.Operation) -> str:
    """How a `stablehlo.compare` compares: "LT", "EQ", …"""
    found: str = stablehlo.ComparisonDirectionAttr(op.attributes["comparison_direction"]).value
    return found


def _ordered(left: Number, right: Number) -> bool:
    """Whether the numbers compare alike in IEEE's partial and total order: no NaN, no two float zeros."""
    if not isinstance(left, float):
        return True
    return not (math.isnan(left) or math.isnan(right) or left == right == 0)


def widens(narrow: str, wide: str) -> bool:
    """Whether every number of the float type `narrow` is one of `wide`."""
    if narrow not in _DIGITS or wide not in _DIGITS:
        return False
    return _DIGITS[narrow] <= _DIGITS[wide] and _SMALLEST[narrow] >= _SMALLEST[wide]
