"""One function of sharded global values, rewritten into the program that each device runs.

The body becomes one `sdy.manual_computation` over all axes of the mesh.  Inside, every op is the same op
on local shapes (`shrink_op`), partial sums end as the op's placement says, and each `sdy.reshard` is its
chain of steps.  The idea is that of GSPMD's partitioner (Xu et al. 2021, §4) without its guesses: the
strategy is already written on every value, so what the cost model priced is what is emitted.

A value that is partial at the function's boundary cannot be written as a global tensor of its own shape:
its addends travel stacked, in a leading dimension split over the partial axes (`boundary_type`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy, stablehlo

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.factors import added_once, read_factors, shape_of
from alpa_mlir.dialect.linear import is_zero
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    op_sharding_attribute,
    op_shardings,
    read_sharding,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
    sharding_attribute,
)
from alpa_mlir.passes.local.collectives import DeviceProgram
from alpa_mlir.passes.local.device_placement import Placement, Placements
from alpa_mlir.passes.local.shrink import shrink_op
from alpa_mlir.passes.local.splats import splat
from alpa_mlir.passes.local.steps import Step, reshard_steps

RESHARDS = ("sdy.reshard", "sdy.sharding_constraint")


@dataclass(frozen=True)
class Planned:
    """One op of a function and what becomes of it: a chain of `steps` (a reshard) or a `placement`."""

    op: ir.Operation
    steps: tuple[Step, ...] = ()
    placement: Placement | None = None


@dataclass(frozen=True)
class Boundary:
    """The shardings of a function's arguments and results."""

    arguments: tuple[Sharding, ...]
    results: tuple[Sharding, ...]


def boundary_type(kind: ir.Type, sharding: Sharding, mesh: Mesh) -> ir.Type:
    """The global type in which a value crosses a function's boundary.

    A value partial over axes of product n gets a leading dimension of size n (none where nothing is partial).
    """
    if not sharding.partial:
        return kind
    tensor = ir.RankedTensorType(kind)
    return ir.RankedTensorType.get([mesh.extent(sharding.partial), *tensor.shape], tensor.element_type)


def boundary_sharding(sharding: Sharding) -> Sharding:
    """The sharding of `boundary_type`: the leading dimension is split over the partial axes."""
    return Sharding((sharding.partial, *sharding.dims)) if sharding.partial else sharding


def plan_function(function: ir.Operation, mesh: Mesh) -> list[Planned]:
    """Every op of the body in order with its placement; `CompileError` where shardings do not fit.

    Changes nothing (but that `sdy` sharding rules are read).
    """
    placements = Placements(read_factors(function), mesh)
    known = dict(zip(function.regions[0].blocks[0].arguments, read_boundary(function, mesh).arguments, strict=True))
    planned = []
    for op in _body(function)[:-1]:
        results = _results(op, mesh)
        operands = [known[v] for v in op.operands]
        planned.append(_plan_op(op, operands, results, placements))
        if len(op.regions):
            _check_captured(op, known)
        known.update(zip(op.results, results, strict=True))
    wanted = read_boundary(function, mesh).results
    for number, (value, sharding) in enumerate(zip(_body(function)[-1].operands, wanted, strict=True)):
        if known[value] != sharding:
            is_, said = known[value].text(mesh.name), sharding.text(mesh.name)
            where = _body(function)[-1].location
            raise CompileError(f"result {number} is {is_} but the function returns it as {said}", where)
    return planned


def _plan_op(
    op: ir.Operation,
    operands: Sequence[Sharding],
    results: Sequence[Sharding],
    placements: Placements,
) -> Planned:
    if op.name in RESHARDS:
        try:
            return Planned(op, steps=reshard_steps(operands[0], results[0], placements.mesh))
        except ValueError as e:
            raise CompileError(f"{op.name}: {e}", op.location) from None
    if not len(op.results):
        return Planned(op)
    return Planned(op, placement=placements.of(op, operands, results))


def read_boundary(function: ir.Operation, mesh: Mesh) -> Boundary:
    """Shardings of arguments and results; what has none is replicated."""
    block = function.regions[0].blocks[0]
    values = (*zip(block.arguments, argument_attributes(function), strict=True),)
    arguments = tuple(_read(a, v, mesh, function.location) for v, a in values)
    returned = zip(_body(function)[-1].operands, result_attributes(function), strict=True)
    return Boundary(arguments, tuple(_read(a, v, mesh, function.location) for v, a in returned))


def _read(attributes: dict[str, ir.Attribute], value: ir.Value, mesh: Mesh, where: ir.Location) -> Sharding:
    if SHARDING not in attributes:
        return Sharding.replicated(len(shape_of(value) or ()))
    name, sharding = read_sharding(attributes[SHARDING])
    return _checked(name, sharding, value, mesh, where)


def _results(op: ir.Operation, mesh: Mesh) -> list[Sharding]:
    if not len(op.results):
        return []
    found = op_shardings(op)
    if found is None:
        raise CompileError(f"{op.name} has no {SHARDING}: run alpa-shard first", op.location)
    name, shardings = found
    return [_checked(name, s, v, mesh, op.location) for s, v in zip(shardings, op.results, strict=True)]


