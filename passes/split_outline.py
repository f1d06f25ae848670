"""Writing one fragment as a function: its ops, clones of what is cheap to repeat, its arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import func, op_id
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import (
    SHARDING,
    argument_attributes,
    set_argument_attributes,
    set_op_shardings,
    set_result_attributes,
    sharding_attribute,
)
from alpa_mlir.dialect.staged import MeshTensor, Ref
from alpa_mlir.passes.split_parts import RESHARD, Part, make_reshard, replicated

MESH_SHAPE = "mesh_shape"
_DROPPED = (alpa.LAYER, alpa.PHASE, alpa.STAGE)


@dataclass(frozen=True)
class Outlined:
    """A stage function in the making: what its call reads and returns."""

    function: ir.Operation
    operands: tuple[Ref, ...]
    outputs: tuple[ir.Value, ...]


class Outliner:
    """Clones the ops of one fragment of one part into a new function on one mesh."""

    def __init__(
        self, part: Part, mesh: Mesh, resolve: Callable[[ir.Value], Ref], type_of: Callable[[Ref], MeshTensor]
    ) -> None:
        self.part = part
        self.mesh = mesh
        self.resolve = resolve
        self.type_of = type_of
        self.values: dict[ir.Value, ir.Value] = {}
        self.arguments: dict[Ref, ir.Value] = {}
        self.entries: list[dict[str, ir.Attribute]] = []

    def outline(self, module: ir.Module, name: str, ops: Sequence[int], outputs: Sequence[ir.Value]) -> Outlined:
        """Append function `name` with these ops (positions, in order), returning these values."""
        context = module.context
        with context, ir.Location.unknown():
            function = func.FuncOp(name, ([], []), visibility="private", ip=ir.InsertionPoint(module.body)).operation
            self.block = function.regions[0].blocks.append()
            self.ip = ir.InsertionPoint(self.block)
            for position in ops:
                self._make(position)
            results = [self.values[v] for v in outputs]
            func.ReturnOp(results, ip=self.ip)
            kind = ir.FunctionType.get([a.type for a in self.block.arguments], [v.type for v in results])
            function.attributes["function_type"] = ir.TypeAttr.get(kind)
        function.attributes[MESH_SHAPE] = self.mesh.attribute(context)
        set_argument_attributes(function, self.entries)
        set_result_attributes(function, [self._entry(self.part.types[v], context) for v in outputs])
        return Outlined(function, tuple(self.arguments), tuple(outputs))

    @staticmethod
    def _entry(kind: MeshTensor, context: ir.Context) -> dict[str, ir.Attribute]:
        return {SHARDING: sharding_attribute(kind.sharding, kind.mesh, context)}

    def _make(self, position: int) -> None:
        op = self.part.ops[position]
        if self.part.transfer[position]:
            self.values[op.results[0]] = self._repeat(op.results[0], position)
        else:
            self._clone(op)

    def _clone(self, op: ir.Operation) -> ir.Operation:
        local = {v: self._local(v) for v in self._reads(op)}
        copy = op.clone(ip=self.ip).operation
        for inner in (copy, *(alpa.walk(copy) if len(copy.regions) else ())):
            for i, value in enumerate(inner.operands):
                if value in local:
                    inner.operands[i] = local[value]
            for name in _DROPPED:
                if name in inner.attributes:
                    del inner.attributes[name]
        self.values.update(zip(op.results, copy.results, strict=True))
        return copy

    def _reads(self, op: ir.Operation) -> list[ir.Value]:
        return self.part.inputs(self.part.position[op_id(op)])

    def _local(self, value: ir.Value) -> ir.Value:
        """The value inside the function: made here, repeated here, or a new argument."""
        if value not in self.values:
            source = self.part.producer(value)
            if source is not None and (self.part.recomputable[source] or value in self.part.leaves):
                self.values[value] = self._repeat(value, source)
            else:
                self.values[value] = self._argument(value)
        return self.values[value]

    def _repeat(self, value: ir.Value, source: int) -> ir.Value:
        op = self.part.ops[source]
        if not self.part.transfer[source]:
            self._check_mesh(value)
            return self._clone(op).results[0]
        wanted = self.part.types[value]
        origin = op.operands[0]
        if not len(origin.owner.operands):
            return self._clone_as(origin, wanted)
        whole = self._repeat_whole(origin, wanted.mesh)
        if wanted.sharding.is_replicated:
            return whole
        copy: ir.Value = make_reshard(whole, wanted, self.ip).results[0]
        return copy

    def _repeat_whole(self, value: ir.Value, mesh: str) -> ir.Value:
        """A recomputable value of another mesh, recomputed on every device of this one."""
        op = value.owner.operation
        if op.name == RESHARD:
            return self._repeat_whole(op.operands[0], mesh)
        operands = [self._repeat_whole(v, mesh) for v in op.operands]
        copy = self._clone_as(value, replicated(self.part.types[value], mesh))
        for i, operand in enumerate(operands):
            copy.owner.operation.operands[i] = operand
        return copy

    def _clone_as(self, value: ir.Value, kind: MeshTensor) -> ir.Value:
        """A clone of the op that makes `value`, its one result annotated as `kind`, operands as they are."""
        copy = value.owner.operation.clone(ip=self.ip).operation
        set_op_shardings(copy, (kind.sharding,), kind.mesh)
        for name in _DROPPED:
            if name in copy.attributes:
                del copy.attributes[name]
        result: ir.Value = copy.results[0]
        return result

    def _argument(self, value: ir.Value) -> ir.Value:
        self._check_mesh(value)
        ref = self.resolve(value)
        kind = self.part.types[value]
        if ref not in self.arguments:
            if self.type_of(ref) != kind:
                raise CompileError(
                    f"a value of @{self.part.name} is {kind} here and {self.type_of(ref)} where it comes from",
                    self.part.function.location,
                )
            location = ir.Location.unknown(value.type.context)
            self.arguments[ref] = self.block.add_argument(value.type, location)
            self.entries.append(self._entry(kind, value.type.context))
        return self.arguments[ref]

    def _check_mesh(self, value: ir.Value) -> None:
        if self.part.types[value].mesh != self.mesh.name:
            raise CompileError(
                f"a value of {self.part.types[value].mesh} is read on {self.mesh.name} without an sdy.reshard",
                self.part.function.location if isinstance(value.owner, ir.Block) else value.owner.location,
            )


def append_arguments(function: ir.Operation, kinds: Sequence[MeshTensor]) -> None:
    """Give a stage function arguments that it does not read."""
    context, block = function.context, function.regions[0].blocks[0]
    entries = argument_attributes(function)
    with context, ir.Location.unknown():
        for kind in kinds:
            block.add_argument(ir.Type.parse(kind.tensor_text), ir.Location.unknown())
            entries.append({SHARDING: sharding_attribute(kind.sharding, kind.mesh, context)})
        old = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
        whole = ir.FunctionType.get([a.type for a in block.arguments], old.results)
        function.attributes["function_type"] = ir.TypeAttr.get(whole)
    set_argument_attributes(function, entries)


def outputs_of(part: Part, ops: Iterable[int], elsewhere: set[ir.Value]) -> list[ir.Value]:
    """The results of these ops that are read outside the fragment, in program order."""
    return [r for i in ops for r in part.ops[i].results if r in elsewhere]
