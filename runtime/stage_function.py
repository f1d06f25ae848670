"""A stage function cut out of a plan: a module by itself, as XLA takes it.

The body is either one `sdy.manual_computation`, the explicit program of one device, or sharded ops that XLA's Shardy
partitioner turns into one.  `alpa.donate` on an argument lets a result take over its buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import meshes_of
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    read_sharding,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)


@dataclass(frozen=True)
class Tensor:
    """Global shape, element type (MLIR spelling) and sharding of an argument or result of a stage function."""

    shape: tuple[int, ...]
    element: str
    sharding: Sharding

    def __str__(self) -> str:
        dims = "".join(f"{n}x" for n in self.shape)
        return f"tensor<{dims}{self.element}> sharded {self.sharding.text('mesh')}"


@dataclass(frozen=True, eq=False)
class StageFunction:
    """A stage function by itself: what its boundary looks like, and how its text is made when it is asked for.

    The buffer of argument `donated[k]` may be taken over, as the plan means it by result `into[k]`.
    """

    name: str
    write: Callable[[], str]
    arguments: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    donated: tuple[int, ...]
    into: tuple[int, ...] = ()

    @cached_property
    def text(self) -> str:
        """A module with a public @main."""
        return self.write()


def extract(module: ir.Module, name: str) -> StageFunction:
    """The function `name` of a module, to be cut out with its mesh and whatever it calls; CompileError if it is
    missing."""
    found = functions(module)
    if name not in found:
        raise CompileError(f"the module has no function @{name}", module.operation.location)
    function = found[name]
    entries = argument_attributes(function)
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    arguments = _tensors(kind.inputs, entries, function)
    results = _tensors(kind.results, result_attributes(function), function)
    donated = {i: int(ir.IntegerAttr(e[alpa.DONATE]).value) for i, e in enumerate(entries) if alpa.DONATE in e}
    write = partial(_standalone, module, found, name)
    return StageFunction(name, write, arguments, results, tuple(donated), tuple(donated.values()))


def _tensors(
    types: Sequence[ir.Type], entries: Sequence[dict[str, ir.Attribute]], function: ir.Operation
) -> tuple[Tensor, ...]:
    found = []
    for kind, entry in zip(types, entries, strict=True):
        if not isinstance(kind, ir.RankedTensorType) or not kind.has_static_shape:
            raise CompileError(
                f"a stage function takes and gives tensors of static shape, not {kind}", function.location
            )
        sharding = read_sharding(entry[SHARDING])[1] if SHARDING in entry else Sharding.replicated(kind.rank)
        found.append(Tensor(tuple(kind.shape), str(kind.element_type), sharding))
    return tuple(found)


def _standalone(module: ir.Module, found: dict[str, ir.Operation], name: str) -> str:
    """The text of a module that holds the function as its public @main, its callees and the meshes."""
    with module.context, ir.Location.unknown():
        alone = cut_out(module, found, [name])
        main = functions(alone)[name]
        main.attributes["sym_name"] = ir.StringAttr.get("main")
        main.attributes["sym_visibility"] = ir.StringAttr.get("public")
        return print_module(alone)


def cut_out(module: ir.Module, found: dict[str, ir.Operation], names: Sequence[str]) -> ir.Module:
    """A module of these functions, all that they call, and their meshes, as XLA takes them; within the context."""
    alone = ir.Module.create()
    for op in module.body.operations:
        if op.operation.name == "sdy.mesh":
            alone.body.append(op.operation.clone())
    for other in dict.fromkeys(callee for name in names for callee in _callees(found, name)):
        alone.body.append(found[other].clone())
    shardings = {attribute for function in functions(alone).values() for attribute in _plain(function)}
    _drop_unused_meshes(alone, shardings)
    if all(mesh.device_count == 1 for mesh in meshes_of(alone).values()):
        for name in names:
            _inline_manual_computations(functions(alone)[name])
    return alone


def _callees(found: dict[str, ir.Operation], name: str) -> list[str]:
    """The function and all it calls, in order of first use."""
    order, pending = [name], [name]
    while pending:
        for op in alpa.walk(found[pending.pop()]):
            if op.name == "func.call":
                callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
                if callee not in order and callee in found:
                    order.append(callee)
                    pending.append(callee)
    return order


def _plain(function: ir.Operation) -> set[ir.Attribute]:
    """Drop what only the compiler reads, and say reshards as XLA's partitioner accepts them; the shardings left."""
    sides = [argument_attributes(function), result_attributes(function)]
    set_argument_attributes(function, [_without_alpa(e) for e in sides[0]])
    set_result_attributes(function, [_without_alpa(e) for e in sides[1]])
    shardings = {entry[SHARDING] for side in sides for entry in side if SHARDING in entry}
    for op in [function, *alpa.walk(function)]:
        for attribute in list(op.attributes):
            if attribute.startswith("alpa.") or attribute == "mesh_shape":
                del op.attributes[attribute]
            elif "sharding" in attribute:
                shardings.add(op.attributes[attribute])
        if op.name == "sdy.reshard":
            constraint = sdy.ShardingConstraintOp(op.operands[0], op.attributes["sharding"], ip=ir.InsertionPoint(op))
            op.results[0].replace_all_uses_with(constraint.result)
    for op in [o for o in alpa.walk(function) if o.name == "sdy.reshard"]:
        op.erase()
    return shardings


def _inline_manual_computations(function: ir.Operation) -> None:
    """On one device a manual computation is its own body; XLA runs no partitioner there that could unwrap it."""
    for op in [o for o in alpa.walk(function) if o.name == "sdy.manual_computation"]:
        block = op.regions[0].blocks[0]
        for argument, operand in zip(block.arguments, op.operands, strict=True):
            argument.replace_all_uses_with(operand)
        *body, end = [inner.operation for inner in block.operations]
        for inner in body:
            inner.move_before(op)
        for result, value in zip(op.results, list(end.operands), strict=True):
            result.replace_all_uses_with(value)
        op.erase()


def _without_alpa(entry: dict[str, ir.Attribute]) -> dict[str, ir.Attribute]:
    return {name: attribute for name, attribute in entry.items() if name == SHARDING}


def _drop_unused_meshes(module: ir.Module, shardings: set[ir.Attribute]) -> None:
    text = "\n".join(map(str, shardings))
    for op in list(module.body.operations):
        if op.operation.name == "sdy.mesh":
            name = ir.StringAttr(op.operation.attributes["sym_name"]).value
            if f"@{name}," not in text:
                op.operation.erase()
