"""`alpa-localize` and `alpa-export-to-shardy`: two ways to make sharded functions executable.

The local partitioner is ours: each function becomes one `sdy.manual_computation` whose region is the
program of one device, with exactly the collectives that the plan counted (`passes/local/device_*.py`).  The other
leaves the partitioning to XLA's Shardy, which reads shardings on values and constraints, but neither
`sdy.reshard` nor partial values.  Each is the other's oracle (DESIGN §8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect import alpa, staged
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    op_shardings,
    read_sharding,
    result_attributes,
    set_argument_attributes,
    set_op_shardings,
    set_result_attributes,
    sharding_attribute,
)
from alpa_mlir.passes.local.device_function import RESHARDS, boundary_sharding, localize_function, significant
from alpa_mlir.passes.local.equal_functions import Anonymous, replace_by_copy
from alpa_mlir.passes.registry import Pass, register
from alpa_mlir.passes.roll import roll_loops

MANUAL = "sdy.manual_computation"
_Change = Callable[[staged.MeshTensor], staged.MeshTensor]


@register
@dataclass(frozen=True)
class Localize(Pass):
    """Turn every sharded function into an explicit program of one device.

    Before: functions whose arguments, results and ops carry `sdy.sharding` on one mesh (stage functions of
    level 6, or the functions of a one-stage level 5 module).  After: the body of each is one
    `sdy.manual_computation` over all mesh axes; inside, local shapes and `stablehlo` collectives, their channels
    numbered from 1 in each function (equal stages keep equal text).  A value partial at a function's boundary
    gains a leading dimension split over the partial axes; in a split `@main` the types follow.  Functions
    without shardings, and those already local, stay.
    Errors: an op whose shardings do not fit its factors (rules P1-P6), a dimension that does not divide.
    """

    name: ClassVar[str] = "alpa-localize"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""
        partial: list[str] = []
        done: dict[tuple[object, ...], tuple[ir.Operation, str]] = {}
        anonymous = Anonymous()
        for name, mesh, function in sharded_functions(module):
            if _has_partial_boundary(function):
                partial.append(name)
            key = (anonymous.key(function, mesh.name), mesh.axes)
            if key in done:
                replace_by_copy(function, mesh.name, *done[key])
            else:
                localize_function(function, mesh, count(1))
                done[key] = function, mesh.name
        _check_calls(module, partial)
        _retype_main(module)
        roll_loops(module)


@register
@dataclass(frozen=True)
class ExportToShardy(Pass):
    """Prepare sharded functions for XLA's own Shardy partitioner.

    Before: as for `alpa-localize`.  After: each `sdy.reshard` is an `sdy.sharding_constraint`, and nothing is
    `unreduced`: partial values are complete values, which XLA reduces where it sees fit.
    """

    name: ClassVar[str] = "alpa-export-to-shardy"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""
        for _, mesh, function in sharded_functions(module):
            _whole_boundary(function, mesh)
            for op in list(alpa.walk(function)):
                _whole_op(op, mesh)
        roll_loops(module)
        _retype_values(
            module, lambda kind: staged.MeshTensor(kind.mesh, kind.shape, kind.element, _whole(kind.sharding))
        )


def sharded_functions(module: ir.Module) -> Iterator[tuple[str, Mesh, ir.Operation]]:
    """The functions whose values carry shardings and are not localised yet: (name, mesh, function), in order.

    CompileError where a function's values live on several meshes or on an undeclared one.
    """
    meshes = meshes_of(module)
    for name, function in functions(module).items():
        if not len(function.regions[0].blocks) or _is_main_of_plan(function) or _is_local(function):
            continue
        used = _mesh_names(function)
        if not used:
            continue
        if len(used) > 1:
            raise CompileError(
                f"@{name} holds values of {len(used)} meshes ({', '.join(used)}): split it first (alpa-split)",
                function.location,
            )
        if used[0] not in meshes:
            raise CompileError(f"@{name} uses mesh @{used[0]}, which the module does not declare", function.location)
        yield name, meshes[used[0]], function


def _is_main_of_plan(function: ir.Operation) -> bool:
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    types = [*kind.inputs, *kind.results]
    return any(str(t).startswith("!mpmd.mesh_tensor") for t in types)


def _is_local(function: ir.Operation) -> bool:
    return any(op.operation.name == MANUAL for op in function.regions[0].blocks[0].operations)


def _mesh_names(function: ir.Operation) -> list[str]:
    found: dict[str, None] = {}
    for entry in (*argument_attributes(function), *result_attributes(function)):
        if SHARDING in entry:
            found.setdefault(read_sharding(entry[SHARDING])[0])
    for op in function.regions[0].blocks[0].operations:
        known = op_shardings(op)
        if known is not None:
            found.setdefault(known[0])
    return list(found)


def _has_partial_boundary(function: ir.Operation) -> bool:
    entries = (*argument_attributes(function), *result_attributes(function))
    return any(SHARDING in e and read_sharding(e[SHARDING])[1].partial for e in entries)


def _check_calls(module: ir.Module, retyped: list[str]) -> None:
    """A plain call of a function whose boundary changed could not be typed."""
    for op in alpa.walk(module.operation):
        if op.name == "func.call" and ir.FlatSymbolRefAttr(op.attributes["callee"]).value in retyped:
            name = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
            raise CompileError(
                f"@{name} has partial arguments or results and is called by func.call: run alpa-split first",
                op.location,
            )


def _retype_main(module: ir.Module) -> None:
    """Give partial values of a split `@main` the leading dimension they have at function boundaries."""
    main = functions(module).get("main")
    if main is None or not _is_main_of_plan(main):
        return
    meshes = meshes_of(module)
    for op in alpa.walk(main):
        if any(_is_partial(v, meshes) for v in op.operands):
            if op.name == staged.TRANSFER:
                raise CompileError(
                    "a partial value cannot leave its mesh: end its sum before the transfer", op.location
                )
            if op.name == staged.STACK:
                alpa.set_int(op, alpa.DIM, (alpa.get_int(op, alpa.DIM) or 0) + 1)

    def stacked(kind: staged.MeshTensor) -> staged.MeshTensor:
        sharding = significant(kind.sharding, meshes[kind.mesh])
        extra = (meshes[kind.mesh].extent(sharding.partial),) if sharding.partial else ()
        return staged.MeshTensor(kind.mesh, (*extra, *kind.shape), kind.element, boundary_sharding(sharding))

    _retype_values(module, stacked)


def _is_partial(value: ir.Value, meshes: dict[str, Mesh]) -> bool:
    kind = staged.MeshTensor.read(value.type)
    return bool(significant(kind.sharding, meshes[kind.mesh]).partial)


def _retype_values(module: ir.Module, change: _Change) -> None:
    """Apply `change` to the type of every mesh tensor of a split `@main`."""
    main = functions(module).get("main")
    if main is None or not _is_main_of_plan(main):
        return
    block = main.regions[0].blocks[0]
    values = [*block.arguments, *(r for op in alpa.walk(main) for r in op.results)]
    for value in values:
        if str(value.type).startswith("!mpmd.mesh_tensor"):
            old = staged.MeshTensor.read(value.type)
            new = change(old)
            if new != old:
                value.set_type(new.type(module.context))
    returned = list(block.operations)[-1].operation.operands
    kind = ir.FunctionType.get([v.type for v in block.arguments], [v.type for v in returned], context=module.context)
    main.attributes["function_type"] = ir.TypeAttr.get(kind, context=module.context)


def _whole(sharding: Sharding) -> Sharding:
    return Sharding(sharding.dims)


def _whole_boundary(function: ir.Operation, mesh: Mesh) -> None:
    for read, write in ((argument_attributes, set_argument_attributes), (result_attributes, set_result_attributes)):
        entries = read(function)
        for entry in entries:
            if SHARDING in entry:
                sharding = _whole(read_sharding(entry[SHARDING])[1])
                entry[SHARDING] = sharding_attribute(sharding, mesh.name, function.context)
        write(function, entries)


def _whole_op(op: ir.Operation, mesh: Mesh) -> None:
    known = op_shardings(op)
    if known is None:
        return
    whole = [_whole(s) for s in known[1]]
    if op.name not in RESHARDS:
        if any(s.partial for s in known[1]):
            set_op_shardings(op, whole, mesh.name)
        return
    attribute = sharding_attribute(whole[0], mesh.name, op.context)
    with op.location:
        constraint = sdy.ShardingConstraintOp(op.operands[0], attribute, ip=ir.InsertionPoint(op))
    op.results[0].replace_all_uses_with(constraint.results[0])
    op.erase()