def _checked(name: str, sharding: Sharding, value: ir.Value, mesh: Mesh, where: ir.Location) -> Sharding:
    """The sharding without axes of size one, after checks that it fits value and mesh."""
    if name != mesh.name:
        raise CompileError(f"a value on mesh @{name} in a function on mesh @{mesh.name}", where)
    shape = shape_of(value)
    if shape is None:
        raise CompileError(f"a value of type {value.type} cannot be sharded: its shape is not static", where)
    if len(sharding.dims) != len(shape):
        raise CompileError(f"a sharding of {len(sharding.dims)} dimensions on a value of type {value.type}", where)
    try:
        sharding.local_shape(shape, mesh)
    except CompileError as e:
        raise CompileError(e.message, where) from None
    return significant(sharding, mesh)


@lru_cache(maxsize=4096)
def significant(sharding: Sharding, mesh: Mesh) -> Sharding:
    """The sharding without axes of size one, which split nothing."""
    dims = tuple(tuple(a for a in axes if mesh.size(a) > 1) for axes in sharding.dims)
    return Sharding(dims, tuple(a for a in sharding.partial if mesh.size(a) > 1))


def _check_captured(op: ir.Operation, known: dict[ir.Value, Sharding]) -> None:
    for value in captured_values(op):
        sharding = known.get(value)
        if sharding is not None and not sharding.is_replicated:
            raise CompileError(
                f"a value used inside {op.name} is split; regions run whole on every device: reshard it before",
                op.location,
            )


def captured_values(op: ir.Operation) -> Iterator[ir.Value]:
    """Values from outside that ops inside the regions of `op` use, each once, in order."""
    inside = {op_id(inner) for inner in walk(op)}
    seen: set[ir.Value] = set()
    for inner in walk(op):
        for value in inner.operands:
            owner = value.owner
            parent = owner.owner.operation if isinstance(owner, ir.Block) else owner.operation
            local = op_id(parent) in inside or (isinstance(owner, ir.Block) and op_id(parent) == op_id(op))
            if not local and value not in seen:
                seen.add(value)
                yield value


def _body(function: ir.Operation) -> list[ir.Operation]:
    return [op.operation for op in function.regions[0].blocks[0].operations]


def localize_function(function: ir.Operation, mesh: Mesh, channels: Iterator[int]) -> None:
    """Replace the body by one `sdy.manual_computation` holding the program of one device.

    `channels` numbers the collectives.  The types of partial arguments and results become `boundary_type`.
    """
    planned = plan_function(function, mesh)
    boundary = read_boundary(function, mesh)
    block = function.regions[0].blocks[0]
    terminator = _body(function)[-1]
    with function.context, function.location:
        manual, inner = _open(function, mesh, boundary, terminator)
        program = DeviceProgram(mesh, ir.InsertionPoint(inner), channels)
        local = {}
        for value, sharding, argument in zip(block.arguments, boundary.arguments, inner.arguments, strict=True):
            local[value] = _unstack(argument, sharding, program)
        for item in planned:
            with item.op.location:
                _emit(item, local, program)
        results = [_stack(local[v], s, program) for v, s in zip(terminator.operands, boundary.results, strict=True)]
        sdy.ReturnOp(results, ip=program.ip)
    for number, result in enumerate(manual.results):
        terminator.operands[number] = result
    for item in reversed(planned):
        item.op.erase()
    _retype(function, mesh, boundary)


def _open(
    function: ir.Operation, mesh: Mesh, boundary: Boundary, terminator: ir.Operation
) -> tuple[ir.Operation, ir.Block]:
    """The empty manual computation in front of the terminator, and its block of local arguments."""
    block = function.regions[0].blocks[0]
    types = [boundary_type(v.type, s, mesh) for v, s in zip(terminator.operands, boundary.results, strict=True)]
    sources = [boundary_sharding(s) for s in boundary.arguments]
    targets = [boundary_sharding(s) for s in boundary.results]
    inputs = [boundary_type(v.type, s, mesh) for v, s in zip(block.arguments, boundary.arguments, strict=True)]
    manual = sdy.ManualComputationOp(
        types,
        list(block.arguments),
        _sharding_list(sources, mesh, function.context),
        _sharding_list(targets, mesh, function.context),
        _manual_axes(mesh, function.context),
        ip=ir.InsertionPoint(terminator),
    )
    locals_ = [local_type(t, s, mesh) for t, s in zip(inputs, sources, strict=True)]
    inner = ir.Block.create_at_start(manual.operation.regions[0], locals_, [function.location] * len(locals_))
    return manual.operation, inner


def _sharding_list(shardings: Sequence[Sharding], mesh: Mesh, context: ir.Context) -> ir.Attribute:
    """The shardings of several values as one attribute."""
    return op_sharding_attribute(shardings, mesh.name, context)


