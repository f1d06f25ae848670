"""Simplification of parts of tensors: slices, and updates of a tensor in place."""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.passes.rules import defining, dimensions, in_place_of, integers, rule, simpler, splat_constant
from alpa_mlir.passes.splat import splat_element, splat_of


@rule("dynamic_slice")
def dynamic_slice_at_constants(op: ir.Operation) -> ir.Value | None:
    """A dynamic_slice at known indices is a slice; out-of-range indices are clamped, as the specification says."""
    source = op.operands[0]
    sizes = integers(op, "slice_sizes")
    starts = _known_starts(list(op.operands)[1:], dimensions(source), sizes)
    if starts is None:
        return None
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    strides = [1] * len(starts)
    made = stablehlo.SliceOp(source, starts, limits, strides, loc=op.location, ip=ir.InsertionPoint(op))
    part = simpler(made.operation)
    return part if part is not None else in_place_of(op, made)


@rule("dynamic_update_slice")
def update_everything(op: ir.Operation) -> ir.Value | None:
    """An update as large as the tensor replaces it: its indices are clamped to zero."""
    return op.operands[1] if op.operands[1].type == op.operands[0].type else None


@rule("dynamic_update_slice")
def updates_of_everything(op: ir.Operation) -> ir.Value | None:
    """A chain of updates that replaces every part of a tensor along one dimension is their concatenation."""
    users = [use.owner.operation for use in op.results[0].uses]
    if len(users) == 1 and users[0].name == op.name and users[0].operands[0] == op.results[0]:
        return None  # only the end of a chain is looked at, so that long ones take linear time
    parts: dict[int, ir.Value] = {}
    along = None
    whole = dimensions(op.results[0])
    link: ir.Operation | None = op
    while link is not None:
        part, begin = dimensions(link.operands[1]), _starts(link)
        cut = [i for i, (a, b) in enumerate(zip(part, whole, strict=True)) if a != b]
        if begin is None or len(cut) != 1 or along not in (None, cut[0]):
            break
        along = cut[0]
        parts.setdefault(begin[along], link.operands[1])
        link = defining(link.operands[0], "dynamic_update_slice")
    if along is None:
        return None
    starts = sorted(parts)
    values = [parts[start] for start in starts]
    ends = [start + dimensions(value)[along] for start, value in zip(starts, values, strict=True)]
    if [*starts, whole[along]] != [0, *ends]:
        return None
    made = stablehlo.ConcatenateOp(values, along, loc=op.location, ip=ir.InsertionPoint(op))
    return in_place_of(op, made)


def _starts(update: ir.Operation) -> list[int] | None:
    """Where a dynamic_update_slice at constant indices begins; None for others."""
    return _known_starts(list(update.operands)[2:], dimensions(update.operands[0]), dimensions(update.operands[1]))


def _known_starts(indices: Sequence[ir.Value], whole: Sequence[int], part: Sequence[int]) -> list[int] | None:
    """Where a part of a tensor at constant indices begins, clamped as the specification says; None at other indices."""
    numbers = [splat_of(index) for index in indices]
    known = [int(n.value) for n in numbers if n is not None]
    if len(known) < len(numbers):
        return None
    return [min(max(n, 0), size - own) for n, size, own in zip(known, whole, part, strict=True)]


@rule("slice")
def slice_of_part(op: ir.Operation) -> ir.Value | None:
    """A slice that is exactly one operand of a concatenation, exactly what an update wrote, or next to that."""
    starts = integers(op, "start_indices")
    if any(stride != 1 for stride in integers(op, "strides")):
        return None
    joined = defining(op.operands[0], "concatenate")
    if joined is not None:
        along, position = ir.IntegerAttr(joined.attributes["dimension"]).value, 0
        for part in joined.operands:
            if position == starts[along] and part.type == op.results[0].type:
                return part
            position += dimensions(part)[along]
        return None
    return _known_part(op, op.operands[0], starts)


def _known_part(op: ir.Operation, source: ir.Value, starts: Sequence[int]) -> ir.Value | None:
    """What op takes of a tensor from some place on, where an update wrote just that, or others next to it."""
    kind = op.results[0].type
    passed = False
    while (update := defining(source, "dynamic_update_slice")) is not None and (begin := _starts(update)) is not None:
        if begin == list(starts) and update.operands[1].type == kind:
            return update.operands[1]
        own, other = dimensions(op.results[0]), dimensions(update.operands[1])
        spans = zip(starts, own, begin, other, strict=True)
        if not any(a + n <= b or b + m <= a for a, n, b, m in spans):
            break
        source, passed = update.operands[0], True
    if (element := splat_element(source)) is not None:
        return splat_constant(op, element)
    if not passed:
        return None
    limits = [start + size for start, size in zip(starts, dimensions(op.results[0]), strict=True)]
    made = stablehlo.SliceOp(source, starts, limits, [1] * len(limits), loc=op.location, ip=ir.InsertionPoint(op))
    return in_place_of(op, made)


@rule("add")
def add_to_part(op: ir.Operation) -> ir.Value | None:
    """x + (zeros updated with y) is x updated with its part plus y, as the gradient of a look-up by number adds up."""
    for side in (1, 0):
        update = defining(op.operands[side], "dynamic_update_slice")
        if update is None or len(list(op.operands[side].uses)) != 1:
            continue
        zero = splat_of(update.operands[0])
        if zero is None or zero.value != 0:
            continue
        whole, part, places = op.operands[1 - side], update.operands[1], list(update.operands)[2:]
        with ir.InsertionPoint(op), op.location:
            old = stablehlo.DynamicSliceOp(whole, places, dimensions(part)).operation
            before = simpler(old) or old.results[0]
            if splat_of(before) != zero:
                part = stablehlo.add(before, part)
            made = stablehlo.DynamicUpdateSliceOp(whole, part, places)
            return simpler(made.operation) or in_place_of(op, made)
    return None
