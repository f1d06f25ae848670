"""Emission of one microbatch's program: every wanted form of every op, in program order.

`BlockDemand` says what to emit, `shrink_op` makes ops smaller, this file wires them: it keeps for each
(value, form) the new value, inserts the microbatch's offset where a whole is cut, and rebuilds loops and
branches around the smaller bodies.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.passes.local.shrink import cut, integer, shrink_op, tensor_type
from alpa_mlir.passes.local.splats import splat
from alpa_mlir.passes.local.time_analysis import TimeAnalysis, captures
from alpa_mlir.passes.local.time_demand import BARRIER, LOCAL, RAW, BlockDemand, Form
from alpa_mlir.passes.local.time_regions import REGIONS
from alpa_mlir.passes.local.time_states import Place, State, local_shape, standing


class MicrobatchEmitter:
    """Fills one block with the program of microbatch number `index` (an i32 scalar value).

    `env` maps (old value, form) to the new value; the caller puts the arguments there.
    """

    def __init__(self, analysis: TimeAnalysis, block: ir.Block, index: ir.Value) -> None:
        self.analysis = analysis
        self.parts = analysis.parts
        self.index = index
        self.env: dict[tuple[ir.Value, Form], ir.Value] = {}
        self.ip = ir.InsertionPoint(block)
        with self.ip, ir.Location.unknown(block.owner.context):
            self.anchor = integer(0, index.type).owner.operation
        self.head = ir.InsertionPoint(self.anchor)
        self.offsets: dict[int, ir.Value] = {}

    def finish(self) -> None:
        """Remove the marker of the block's beginning."""
        self.anchor.erase()

    def run(self, demand: BlockDemand) -> None:
        """Emit all that is wanted in a block, except its terminator."""
        for argument in demand.block.arguments:
            self._slices(demand, argument, argument.owner.owner.location)
        for op in demand.ops[:-1]:
            self._op(demand, op)

    def _op(self, demand: BlockDemand, op: ir.Operation) -> None:
        number = op_id(op)
        if number in demand.natural and number not in self.analysis.entered:
            self._natural(demand, op)
        for forms, blocks in demand.variants.get(number, ()):
            self._region(demand, op, forms, blocks)
        for place in demand.shrunk.get(number, ()):
            self._shrunk(demand, op, place)
        if op.name == BARRIER:
            self._barrier(demand, op)
        for result in op.results:
            self._slices(demand, result, op.location)

    def _slices(self, demand: BlockDemand, value: ir.Value, location: ir.Location) -> None:
        for form in demand.sliced.get(value, ()):
            self.env[value, form] = self._cut(self.env[value, demand.base(value)], form, location)

    def _natural(self, demand: BlockDemand, op: ir.Operation) -> None:
        analysis = self.analysis
        place = analysis.places.get(op_id(op))
        values = [self.env[v, demand.operand_form(op, i, v, place)] for i, v in enumerate(op.operands)]
        shapes = [local_shape(_shape(r), analysis.state(r), self.parts) if place else _shape(r) for r in op.results]
        results = self._clone(demand, op, values, shapes)
        for old, new in zip(op.results, results, strict=True):
            self._define(demand, old, new, op.location)

    def _define(self, demand: BlockDemand, old: ir.Value, new: ir.Value, location: ir.Location) -> None:
        """Record a natural form; where a part of a sum is used as an estimate, scale it by M."""
        combine = self.analysis.statistics.get(old)
        if combine is None:
            self.env[old, LOCAL] = new
            return
        self.env[old, RAW] = new
        scaled = combine.combine == "add" and self.parts > 1 and LOCAL in demand.forms.get(old, ())
        self.env[old, LOCAL] = scale(new, self.parts, self.ip, location) if scaled else new

    def _shrunk(self, demand: BlockDemand, op: ir.Operation, place: Place) -> None:
        factors = self.analysis.factors[op_id(op)]
        values = [self.env[v, demand.shrunk_form(op, i, v, place)] for i, v in enumerate(op.operands)]
        forms = [_certain(standing(m, factors.sizes, place)) for m in factors.results]
        shapes = [local_shape(_shape(r), f, self.parts) for r, f in zip(op.results, forms, strict=True)]
        results = self._clone(demand, op, values, shapes)
        for old, form, new in zip(op.results, forms, results, strict=True):
            self.env[old, form] = new

    def _clone(
        self, demand: BlockDemand, op: ir.Operation, values: Sequence[ir.Value], shapes: Sequence[tuple[int, ...]]
    ) -> list[ir.Value]:
        if op.name in REGIONS:
            clone = op.clone(self.ip).operation
            for i, value in enumerate(values):
                clone.operands[i] = value
            results = list(clone.results)
        else:
            results = shrink_op(op, values, shapes, self.ip, lambda d: self._offset(shapes[0][d]))
        if len(op.regions):
            outer = captures(op)
            if outer:
                replace_inside(results[0].owner.operation, {v: self.env[v, demand.base(v)] for v in outer})
        return results

    def _barrier(self, demand: BlockDemand, op: ir.Operation) -> None:
        """One barrier for what is wanted as it is, one more for each value wanted cut."""
        pairs = list(zip(op.operands, op.results, strict=True))
        kept = [(v, r) for v, r in pairs if LOCAL in demand.forms.get(r, ()) or RAW in demand.forms.get(r, ())]
        if kept:
            new = barrier(op, [self.env[v, LOCAL] for v, _ in kept], self.ip)
            for (_, old), value in zip(kept, new, strict=True):
                self._define(demand, old, value, op.location)
        for value, result in pairs:
            for form in demand.forms.get(result, ()):
                if form.is_split:
                    (self.env[result, form],) = barrier(op, [self.env[value, form]], self.ip)

    def _region(
        self, demand: BlockDemand, op: ir.Operation, forms: tuple[Form, ...], blocks: Sequence[BlockDemand]
    ) -> None:
        loop = op.name == "stablehlo.while"
        entering = [self._entering(demand, v, f) for v, f in zip(op.operands, forms if loop else [LOCAL], strict=True)]
        types = [tensor_type(local_shape(_shape(r), f, self.parts), r) for r, f in zip(op.results, forms, strict=True)]
        attributes = {name: op.attributes[name] for name in op.attributes}
        new = ir.Operation.create(
            op.name, types, entering, attributes, regions=len(op.regions), loc=op.location, ip=self.ip
        )
        outer = self.ip
        for region, inner in zip(new.regions, blocks, strict=True):
            arguments = types if loop else []
            block = region.blocks.append(*arguments, arg_locs=[op.location] * len(arguments))
            self.ip = ir.InsertionPoint(block)
            for old, value, form in zip(inner.block.arguments, block.arguments, forms if loop else (), strict=True):
                self.env[old, inner.canonical(old, form)] = value
            self.run(inner)
            end = inner.ops[-1]
            leaving = [self.env[v, f] for v, f in inner.ends]
            ir.Operation.create(end.name, [], leaving, loc=end.location, ip=self.ip)
        self.ip = outer
        for old, value, form in zip(op.results, new.results, forms, strict=True):
            form = demand.canonical(old, form)
            if form == LOCAL:
                self._define(demand, old, value, op.location)
            self.env[old, form] = value

    def _entering(self, demand: BlockDemand, value: ir.Value, form: Form) -> ir.Value:
        if not form.is_split and not self.analysis.state(value).is_partial:
            form = demand.base(value)
        return self.env[value, demand.canonical(value, form)]

    def _offset(self, size: int) -> ir.Value:
        """index · size, computed once at the head of the function."""
        if size not in self.offsets:
            with self.head, ir.Location.unknown(self.index.context):
                self.offsets[size] = stablehlo.multiply(self.index, integer(size, self.index.type))
        return self.offsets[size]

    def _cut(self, whole: ir.Value, form: Form, location: ir.Location) -> ir.Value:
        """The microbatch's piece of a whole value: dimension `form.dim` seen as [outer, M, inner]."""
        shape, d = _shape(whole), form.dim
        local = local_shape(shape, form, self.parts)
        if form.outer == 1:
            return cut(whole, local, {d: self._offset(local[d])}, self.ip, location)
        inner = shape[d] // form.outer // self.parts
        view = (*shape[:d], form.outer, self.parts * inner, *shape[d + 1 :])
        piece = (*shape[:d], form.outer, inner, *shape[d + 1 :])
        with self.ip, location:
            viewed = stablehlo.reshape(tensor_type(view, whole), whole)
            part = cut(viewed, piece, {d + 1: self._offset(inner)}, self.ip, location)
            return stablehlo.reshape(tensor_type(local, whole), part)