def _manual_axes(mesh: Mesh, context: ir.Context) -> ir.Attribute:
    names = ", ".join(f'"{a}"' for a in mesh.axis_names)
    return ir.Attribute.parse(f"#sdy<manual_axes{{{names}}}>", context)


def local_type(kind: ir.Type, sharding: Sharding, mesh: Mesh) -> ir.Type:
    """The type of what one device holds."""
    tensor = ir.RankedTensorType(kind)
    return ir.RankedTensorType.get(list(sharding.local_shape(tensor.shape, mesh)), tensor.element_type)


def _unstack(value: ir.Value, sharding: Sharding, program: DeviceProgram) -> ir.Value:
    """A device's addend without the leading dimension of the boundary."""
    if not sharding.partial:
        return value
    tensor = ir.RankedTensorType(value.type)
    return stablehlo.reshape(ir.RankedTensorType.get(tensor.shape[1:], tensor.element_type), value, ip=program.ip)


def _stack(value: ir.Value, sharding: Sharding, program: DeviceProgram) -> ir.Value:
    if not sharding.partial:
        return value
    tensor = ir.RankedTensorType(value.type)
    return stablehlo.reshape(ir.RankedTensorType.get([1, *tensor.shape], tensor.element_type), value, ip=program.ip)


def _emit(item: Planned, local: dict[ir.Value, ir.Value], program: DeviceProgram) -> None:
    op = item.op
    operands = [local[v] for v in op.operands]
    if op.name in RESHARDS:
        local[op.results[0]] = program.run(item.steps, operands[0])
        return
    if SHARDING in op.attributes:
        del op.attributes[SHARDING]
    placement = item.placement
    if placement is None:
        _clone_effect(op, operands, local, program)
        return
    _seed_once(op, placement, operands, program)
    shapes = [n.local_shape(ir.RankedTensorType(v.type).shape, program.mesh)
              for n, v in zip(placement.natural, op.results, strict=True)]  # fmt: skip

    def offset(dim: int) -> ir.Value | None:
        axes = placement.natural[0].dims[dim]
        return program.offset(axes, shapes[0][dim]) if axes else None

    results = shrink_op(op, operands, shapes, program.ip, offset)
    if len(op.regions) and results:
        _enter_regions(results[0].owner.operation, local)
    for old, new, steps in zip(op.results, results, placement.endings, strict=True):
        local[old] = program.run(steps, new, placement.reduction)


def _clone_effect(
    op: ir.Operation, operands: Sequence[ir.Value], local: dict[ir.Value, ir.Value], program: DeviceProgram
) -> None:
    """An op without results: as it is, on every device."""
    copy = op.clone(program.ip).operation
    for number, value in enumerate(operands):
        copy.operands[number] = value
    _enter_regions(copy, local)


def _enter_regions(op: ir.Operation, local: dict[ir.Value, ir.Value]) -> None:
    """Inside the regions of a cloned op: use local values, and drop what speaks of shardings."""
    for inner in list(walk(op)):
        for number, value in enumerate(inner.operands):
            if value in local:
                inner.operands[number] = local[value]
        if SHARDING in inner.attributes:
            del inner.attributes[SHARDING]
    for inner in list(walk(op)):
        if inner.name in RESHARDS:
            inner.results[0].replace_all_uses_with(inner.operands[0])
            inner.erase()


def _seed_once(op: ir.Operation, placement: Placement, operands: list[ir.Value], program: DeviceProgram) -> None:
    """Operands that the op adds to its sums (initial values) must count once, not once per device.

    On all devices but the first along the reduced axes they are replaced by the monoid's identity.
    """
    identity = {"add": 0, "mul": 1}.get(placement.reduction)
    if not placement.reduced or identity is None:
        return
    first = None
    for number in added_once(op):
        if identity == 0 and is_zero(op.operands[number]):
            continue
        if first is None:
            first = stablehlo.compare(
                program.coordinate(placement.reduced), program.scalar(0),
                stablehlo.ComparisonDirectionAttr.get("EQ"), ip=program.ip,
            )  # fmt: skip
        with program.ip:
            neutral = splat(operands[number].type, identity)
        operands[number] = stablehlo.select(first, operands[number], neutral, ip=program.ip)


def _retype(function: ir.Operation, mesh: Mesh, boundary: Boundary) -> None:
    """Write the boundary's types and shardings on the function."""
    block = function.regions[0].blocks[0]
    with function.location:
        inputs = [boundary_type(v.type, s, mesh) for v, s in zip(block.arguments, boundary.arguments, strict=True)]
        for value, kind in zip(block.arguments, inputs, strict=True):
            value.set_type(kind)
        outputs = [v.type for v in _body(function)[-1].operands]
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, outputs))
        for read, write, shardings in (
            (argument_attributes, set_argument_attributes, boundary.arguments),
            (result_attributes, set_result_attributes, boundary.results),
        ):
            attributes = read(function)
            for entry, sharding in zip(attributes, shardings, strict=True):
                entry[SHARDING] = sharding_attribute(boundary_sharding(sharding), mesh.name, function.context)
            write(function, attributes)
