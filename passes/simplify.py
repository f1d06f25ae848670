"""Algebraic simplification of StableHLO: what the frontends leave behind and a planner should not see.

jaxlib links no StableHLO folder, and MLIR's `canonicalize` leaves these ops alone.  One sweep in program order is
enough: when an op is looked at, its operands have been simplified.  Numbers stay as they are to the last bit, floats
are never reassociated; only the sign of a zero may change (`x + 0.0` becomes `x`), as in XLA's own simplifier.

Ops that carry a user's `sdy.sharding` are left alone.  Each rule is a small function registered for an op: it
returns the value that replaces the op's result, or None.  Ops that lose their last use are left to MLIR's dead
code elimination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.sharding import SHARDING
from alpa_mlir.passes import splat
from alpa_mlir.passes.splat import splat_element, splat_of

Rule = Callable[[ir.Operation], ir.Value | None]
_RULES: dict[str, list[Rule]] = {}


def simplify(root: ir.Operation) -> None:
    """Apply the rules to every op below `root`, in program order, regions before the op that holds them."""
    for region in root.regions:
        for block in region.blocks:
            for op in list(block.operations):
                _simplify_op(op.operation)


def _simplify_op(op: ir.Operation) -> None:
    simplify(op)
    rules = _RULES.get(op.name, ())
    if rules and SHARDING in op.attributes:
        return
    for rule in rules:
        value = rule(op)
        if value is not None:
            op.results[0].replace_all_uses_with(value)
            op.erase()
            return


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        for name in names:
            _RULES.setdefault(f"stablehlo.{name}", []).append(function)
        return function

    return add


def _defining(value: ir.Value, name: str) -> ir.Operation | None:
    """The op that defines `value`, if it is a `stablehlo.<name>`."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        return None
    op: ir.Operation = owner.operation
    return op if op.name == f"stablehlo.{name}" else None


def _integers(op: ir.Operation, name: str) -> list[int]:
    return list(ir.DenseI64ArrayAttr(op.attributes[name]))


def _shape(value: ir.Value) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


def _constant(op: ir.Operation, elements: ir.Attribute) -> ir.Value:
    """A constant of the type of the op's result right before the op."""
    return stablehlo.ConstantOp(elements, loc=op.location, ip=ir.InsertionPoint(op)).result


def _in_place_of(op: ir.Operation, made: ir.OpView) -> ir.Value:
    """The result of a new op, which takes over what users said of the old one (`alpa.layer`)."""
    for name in op.attributes:
        if name.startswith("alpa."):
            made.operation.attributes[name] = op.attributes[name]
    return made.operation.results[0]


def _splat_constant(op: ir.Operation, element: ir.Attribute | None) -> ir.Value | None:
    if element is None:
        return None
    return _constant(op, ir.DenseElementsAttr.get_splat(op.results[0].type, element))


def _number_constant(op: ir.Operation, number: splat.Number | None) -> ir.Value | None:
    if number is None:
        return None
    kind = ir.RankedTensorType(op.results[0].type).element_type
    return _splat_constant(op, splat.element_attribute(number, kind))


@_rule("reshape", "transpose", "broadcast_in_dim")
def shape_of_splat(op: ir.Operation) -> ir.Value | None:
    """A constant of equal elements in another shape is such a constant."""
    return _splat_constant(op, splat_element(op.operands[0]))


@_rule("slice", "reverse", "dynamic_slice")
def part_of_splat(op: ir.Operation) -> ir.Value | None:
    """So is a part of one."""
    return _splat_constant(op, splat_element(op.operands[0]))


@_rule("reshape", "convert", "slice", "dynamic_slice")
def identity(op: ir.Operation) -> ir.Value | None:
    """Reshape or convert to the same type; a slice of everything."""
    return op.operands[0] if op.operands[0].type == op.results[0].type else None


@_rule("broadcast_in_dim")
def identity_broadcast(op: ir.Operation) -> ir.Value | None:
    """A broadcast to the same type that moves no dimension."""
    dims = _integers(op, "broadcast_dimensions")
    same = op.operands[0].type == op.results[0].type and dims == list(range(len(dims)))
    return op.operands[0] if same else None


@_rule("reshape")
def reshape_of_reshape(op: ir.Operation) -> ir.Value | None:
    """reshape(reshape(x)) = reshape(x)."""
    inner = _defining(op.operands[0], "reshape")
    if inner is None:
        return None
    source = inner.operands[0]
    if source.type == op.results[0].type:
        return source
    made = stablehlo.ReshapeOp(op.results[0].type, source, loc=op.location, ip=ir.InsertionPoint(op))
    return _in_place_of(op, made)


