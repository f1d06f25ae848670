"""The executable `@main` of a microbatched program: prologue, a loop over the microbatches, update.

The loop is a plain `stablehlo.while` whose body cuts one microbatch out of each batch argument, calls `@microbatch`,
adds the sums and writes the per-example outputs into their stacks; so level 2 runs wherever level 1 did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func, stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding, bindings
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes
from alpa_mlir.passes.local.counted_loop import counted_loop
from alpa_mlir.passes.local.shrink import cut, integer
from alpa_mlir.passes.local.splats import splat

EXTREMES = {"max": stablehlo.maximum, "min": stablehlo.minimum}


@dataclass(frozen=True)
class Port:
    """An argument or result of a derived function: its binding, type, and how parts make the whole."""

    binding: Binding
    type: ir.Type
    dim: int = -1
    combine: str = "add"


@dataclass(frozen=True)
class Piece:
    """A derived function: its name and its arguments and results."""

    name: str
    arguments: tuple[Port, ...]
    results: tuple[Port, ...]


def renew_main(module: ir.Module) -> None:
    """Write `@main` again after arguments or results of the derived functions changed."""
    derived = functions(module)
    pieces = {name: _read_piece(f) for name, f in derived.items() if name != "main"}
    update = pieces["update"]
    stacks = {p.binding.number: p.type for p in update.arguments if p.binding.kind == "stack"}
    kinds = [kind for _, kind in sorted(stacks.items())]
    parts = alpa.get_int(module.operation, alpa.MICROBATCHES) or 1
    replace_main(derived["main"], pieces["microbatch"], update, pieces.get("prologue"), kinds, parts)


def _read_piece(function: ir.Operation) -> Piece:
    block = function.regions[0].blocks[0]
    returned = list(block.operations)[-1].operation.operands
    ends = []
    for values, entries in (
        (block.arguments, argument_attributes(function)),
        (returned, result_attributes(function)),
    ):
        named = zip(values, entries, bindings(entries), strict=True)
        ends.append(tuple(_read_port(value, entry, binding) for value, entry, binding in named))
    return Piece(ir.StringAttr(function.attributes["sym_name"]).value, *ends)


def _read_port(value: ir.Value, entry: dict[str, ir.Attribute], binding: Binding) -> Port:
    dim = int(ir.IntegerAttr(entry[alpa.DIM]).value) if alpa.DIM in entry else -1
    combine = ir.StringAttr(entry[alpa.COMBINE]).value if alpa.COMBINE in entry else "add"
    return Port(binding, value.type, dim, combine)


def replace_main(
    main: ir.Operation,
    microbatch: Piece,
    update: Piece,
    prologue: Piece | None,
    stacks: Sequence[ir.Type],
    parts: int,
) -> None:
    """Put a `@main` that runs the derived functions in the place of `main`; arguments as in `emit_main`."""
    attributes = {name: main.attributes[name] for name in main.attributes}
    arguments = main.regions[0].blocks[0].arguments
    new = ir.Operation.create("func.func", [], [], attributes, regions=1, loc=main.location, ip=ir.InsertionPoint(main))
    block = new.regions[0].blocks.append(*[a.type for a in arguments], arg_locs=[a.location for a in arguments])
    emit_main(block, microbatch, update, prologue, stacks, parts)
    main.erase()


def emit_main(
    block: ir.Block, microbatch: Piece, update: Piece, prologue: Piece | None, stacks: Sequence[ir.Type], parts: int
) -> None:
    """Fill the entry block of the new `@main`; `stacks[k]` is the type of stack k over all microbatches."""
    ip = ir.InsertionPoint(block)
    known: dict[Binding, ir.Value] = {Binding("arg", i): a for i, a in enumerate(block.arguments)}
    with ip, ir.Location.unknown(block.owner.context):
        if prologue is not None:
            known |= _call(prologue, known)
        known |= _loop(block, ip, microbatch, known, stacks, parts)
        results = _call(update, known)
        func.ReturnOp([results[port.binding] for port in update.results])


def _call(piece: Piece, known: dict[Binding, ir.Value]) -> dict[Binding, ir.Value]:
    values = [known[port.binding] for port in piece.arguments]
    call = func.CallOp([port.type for port in piece.results], ir.FlatSymbolRefAttr.get(piece.name), values)
    return {port.binding: value for port, value in zip(piece.results, call.results, strict=True)}


def _loop(
    block: ir.Block,
    ip: ir.InsertionPoint,
    microbatch: Piece,
    known: dict[Binding, ir.Value],
    stacks: Sequence[ir.Type],
    parts: int,
) -> dict[Binding, ir.Value]:
    """Run `@microbatch` for each microbatch; returns sums and stacks by binding."""
    location = ir.Location.unknown(block.owner.context)
    through = [_whole(p) for p in microbatch.arguments if p.binding.kind != "index"]
    starts = [
        *[_start(p, stacks) for p in microbatch.results],
        *[known[b] for b in through],
    ]
    loop, body = counted_loop(starts, parts, location)
    with ir.InsertionPoint(body) as inside:
        index, *rest = body.arguments
        count = len(microbatch.results)
        inner = dict(zip(through, rest[count:], strict=True)) | {Binding("index"): index}
        for port in microbatch.arguments:
            if port.binding.kind == "batch":
                inner[port.binding] = _cut_batch(port, inner[_whole(port)], index, inside, location)
        parts_of = _call(microbatch, inner)
        ends = [
            _add(p, old, parts_of[p.binding], index) for p, old in zip(microbatch.results, rest[:count], strict=True)
        ]
        following = stablehlo.add(index, integer(1, index.type))
        stablehlo.return_([following, *ends, *rest[count:]])
    results = list(loop.results)[1:]
    return {p.binding: v for p, v in zip(microbatch.results, results, strict=False)}


def _whole(port: Port) -> Binding:
    return Binding("arg", port.binding.number) if port.binding.kind == "batch" else port.binding


def _cut_batch(port: Port, whole: ir.Value, index: ir.Value, ip: ir.InsertionPoint, location: ir.Location) -> ir.Value:
    shape = ir.RankedTensorType(port.type).shape
    offset = stablehlo.multiply(index, integer(shape[port.dim], index.type))
    return cut(whole, shape, {port.dim: offset}, ip, location)


def _start(port: Port, stacks: Sequence[ir.Type]) -> ir.Value:
    """Zeros for sums and stacks, the neutral element for extremes."""
    kind = stacks[port.binding.number] if port.binding.kind == "stack" else port.type
    element = ir.RankedTensorType(kind).element_type
    if port.binding.kind == "stack" or port.combine == "add":
        return splat(kind, 0)
    return stablehlo.constant(ir.DenseElementsAttr.get_splat(kind, _lowest(element, port.combine)))


def _lowest(element: ir.Type, combine: str) -> ir.Attribute:
    """What no maximum (minimum) is below (above)."""
    if isinstance(element, ir.IntegerType):
        top = (1 << (element.width - (0 if element.is_unsigned or element.width == 1 else 1))) - 1
        low = 0 if element.is_unsigned or element.width == 1 else -top - 1
        return ir.IntegerAttr.get(element, low if combine == "max" else top)
    return ir.FloatAttr.get(element, {"max": -float("inf"), "min": float("inf")}[combine])


def _add(port: Port, old: ir.Value, new: ir.Value, index: ir.Value) -> ir.Value:
    """One microbatch's part joined to what the earlier ones gave."""
    if port.binding.kind == "sum":
        return EXTREMES.get(port.combine, stablehlo.add)(old, new)
    size = ir.RankedTensorType(port.type).shape[port.dim]
    offset = stablehlo.multiply(index, integer(size, index.type))
    zero = integer(0, index.type)
    starts = [offset if d == port.dim else zero for d in range(len(ir.RankedTensorType(port.type).shape))]
    return stablehlo.dynamic_update_slice(old, new, starts)
