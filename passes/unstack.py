"""`alpa-unstack`: arrays that hold one slice for each layer become arguments of their own, slice by slice.

An array lies on one stage's submesh. One that holds the weights of all layers would lie on one of them and be sent to
the others, its gradients sent back; so would the optimizer's state. In parts, each lies where its layer runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import func, functions, op_id
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.sharding import (
    SHARDING,
    argument_attributes,
    read_sharding,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)
from alpa_mlir.passes.layer_order import Layer, gather
from alpa_mlir.passes.normalize import clean
from alpa_mlir.passes.registry import Pass, register
from alpa_mlir.passes.rules import integers
from alpa_mlir.passes.splat import splat_element
from alpa_mlir.passes.stacked import (
    CONCATENATE,
    REDUCE,
    RETURN,
    SLICE,
    Family,
    NotSeparable,
    attribute,
    combining_op,
    dim_of_operand,
    find_families,
    is_padded_along,
    padding,
    piece,
    slice_along,
)


@register
@dataclass(frozen=True)
class Unstack(Pass):
    """Arguments that hold a slice for each layer become one argument for each slice.

    Before: level 1 (`alpa-normalize`), where loops over layers are unrolled or put into groups.

    After: level 1. An argument that the program reads in equal slices alone (as `jax.lax.scan` over layers does), with
    the results that replace it and what is computed from it element by element, is cut into these: in its place stand
    as many arguments, marked `alpa.part = array<i64: number, count, dimension>`, and likewise for results. An argument
    stays whole where an op needs it whole, and where the user shards it.
    """

    name: ClassVar[str] = "alpa-unstack"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""
        level = alpa.get_string(module.operation, alpa.LEVEL)
        if level != "normal":
            raise CompileError(f"{self.name} takes level 1: run alpa-normalize first", module.operation.location)
        main = functions(module)["main"]
        entries = argument_attributes(main)
        updates = {n: int(ir.IntegerAttr(e[alpa.UPDATES]).value) for n, e in enumerate(entries) if alpa.UPDATES in e}
        block = main.regions[0].blocks[0]
        returned = list(list(block.operations)[-1].operation.operands)
        marked = zip((*block.arguments, *returned), (*entries, *result_attributes(main)), strict=True)
        families = find_families(block, returned, updates, {value for value, entry in marked if _is_whole(entry)})
        if not families:
            return
        for family in families:
            members = [v for v in block.arguments if v in family.dims]
            said = f"{len(members)} arguments are kept in {family.parts} parts each: layers read them slice by slice"
            remarks.append(Remark(said, location_text(main.location)))
        _Rewrite(main, families).run()
        clean(module)


def _is_whole(entry: dict[str, ir.Attribute]) -> bool:
    """Whether an argument or result must not be cut, by its attributes: a batch, one cut already, a sharded one."""
    role = str(ir.StringAttr(entry[alpa.ROLE]).value) if alpa.ROLE in entry else ""
    sharded = SHARDING in entry and not read_sharding(entry[SHARDING])[1].is_replicated
    return role == "batch" or alpa.PART in entry or sharded


class _Rewrite:
    """Ops of families done part by part."""

    def __init__(self, main: ir.Operation, families: Sequence[Family]) -> None:
        self.main, self.block = main, main.regions[0].blocks[0]
        self.family = {value: family for family in families for value in family.dims}
        self.parts: dict[ir.Value, list[ir.Value]] = {}
        self.layers: dict[int, Layer] = {}
        """The layers of new ops, by `op_id`."""
        self.replaced: list[ir.Operation] = []
        """Ops of which only parts are read now."""

    def run(self) -> None:
        """Rewrite ops in program order, then the signature; what is computed part by part stands layer by layer."""
        arguments = list(self.block.arguments)
        self._add_arguments(arguments)
        returned: list[ir.Value] = []
        for view in list(self.block.operations):
            op = view.operation
            if op.name == RETURN:
                returned = list(op.operands)
            elif any(result in self.family for result in op.results):
                self._compute(op)
            elif any(v in self.family for v in op.operands):
                self._read(op)
        self._finish(arguments, returned)
        gather(self.block, self.layers)

    def _part_type(self, value: ir.Value) -> ir.Type:
        family = self.family[value]
        shape = list(shape_of(value) or ())
        shape[family.dims[value]] = family.extent
        with ir.Location.unknown(value.context):
            return ir.RankedTensorType.get(shape, ir.RankedTensorType(value.type).element_type)

    def _compute(self, op: ir.Operation) -> None:
        """Make the parts of an op's results; of what can only be made whole, by slices."""
        value = op.results[0]
        family = self.family.get(value)
        try:
            if len(op.results) > 1 or not op.operands or family is None:
                raise NotSeparable
            dim = family.dims[value]
            if op.name == CONCATENATE and attribute(op, "dimension") == dim:
                self.parts[value] = self._pieces(op, family, dim)
            elif is_padded_along(op, dim):
                self.parts[value] = self._padded(op, family, dim)
            else:
                along = [dim_of_operand(op, n, dim) for n in range(len(op.operands))]
                self.parts[value] = [self._clone(op, along, n) for n in range(family.parts)]
            self.replaced.append(op)
        except NotSeparable:
            for result in op.results:
                if result in self.family:
                    family = self.family[result]
                    whole, size = family.dims[result], family.extent
                    self.parts[result] = [slice_along(result, whole, n * size, size) for n in range(family.parts)]

    def _of_layer(self, value: ir.Value, family: Family, number: int) -> ir.Value:
        """A value that a new op makes for a layer."""
        self.layers[op_id(value.owner)] = family.parts, number
        return value

    def _clone(self, op: ir.Operation, along: Sequence[int | None], number: int) -> ir.Value:
        """One part of the result of an op whose operands are cut along dimensions, or stay whole."""
        pairs = zip(op.operands, along, strict=True)
        operands = [v if dim is None else self._part(v, dim, op, number) for v, dim in pairs]
        copy = op.clone(ip=ir.InsertionPoint(op)).operation
        for n, operand in enumerate(operands):
            copy.operands[n] = operand
        result = copy.results[0]
        result.set_type(self._part_type(op.results[0]))
        if op.name == SLICE:
            dim = self.family[op.results[0]].dims[op.results[0]]
            _set_number(copy, "limit_indices", dim, (shape_of(result) or ())[dim])
        return self._of_layer(result, self.family[op.results[0]], number)

    def _part(self, value: ir.Value, dim: int, op: ir.Operation, number: int) -> ir.Value:
        """Part `number` of an operand of `op`; equal elements are equal in all parts."""
        family = self.family[op.results[0]]
        element = splat_element(value)
        if value in self.parts:
            return self.parts[value][number]
        if element is None:
            own = slice_along(value, dim, number * family.extent, family.extent, op)
            return self._of_layer(own, family, number)
        shape = list(shape_of(value) or ())
        shape[dim] = family.extent
        return self._of_layer(_constant(element, shape, value, op), family, number)

    def _pieces(self, op: ir.Operation, family: Family, dim: int) -> list[ir.Value]:
        """The parts of what is put together, of the operands or parts of them."""
        found: list[ir.Value] = []
        for operand in op.operands:
            size = (shape_of(operand) or ())[dim]
            if size == family.extent:
                found.append(operand)
            else:
                found += [slice_along(operand, dim, at, family.extent, op) for at in range(0, size, family.extent)]
        return found

    def _padded(self, op: ir.Operation, family: Family, dim: int) -> list[ir.Value]:
        begin, end = padding(op, dim)
        element = splat_element(op.operands[1])
        shape = list(shape_of(op.results[0]) or ())
        shape[dim] = family.extent
        found: list[ir.Value] = []
        for at in range(0, family.parts * family.extent, family.extent):
            if begin <= at < end:
                found.append(slice_along(op.operands[0], dim, at - begin, family.extent, op))
            else:
                found.append(_constant(element, shape, op.results[0], op))
        return found

    def _read(self, op: ir.Operation) -> None:
        """An op whose result is whole: a slice, or a reduction over the parts."""
        value = op.operands[0]
        family, dim = self.family[value], self.family[value].dims[value]
        if op.name == SLICE:
            part = self.parts[value][piece(op, dim)[0] // family.extent]
            if shape_of(part) == shape_of(op.results[0]):
                op.results[0].replace_all_uses_with(part)
                op.erase()
            else:
                op.operands[0] = part
                _set_number(op, "start_indices", dim, 0)
                _set_number(op, "limit_indices", dim, family.extent)
            return
        assert op.name == REDUCE, op.name
        operation = combining_op(op)
        total: ir.Value | None = None
        for part in self.parts[value]:
            copy = op.clone(ip=ir.InsertionPoint(op)).operation
            copy.operands[0] = part
            if total is not None and operation is None:
                # Each part goes on from what came of the parts before.
                copy.operands[1] = total
            elif total is not None:
                made = [total, copy.results[0]]
                copy = ir.Operation.create(operation, [total.type], made, loc=op.location, ip=ir.InsertionPoint(op))
            total = copy.results[0]
        op.results[0].replace_all_uses_with(total)
        op.erase()

    def _add_arguments(self, arguments: Sequence[ir.Value]) -> None:
        """All arguments anew behind the old ones, stacks in parts."""
        for argument in arguments:
            if argument in self.family:
                kind = self._part_type(argument)
                count = self.family[argument].parts
                self.parts[argument] = [self.block.add_argument(kind, argument.location) for _ in range(count)]
            else:
                argument.replace_all_uses_with(self.block.add_argument(argument.type, argument.location))

    def _finish(self, arguments: Sequence[ir.Value], returned: Sequence[ir.Value]) -> None:
        """Return parts, drop what is not used any more, and rewrite the signature."""
        ends = list(self.block.operations)[-1].operation
        values = [part for v in returned for part in self.parts.get(v, [v])]
        with ir.InsertionPoint(ends), ends.location:
            func.ReturnOp(values)
        ends.erase()
        for op in reversed(self.replaced):
            op.erase()
        entries, leaving = argument_attributes(self.main), result_attributes(self.main)
        first = [0]
        for v in returned:
            first.append(first[-1] + len(self.parts.get(v, [v])))
        given: list[dict[str, ir.Attribute]] = []
        for argument, entry in zip(arguments, entries, strict=True):
            for number, marked in enumerate(self._marked(argument, entry)):
                if alpa.UPDATES in entry:
                    at = first[int(ir.IntegerAttr(entry[alpa.UPDATES]).value)]
                    marked[alpa.UPDATES] = alpa.i64(at + number, self.main.context)
                given.append(marked)
        made = [marked for v, entry in zip(returned, leaving, strict=True) for marked in self._marked(v, entry)]
        for _ in arguments:
            self.block.erase_argument(0)
        kind = ir.FunctionType.get([a.type for a in self.block.arguments], [v.type for v in values], self.main.context)
        self.main.attributes["function_type"] = ir.TypeAttr.get(kind, context=self.main.context)
        set_argument_attributes(self.main, given)
        set_result_attributes(self.main, made)

    def _marked(self, value: ir.Value, entry: dict[str, ir.Attribute]) -> list[dict[str, ir.Attribute]]:
        """The attributes of the parts of an argument or result, or of one that is whole."""
        family = self.family.get(value)
        if family is None:
            return [dict(entry)]
        numbered = [[n, family.parts, family.dims[value]] for n in range(family.parts)]
        return [{**entry, alpa.PART: ir.DenseI64ArrayAttr.get(part, self.main.context)} for part in numbered]


def _constant(element: ir.Attribute | None, shape: Sequence[int], like: ir.Value, before: ir.Operation) -> ir.Value:
    """A constant of equal elements, of the element type of another value."""
    with ir.InsertionPoint(before), before.location:
        kind = ir.RankedTensorType.get(list(shape), ir.RankedTensorType(like.type).element_type)
        return stablehlo.ConstantOp(ir.DenseElementsAttr.get_splat(kind, element)).result


def _set_number(op: ir.Operation, name: str, place: int, number: int) -> None:
    """Change one number of an attribute that is an array of numbers."""
    changed = integers(op, name)
    changed[place] = number
    op.attributes[name] = ir.DenseI64ArrayAttr.get(changed, op.context)