@_rule("reshape")
def reshape_of_new_dimensions(op: ir.Operation) -> ir.Value | None:
    """reshape(broadcast_in_dim(x)) = x where the broadcast only adds dimensions of size 1 that the reshape removes."""
    inner = _defining(op.operands[0], "broadcast_in_dim")
    if inner is None or inner.operands[0].type != op.results[0].type:
        return None
    source = inner.operands[0]
    dims = _integers(inner, "broadcast_dimensions")
    return source if dims == sorted(dims) and prod(_shape(source)) == prod(_shape(inner.results[0])) else None


@_rule("transpose")
def transpose_chain(op: ir.Operation) -> ir.Value | None:
    """transpose(x, identity) = x; transpose(transpose(x)) = transpose(x)."""
    permutation = _integers(op, "permutation")
    source = op.operands[0]
    inner = _defining(source, "transpose")
    if inner is not None:
        first = _integers(inner, "permutation")
        permutation = [first[i] for i in permutation]
        source = inner.operands[0]
    if permutation == list(range(len(permutation))):
        return source
    if inner is None:
        return None
    made = stablehlo.TransposeOp(source, permutation, loc=op.location, ip=ir.InsertionPoint(op))
    return _in_place_of(op, made)


@_rule("convert")
def convert_constant(op: ir.Operation) -> ir.Value | None:
    """Conversion of a constant of equal elements."""
    number = splat_of(op.operands[0])
    if number is None:
        return None
    return _number_constant(op, splat.convert(number, ir.RankedTensorType(op.results[0].type).element_type))


@_rule("convert")
def convert_there_and_back(op: ir.Operation) -> ir.Value | None:
    """convert(convert(x)) = x where the first conversion lost nothing."""
    inner = _defining(op.operands[0], "convert")
    if inner is None or inner.operands[0].type != op.results[0].type:
        return None
    narrow, wide = (str(ir.RankedTensorType(v.type).element_type) for v in (inner.operands[0], inner.results[0]))
    return inner.operands[0] if splat.widens(narrow, wide) else None


@_rule(*splat.ARITHMETIC)
def fold_arithmetic(op: ir.Operation) -> ir.Value | None:
    """Arithmetic on two constants of equal elements."""
    left = splat_of(op.operands[0])
    right = splat_of(op.operands[1]) if left is not None else None
    if left is None or right is None:
        return None
    return _number_constant(op, splat.arithmetic(op.name.removeprefix("stablehlo."), left, right))


@_rule("compare")
def fold_compare(op: ir.Operation) -> ir.Value | None:
    """Comparison of two constants of equal elements."""
    left = splat_of(op.operands[0])
    right = splat_of(op.operands[1]) if left is not None else None
    if left is None or right is None:
        return None
    return _number_constant(op, splat.compare(splat.direction(op), left, right))


def _neutral(op: ir.Operation, number: int, sides: Sequence[int]) -> ir.Value | None:
    """The other operand, where the operand on one of `sides` is `number` everywhere."""
    for side in sides:
        found = splat_of(op.operands[side])
        if found is not None and not isinstance(found.value, bool) and found.value == number:
            return op.operands[1 - side]
    return None


@_rule("add")
def add_zero(op: ir.Operation) -> ir.Value | None:
    """x + 0 = x."""
    return _neutral(op, 0, (1, 0))


@_rule("subtract")
def subtract_zero(op: ir.Operation) -> ir.Value | None:
    """x - 0 = x."""
    return _neutral(op, 0, (1,))


@_rule("multiply")
def multiply_one(op: ir.Operation) -> ir.Value | None:
    """x * 1 = x."""
    return _neutral(op, 1, (1, 0))


@_rule("divide")
def divide_one(op: ir.Operation) -> ir.Value | None:
    """x / 1 = x."""
    return _neutral(op, 1, (1,))


@_rule("multiply")
def multiply_zero(op: ir.Operation) -> ir.Value | None:
    """x * 0 = 0 for integers (not for floats: x may be infinite)."""
    for operand in op.operands:
        number = splat_of(operand)
        if number is not None and not number.is_float and number.value == 0:
            return operand
    return None


@_rule("and", "or")
def logic_with_constant(op: ir.Operation) -> ir.Value | None:
    """x & true = x, x & false = false, x | false = x, x | true = true."""
    for side in (0, 1):
        number = splat_of(op.operands[side])
        if number is not None and isinstance(number.value, bool):
            keeps = number.value == (op.name == "stablehlo.and")
            return op.operands[1 - side] if keeps else op.operands[side]
    return None


@_rule("negate", "not")
def twice(op: ir.Operation) -> ir.Value | None:
    """negate(negate(x)) = x; not(not(x)) = x."""
    inner = _defining(op.operands[0], op.name.removeprefix("stablehlo."))
    return inner.operands[0] if inner is not None else None