def barrier(op: ir.Operation, values: Sequence[ir.Value], ip: ir.InsertionPoint) -> list[ir.Value]:
    """The optimization barrier `op` for other values."""
    new = ir.Operation.create(op.name, [v.type for v in values], list(values), loc=op.location, ip=ip)
    return list(new.results)


def replace_inside(op: ir.Operation, new: dict[ir.Value, ir.Value]) -> None:
    """Exchange values that the regions of `op` use from outside."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                for i, value in enumerate(inner.operation.operands):
                    if value in new:
                        inner.operation.operands[i] = new[value]
                replace_inside(inner.operation, new)


def scale(value: ir.Value, factor: float, ip: ir.InsertionPoint, location: ir.Location) -> ir.Value:
    """`value` times a number; CompileError for integers and a factor below one.

    Of an op of a folded program that stands for others (`alpa.repeats`) each of them has its product.
    """
    element = ir.RankedTensorType(value.type).element_type
    with ip, location:
        if isinstance(element, ir.IntegerType) and factor < 1:
            raise CompileError("an integer statistic of a microbatch cannot be averaged", location)
        by = splat(value.type, factor)
        product = stablehlo.multiply(value, by)
    maker = value.owner
    if not isinstance(maker, ir.Block) and alpa.REPEATS in maker.attributes:
        for made in (by, product):
            made.owner.attributes[alpa.REPEATS] = maker.attributes[alpa.REPEATS]
    return product


def stack_form(state: State, shape: Sequence[int], parts: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """How a split value is stacked over microbatches: (shape of a piece, of the stack, dimension).

    Where the axis lies below `outer` other positions, the dimension is stacked as two: [outer, M·inner].
    """
    d, outer = state.dim, state.outer
    if outer == 1:
        return local_shape(shape, state, parts), tuple(shape), d
    inner = shape[d] // outer // parts
    head, tail = tuple(shape[:d]), tuple(shape[d + 1 :])
    return (*head, outer, inner, *tail), (*head, outer, parts * inner, *tail), d + 1


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = shape_of(value)
    assert shape is not None, "level 1 holds static tensors only"
    return shape


def _certain(state: State | None) -> State:
    assert state is not None
    return state
