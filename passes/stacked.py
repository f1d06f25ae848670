"""Which values of a program are stacks: made of equal parts along one dimension, each of which is used by itself.

What jax's `scan` over layers is given is one array for all of them. Unrolled, the program reads it slice by slice,
puts the gradients of the slices together again, and updates the array as a whole. The array, the whole gradient and
all that is computed from them element by element form one *family*: cut along the same dimension at the same places.
A family whose every op can be done part by part need never be whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.passes.rules import integers
from alpa_mlir.passes.splat import splat_element, splat_of

ELEMENTWISE = frozenset(
    f"stablehlo.{name}"
    for name in (
        "abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "compare", "complex", "convert", "cosine", "divide",
        "exponential", "exponential_minus_one", "floor", "imag", "is_finite", "log", "log_plus_one", "logistic",
        "maximum", "minimum", "multiply", "negate", "not", "or", "power", "real", "reduce_precision", "remainder",
        "round_nearest_afz", "round_nearest_even", "rsqrt", "select", "sign", "sine", "sqrt", "subtract", "tan", "tanh",
        "xor",
    )
)  # fmt: skip
SLICE, CONCATENATE, REDUCE, BROADCAST, TRANSPOSE, RESHAPE, PAD, RETURN = (
    "stablehlo.slice", "stablehlo.concatenate", "stablehlo.reduce", "stablehlo.broadcast_in_dim",
    "stablehlo.transpose", "stablehlo.reshape", "stablehlo.pad", "func.return",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Family:
    """Values that are cut alike: along which dimension each is, into how many parts of which extent."""

    dims: dict[ir.Value, int]
    parts: int
    extent: int


class NotSeparable(Exception):
    """A family that must be whole somewhere."""


def find_families(
    block: ir.Block, returned: Sequence[ir.Value], updates: Mapping[int, int], whole: Set[ir.Value]
) -> list[Family]:
    """The families of stacks among the arguments of @main, which is `block`, that may be kept in parts.

    `returned` are its results, `updates` says by number which of them replaces an argument; `whole`: values that may
    not be cut.
    """
    found: list[Family] = []
    replaced = {result: argument for argument, result in updates.items()}
    taken: set[ir.Value] = set()
    for argument in block.arguments:
        if argument in whole or argument in taken or len(shape_of(argument) or ()) < 2:
            continue
        dims = _sliced_along(argument)
        if len(dims) == 1:
            try:
                family = _Search(block, returned, updates, replaced, whole).family(argument, dims.pop())
            except NotSeparable:
                continue
            if taken.isdisjoint(family.dims):
                found.append(family)
                taken.update(family.dims)
    return found


def dim_of_operand(op: ir.Operation, number: int, dim: int) -> int | None:
    """The dimension of operand `number` that is cut where the first result of `op` is along `dim`; None: it stays.

    NotSeparable where the op cannot be done part by part.
    """
    shape, result = shape_of(op.operands[number]) or (), shape_of(op.results[0]) or ()
    if op.name in ELEMENTWISE:
        return dim if len(shape) == len(result) else None
    if op.name == TRANSPOSE:
        return integers(op, "permutation")[dim]
    if op.name == RESHAPE:
        return _kept_by_reshape(result, shape, dim)
    if op.name == BROADCAST:
        places = integers(op, "broadcast_dimensions")
        here = places.index(dim) if dim in places else None
        return here if here is not None and shape[here] == result[dim] else None
    if op.name == SLICE and shape[dim] == result[dim]:
        return dim
    if op.name == CONCATENATE and attribute(op, "dimension") != dim:
        return dim
    if op.name == REDUCE and len(op.results) == 1:
        if number:
            return None
        left = [d for d in range(len(shape)) if d not in integers(op, "dimensions")]
        return left[dim]
    raise NotSeparable


def dim_of_result(op: ir.Operation, number: int, dim: int) -> int | None:
    """The dimension along which the result of `op` is cut where operand `number` is along `dim`; None: it is whole.

    NotSeparable where the op cannot be done part by part.
    """
    shape, result = shape_of(op.operands[number]) or (), shape_of(op.results[0]) if len(op.results) else ()
    if op.name in ELEMENTWISE and len(shape) == len(result or ()):
        return dim
    if op.name == TRANSPOSE:
        return integers(op, "permutation").index(dim)
    if op.name == RESHAPE:
        return _kept_by_reshape(shape, result or (), dim)
    if op.name == BROADCAST:
        return integers(op, "broadcast_dimensions")[dim]
    if op.name == SLICE:
        return dim if (result or ())[dim] == shape[dim] else None
    if op.name == CONCATENATE and attribute(op, "dimension") != dim:
        return dim
    if op.name == REDUCE and number == 0 and len(op.results) == 1:
        dims = integers(op, "dimensions")
        if dim not in dims:
            return dim - sum(d < dim for d in dims)
        if combining_op(op) is not None or not result:
            return None
    raise NotSeparable


_NEUTRAL: dict[str, float] = {"stablehlo.add": 0.0, "stablehlo.multiply": 1.0, "stablehlo.xor": 0.0}
_IDEMPOTENT = frozenset(f"stablehlo.{name}" for name in ("maximum", "minimum", "and", "or"))


def combining_op(reduce: ir.Operation) -> str | None:
    """The op that combines what a reduction makes of each part; None where only the next part can go on from it.

    It is the body's, where it does not matter that each part begins with the initial value.
    """
    body = reduce.regions[0].blocks[0]
    first = body.operations[0].operation
    if len(body.operations) != 2 or {*first.operands} != {*body.arguments}:
        return None
    begin = splat_of(reduce.operands[1])
    if first.name in _IDEMPOTENT or (begin is not None and _NEUTRAL.get(first.name) == begin.value):
        return str(first.name)
    return None


def _kept_by_reshape(source: Sequence[int], target: Sequence[int], dim: int) -> int:
    """The dimension of the target that is the same as dimension `dim` of the source."""
    for d, extent in enumerate(target):
        if extent == source[dim] and prod(target[:d]) == prod(source[:dim]):
            return d
    raise NotSeparable


def attribute(op: ir.Operation, name: str) -> int:
    """An attribute that is a number."""
    return int(ir.IntegerAttr(op.attributes[name]).value)


def piece(op: ir.Operation, dim: int) -> tuple[int, int]:
    """From where to where a slice reads along a dimension."""
    return integers(op, "start_indices")[dim], integers(op, "limit_indices")[dim]


def padding(op: ir.Operation, dim: int) -> tuple[int, int]:
    """Where along a dimension what is padded stands in the result."""
    low = integers(op, "edge_padding_low")[dim]
    return low, low + (shape_of(op.operands[0]) or ())[dim]


def slice_along(value: ir.Value, dim: int, begin: int, size: int, before: ir.Operation | None = None) -> ir.Value:
    """A slice of a value along a dimension, right behind it or before an op."""
    shape = list(shape_of(value) or ())
    starts, limits = [0] * len(shape), list(shape)
    starts[dim], limits[dim] = begin, begin + size
    if begin == 0 and size == shape[dim]:
        return value
    maker = value.owner
    at = ir.InsertionPoint(before) if before is not None else ir.InsertionPoint.after(maker.operation)
    array = ir.DenseI64ArrayAttr.get
    location = before.location if before is not None else maker.operation.location
    with at, location:
        return stablehlo.SliceOp(value, array(starts), array(limits), array([1] * len(shape))).result


_PADDINGS = ("edge_padding_low", "edge_padding_high", "interior_padding")


def is_padded_along(op: ir.Operation, dim: int) -> bool:
    """Whether an op pads one dimension alone, with equal elements, and takes nothing away."""
    if op.name != PAD or splat_element(op.operands[1]) is None:
        return False
    low, high, between = (integers(op, name) for name in _PADDINGS)
    others = any(a or b for d, (a, b) in enumerate(zip(low, high, strict=True)) if d != dim)
    return not others and not any(between) and low[dim] >= 0 and high[dim] >= 0


def _sliced_along(argument: ir.Value) -> set[int]:
    """The dimensions along which parts of an argument are read, by itself or element by element."""
    found: set[int] = set()
    rank = len(shape_of(argument) or ())
    seen: set[ir.Value] = set()
    # Values of the argument's dimensions, each with which of these its own are.
    open_values = [(argument, tuple(range(rank)))]
    while open_values:
        value, dims = open_values.pop()
        if value in seen:
            continue
        seen.add(value)
        shape = shape_of(value) or ()
        for use in value.uses:
            op = use.owner.operation
            result = (shape_of(op.results[0]) or ()) if len(op.results) else ()
            if op.name == SLICE:
                found |= {dims[d] for d, extent in enumerate(shape) if result[d] != extent}
            elif op.name == TRANSPOSE:
                open_values.append((op.results[0], tuple(dims[d] for d in integers(op, "permutation"))))
            elif op.name in ELEMENTWISE and len(result) == len(shape):
                open_values.append((op.results[0], dims))
    return found


class _Search:
    """The family of an argument, found along uses and definitions."""

    def __init__(
        self,
        block: ir.Block,
        returned: Sequence[ir.Value],
        updates: Mapping[int, int],
        replaced: Mapping[int, int],
        whole: Set[ir.Value],
    ) -> None:
        """`updates`: by argument the result that replaces it; `replaced`: the other way round."""
        self.block, self.returned, self.whole = block, returned, whole
        self.updates, self.replaced = updates, replaced
        self.dims: dict[ir.Value, int] = {}
        self.read: set[tuple[int, int]] = set()
        """Where slices begin and end."""
        self.joined: set[int] = set()
        """Where what is put together is joined."""

    def family(self, argument: ir.Value, dim: int) -> Family:
        """All that must be cut as the argument is; NotSeparable where something cannot."""
        size = (shape_of(argument) or ())[dim]
        open_values = [(argument, dim)]
        while open_values:
            value, along = open_values.pop()
            if value in self.dims:
                if self.dims[value] != along:
                    raise NotSeparable
                continue
            if value in self.whole:
                raise NotSeparable
            self.dims[value] = along
            open_values += self._definition(value, along)
            for use in value.uses:
                open_values += self._use(use.owner.operation, use.operand_number, along)
        extents = {end - begin for begin, end in self.read}
        if len(extents) != 1:
            raise NotSeparable
        extent = extents.pop()
        every = {(n, n + extent) for n in range(0, size, extent)}
        if size % extent or size == extent or self.read != every or any(n % extent for n in self.joined):
            raise NotSeparable
        return Family(self.dims, size // extent, extent)

    def _definition(self, value: ir.Value, dim: int) -> Iterator[tuple[ir.Value, int]]:
        if isinstance(value.owner, ir.Block):
            number = ir.BlockArgument(value).arg_number
            if value.owner != self.block:
                raise NotSeparable
            if number in self.updates:
                yield self.returned[self.updates[number]], dim
            return
        op = value.owner.operation
        if op.name == CONCATENATE and attribute(op, "dimension") == dim:
            at = 0
            for operand in op.operands:
                at += (shape_of(operand) or ())[dim]
                self.joined.add(at)
        elif is_padded_along(op, dim):
            self.joined |= set(padding(op, dim))
        else:
            for number, operand in enumerate(op.operands):
                # What no rule is for is made whole, and sliced.
                try:
                    along = dim_of_operand(op, number, dim)
                except NotSeparable:
                    return
                # Constants and iotas are read slice by slice.
                if along is not None and (isinstance(operand.owner, ir.Block) or operand.owner.operation.operands):
                    yield operand, along

    def _use(self, op: ir.Operation, number: int, dim: int) -> Iterator[tuple[ir.Value, int]]:
        if op.name == RETURN:
            if number in self.replaced:
                yield self.block.arguments[self.replaced[number]], dim
            return
        if op.parent.operation != self.block.owner.operation:
            raise NotSeparable
        if op.name == SLICE:
            if integers(op, "strides")[dim] != 1:
                raise NotSeparable
            begin, end = piece(op, dim)
            if end - begin != (shape_of(op.operands[0]) or ())[dim]:
                self.read.add((begin, end))
        along = dim_of_result(op, number, dim)
        if along is not None:
            yield op.results[0], along