@_rule("negate")
def negate_constant(op: ir.Operation) -> ir.Value | None:
    """Negation of a constant of equal elements."""
    number = splat_of(op.operands[0])
    if number is None or number.value != number.value:
        return None
    return _number_constant(op, -number.value)


@_rule("select")
def select_known(op: ir.Operation) -> ir.Value | None:
    """select(true, a, b) = a; select(p, a, a) = a."""
    predicate, yes, no = op.operands
    if yes == no:
        return yes
    known = splat_of(predicate)
    if known is None:
        return None
    return yes if known.value else no


@_rule("pad")
def pad_nothing(op: ir.Operation) -> ir.Value | None:
    """A pad by zero on every side."""
    edges = ("edge_padding_low", "edge_padding_high", "interior_padding")
    return None if any(any(_integers(op, name)) for name in edges) else op.operands[0]


@_rule("concatenate")
def concatenate_one(op: ir.Operation) -> ir.Value | None:
    """A concatenation of one tensor."""
    return op.operands[0] if len(op.operands) == 1 else None


@_rule("dynamic_slice")
def dynamic_slice_at_constants(op: ir.Operation) -> ir.Value | None:
    """A dynamic_slice at known indices is a slice; out-of-range indices are clamped, as the specification says."""
    source = op.operands[0]
    sizes = _integers(op, "slice_sizes")
    starts = _known_starts(list(op.operands)[1:], _shape(source), sizes)
    if starts is None:
        return None
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    strides = [1] * len(starts)
    made = stablehlo.SliceOp(source, starts, limits, strides, loc=op.location, ip=ir.InsertionPoint(op))
    part = slice_of_part(made.operation)
    return part if part is not None else _in_place_of(op, made)


@_rule("dynamic_update_slice")
def update_everything(op: ir.Operation) -> ir.Value | None:
    """An update as large as the tensor replaces it: its indices are clamped to zero."""
    return op.operands[1] if op.operands[1].type == op.operands[0].type else None


@_rule("dynamic_update_slice")
def updates_of_everything(op: ir.Operation) -> ir.Value | None:
    """A chain of updates that replaces every part of a tensor along one dimension is their concatenation."""
    users = [use.owner.operation for use in op.results[0].uses]
    if len(users) == 1 and users[0].name == op.name and users[0].operands[0] == op.results[0]:
        return None  # only the end of a chain is looked at, so that long ones take linear time
    parts: dict[int, ir.Value] = {}
    along = None
    whole = _shape(op.results[0])
    link: ir.Operation | None = op
    while link is not None:
        part, begin = _shape(link.operands[1]), _starts(link)
        cut = [i for i, (a, b) in enumerate(zip(part, whole, strict=True)) if a != b]
        if begin is None or len(cut) != 1 or along not in (None, cut[0]):
            break
        along = cut[0]
        parts.setdefault(begin[along], link.operands[1])
        link = _defining(link.operands[0], "dynamic_update_slice")
    if along is None:
        return None
    starts = sorted(parts)
    values = [parts[start] for start in starts]
    ends = [start + _shape(value)[along] for start, value in zip(starts, values, strict=True)]
    if [*starts, whole[along]] != [0, *ends]:
        return None
    made = stablehlo.ConcatenateOp(values, along, loc=op.location, ip=ir.InsertionPoint(op))
    return _in_place_of(op, made)


def _starts(update: ir.Operation) -> list[int] | None:
    """Where a dynamic_update_slice at constant indices begins; None for others."""
    return _known_starts(list(update.operands)[2:], _shape(update.operands[0]), _shape(update.operands[1]))


def _known_starts(indices: Sequence[ir.Value], whole: Sequence[int], part: Sequence[int]) -> list[int] | None:
    """Where a part of a tensor at constant indices begins, clamped as the specification says; None at other indices."""
    numbers = [splat_of(index) for index in indices]
    known = [int(n.value) for n in numbers if n is not None]
    if len(known) < len(numbers):
        return None
    return [min(max(n, 0), size - own) for n, size, own in zip(known, whole, part, strict=True)]


@_rule("slice")
def slice_of_part(op: ir.Operation) -> ir.Value | None:
    """A slice that is exactly one operand of a concatenation, or exactly what an update wrote."""
    starts = _integers(op, "start_indices")
    if any(stride != 1 for stride in _integers(op, "strides")):
        return None
    joined = _defining(op.operands[0], "concatenate")
    if joined is not None:
        along, position = ir.IntegerAttr(joined.attributes["dimension"]).value, 0
        for part in joined.operands:
            if position == starts[along] and part.type == op.results[0].type:
                return part
            position += _shape(part)[along]
        return None
    update = _defining(op.operands[0], "dynamic_update_slice")
    if update is not None and update.operands[1].type == op.results[0].type and _starts(update) == starts:
        return update.operands[1]
    return None
