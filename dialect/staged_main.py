"""`@main` of a split module, read into the values of `alpa_mlir.dialect.staged` and written from them.

`alpa_mlir.dialect.plan` does the same for the instruction lists of level 7.  The contract is `docs/ir.md`, levels 6, 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import mpmd

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import func, functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.sharding import (
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)
from alpa_mlir.dialect.staged import (
    ACCUMULATE,
    ARGUMENT,
    FRAGMENT_CALL,
    INDEX,
    MICROBATCH,
    STACK,
    TRANSFER,
    Accumulate,
    Argument,
    Fragment,
    Index,
    MeshTensor,
    Part,
    PlanMain,
    Ref,
    Slice,
    Stack,
    Step,
    Transfer,
)


def read_main(module: ir.Module) -> PlanMain:
    """The step that `@main` of a split module or plan describes; CompileError where it is malformed."""
    found = functions(module)
    if "main" not in found:
        raise CompileError("the module has no function @main", module.operation.location)
    main = found["main"]
    block = main.regions[0].blocks[0]
    meshes = meshes_of(module)
    refs: dict[ir.Value, Ref] = {a: Ref(ARGUMENT, i) for i, a in enumerate(block.arguments)}
    checked: set[MeshTensor] = set()
    steps: list[Step] = []
    results: tuple[Ref, ...] = ()
    for view in block.operations:
        op = view.operation
        if op.name == "func.return":
            results = tuple(refs[v] for v in op.operands)
            continue
        step = _read_step(op, refs, steps[-1].id if steps else ARGUMENT)
        _check_meshes([t for t in step.results if t not in checked], meshes, op.location)
        checked.update(step.results)
        refs.update({r: Ref(step.id, i) for i, r in enumerate(op.results)})
        steps.append(step)
    leaving = result_attributes(main)
    names = tuple(_text(e, "jax.result_info") for e in leaving)
    parts = tuple(map(part_of, leaving)) if any(alpa.PART in e for e in leaving) else ()
    return PlanMain(_read_arguments(main, meshes), tuple(steps), results, names, microbatches_of(module), parts)


def part_of(entry: dict[str, ir.Attribute]) -> Part | None:
    """Which part of an argument or result of the program one of `@main` is, by its attributes; None: it is whole."""
    return Part(*ir.DenseI64ArrayAttr(entry[alpa.PART])) if alpa.PART in entry else None


def microbatches_of(module: ir.Module) -> int:
    """`alpa.microbatches` of a module, 1 where it is not said."""
    count = alpa.get_int(module.operation, alpa.MICROBATCHES)
    return 1 if count is None else count


def _read_arguments(main: ir.Operation, meshes: dict[str, Mesh]) -> tuple[Argument, ...]:
    found = []
    for value, entry in zip(main.regions[0].blocks[0].arguments, argument_attributes(main), strict=True):
        kind = MeshTensor.read(value.type, main.location)
        _check_meshes((kind,), meshes, main.location)
        updates = int(ir.IntegerAttr(entry[alpa.UPDATES]).value) if alpa.UPDATES in entry else None
        role = _text(entry, alpa.ROLE) or "constant"
        name = ir.NameLoc(value.location).name_str if isinstance(value.location, ir.NameLoc) else ""
        found.append(Argument(kind, role, updates, name, alpa.NONNEGATIVE in entry, part_of(entry)))
    return tuple(found)


def _text(entry: dict[str, ir.Attribute], name: str) -> str:
    return str(ir.StringAttr(entry[name]).value) if name in entry else ""


def _read_step(op: ir.Operation, refs: dict[ir.Value, Ref], last: int) -> Step:
    read = _READERS.get(op.name)
    if read is None:
        raise CompileError(f"{op.name} cannot stand in @main of a split module", op.location)
    number = alpa.get_int(op, alpa.ID)
    if number is None or number <= last:
        raise CompileError(f"{op.name} needs an alpa.id above {last}, got {number}", op.location)
    results = tuple(MeshTensor.read(r.type, op.location) for r in op.results)
    arity = _ARITY.get(op.name)
    if arity is not None and (len(op.operands), len(results)) != arity:
        raise CompileError(f"{op.name} takes {arity[0]} and makes {arity[1]} values", op.location)
    return read(op, number, tuple(refs[v] for v in op.operands), results)


def _check_meshes(types: Sequence[MeshTensor], meshes: dict[str, Mesh], location: ir.Location) -> None:
    for kind in types:
        mesh = meshes.get(kind.mesh)
        if mesh is None:
            raise CompileError(f"a value lives on mesh {kind.mesh}, which the module does not declare", location)
        unknown = [a for a in (*kind.sharding.axes, *kind.sharding.partial) if a not in mesh.axis_names]
        if unknown or len(kind.sharding.dims) != len(kind.shape):
            raise CompileError(f"the sharding of {kind.tensor_text} does not fit mesh {kind.mesh}", location)
        if not kind.sharding.divides(kind.shape, mesh):
            raise CompileError(f"{kind.tensor_text} is not divisible by its sharding on {kind.mesh}", location)


def _required(op: ir.Operation, name: str) -> int:
    value = alpa.get_int(op, name)
    if value is None:
        raise CompileError(f"{op.name} needs {name}", op.location)
    return value


def _read_fragment(op: ir.Operation, number: int, operands: tuple[Ref, ...], results: tuple[MeshTensor, ...]) -> Step:
    mesh = ir.StringAttr(op.attributes["mesh_name"]).value
    function = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
    return Fragment(number, _phase(op), _required(op, alpa.STAGE), mesh, function, operands, results)


def _phase(op: ir.Operation) -> str:
    phase = alpa.get_string(op, alpa.PHASE)
    if phase not in alpa.PHASES:
        raise CompileError(f"{op.name} needs alpa.phase, got {phase!r}", op.location)
    return phase


def _read_transfer(op: ir.Operation, number: int, operands: tuple[Ref, ...], results: tuple[MeshTensor, ...]) -> Step:
    return Transfer(number, _phase(op), (operands[0],), (results[0],), alpa.get_int(op, alpa.ROUTE))


def _cut(op: ir.Operation, whole: ir.Value, part: ir.Value) -> int:
    """The dimension along which `whole` consists of microbatches like `part`."""
    dim = _required(op, alpa.DIM)
    a, b = (MeshTensor.read(v.type, op.location) for v in (whole, part))
    fits = len(a.shape) == len(b.shape) and a.element == b.element and 0 <= dim < len(a.shape)
    if not fits or any(
        m % max(n, 1) if d == dim else m != n for d, (m, n) in enumerate(zip(a.shape, b.shape, strict=True))
    ):
        raise CompileError(f"{a.tensor_text} does not consist of {b.tensor_text} along dimension {dim}", op.location)
    return dim


def _read_accumulate(op: ir.Operation, number: int, operands: tuple[Ref, ...], results: tuple[MeshTensor, ...]) -> Step:
    return Accumulate(number, alpa.get_string(op, alpa.COMBINE) or "add", (operands[0],), (results[0],))


_READERS: dict[str, Callable[[ir.Operation, int, tuple[Ref, ...], tuple[MeshTensor, ...]], Step]] = {
    FRAGMENT_CALL: _read_fragment,
    TRANSFER: _read_transfer,
    ACCUMULATE: _read_accumulate,
    MICROBATCH: lambda op, n, o, r: Slice(n, _cut(op, op.operands[0], op.results[0]), (o[0],), (r[0],)),
    STACK: lambda op, n, o, r: Stack(n, _cut(op, op.results[0], op.operands[0]), (o[0],), (r[0],)),
    INDEX: lambda op, n, o, r: Index(n, (r[0],)),
}


_ARITY = {ACCUMULATE: (1, 1), MICROBATCH: (1, 1), STACK: (1, 1), INDEX: (0, 1)}
"""Operands and results of the ops of `@main` that no dialect knows."""


def write_main(module: ir.Module, main: PlanMain, result_entries: Sequence[dict[str, ir.Attribute]]) -> ir.Operation:
    """Append `@main` to a module that declares the meshes; `result_entries` are its result attributes."""
    context = module.context
    inputs = [a.type.type(context) for a in main.arguments]
    outputs = [main.type_of(r).type(context) for r in main.results]
    with context, ir.Location.unknown():
        function = func.FuncOp("main", (inputs, outputs), visibility="public", ip=ir.InsertionPoint(module.body))
        function.operation.attributes["topology"] = _topology(module)
        locations = [ir.Location.name(a.name) if a.name else ir.Location.unknown() for a in main.arguments]
        block = function.operation.regions[0].blocks.append(*inputs, arg_locs=locations)
        values = {Ref(ARGUMENT, i): v for i, v in enumerate(block.arguments)}
        ip = ir.InsertionPoint(block)
        for step in main.steps:
            op = _write_step(step, [values[r] for r in step.operands], ip)
            values.update({Ref(step.id, i): r for i, r in enumerate(op.results)})
        func.ReturnOp([values[r] for r in main.results], ip=ip)
    set_argument_attributes(function.operation, [_argument_entry(a, context) for a in main.arguments])
    set_result_attributes(function.operation, result_entries)
    return function.operation


def _topology(module: ir.Module) -> ir.Attribute:
    axes = {name: ", ".join(f'"{a}"={n}' for a, n in mesh.axes) for name, mesh in meshes_of(module).items()}
    inner = ", ".join(f'<"{name}" : <[{text}]>>' for name, text in axes.items())
    return ir.Attribute.parse(f"#mpmd.topology<{inner}>", module.context)


def _argument_entry(argument: Argument, context: ir.Context) -> dict[str, ir.Attribute]:
    entry = {alpa.ROLE: alpa.string(argument.role, context)}
    if argument.updates is not None:
        entry[alpa.UPDATES] = alpa.i64(argument.updates, context)
    if argument.nonnegative:
        entry[alpa.NONNEGATIVE] = ir.UnitAttr.get(context)
    if argument.part is not None:
        part = argument.part
        entry[alpa.PART] = ir.DenseI64ArrayAttr.get([part.number, part.count, part.dim], context)
    return entry


def _write_step(step: Step, operands: list[ir.Value], ip: ir.InsertionPoint) -> ir.Operation:
    context = ip.block.owner.operation.context
    types = [t.type(context) for t in step.results]
    if isinstance(step, Fragment):
        origin = ir.Attribute.parse(f'[#mpmd.user_origin<"{step.phase}">]', context)
        callee = ir.FlatSymbolRefAttr.get(step.function, context)
        op = mpmd.FragmentCallOp(types, operands, origin, step.mesh, callee, ip=ip).operation
        alpa.set_string(op, alpa.PHASE, step.phase)
        alpa.set_int(op, alpa.STAGE, step.stage)
    elif isinstance(step, Transfer):
        op = mpmd.TransferOp(types[0], operands[0], ip=ip).operation
        alpa.set_string(op, alpa.PHASE, step.phase)
    else:
        op = ir.Operation.create(_NAMES[type(step)], results=types, operands=operands, ip=ip)
        if isinstance(step, Accumulate):
            alpa.set_string(op, alpa.COMBINE, step.combine)
        elif isinstance(step, (Slice, Stack)):
            alpa.set_int(op, alpa.DIM, step.dim)
    alpa.set_int(op, alpa.ID, step.id)
    return op


_NAMES: dict[type, str] = {Slice: MICROBATCH, Index: INDEX, Accumulate: ACCUMULATE, Stack: STACK}
