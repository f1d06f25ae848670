"""The `alpa.*` attributes: every decision the compiler writes down that no upstream dialect can say.

Each attribute is declared once (name, type, where it may stand, meaning); readers and writers go by
these names, `docs/attributes.md` is generated from the table, and `verify` checks a module against it.
The levels of the IR on which each appears are described in `docs/ir.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes

ROLE = "alpa.role"
UPDATES = "alpa.updates"
BINDING = "alpa.binding"
DIM = "alpa.dim"
COMBINE = "alpa.combine"
LEVEL = "alpa.level"
MICROBATCHES = "alpa.microbatches"
CLUSTER = "alpa.cluster"
STAGES = "alpa.stages"
LAYER = "alpa.layer"
PHASE = "alpa.phase"
STAGE = "alpa.stage"
COST = "alpa.cost"
DIGEST = "alpa.digest"
ID = "alpa.id"
DONATE = "alpa.donate"
STATISTICS = "alpa.statistics"
NONNEGATIVE = "alpa.nonnegative"
REMAT = "alpa.remat"
REPEATS = "alpa.repeats"
PART = "alpa.part"
LAYOUT = "alpa.layout"
CONSIDERED = "alpa.considered"
MESHES = "alpa.meshes"
FLOOR = "alpa.floor"
AHEAD = "alpa.ahead"
ROUTE = "alpa.route"
BYTES = "alpa.bytes"
TRIPS = "alpa.trips"
REVERSED = "alpa.reversed"

ROLES = ("state", "batch", "constant")
PHASES = ("prologue", "forward", "backward", "weight", "update")
LEVELS = ("normal", "microbatched", "layered", "staged", "sharded", "split", "plan")


def is_i64(attribute: ir.Attribute) -> bool:
    """A non-negative `i64` integer attribute."""
    return isinstance(attribute, ir.IntegerAttr) and int(ir.IntegerAttr(attribute).value) >= 0


def _below(limit: int) -> Callable[[ir.Attribute], bool]:
    return lambda a: is_i64(a) and int(ir.IntegerAttr(a).value) < limit


def _one_of(words: tuple[str, ...]) -> Callable[[ir.Attribute], bool]:
    return lambda a: isinstance(a, ir.StringAttr) and str(ir.StringAttr(a).value) in words


def _is_binding(attribute: ir.Attribute) -> bool:
    if not isinstance(attribute, ir.StringAttr):
        return False
    kind, _, number = str(ir.StringAttr(attribute).value).partition(":")
    if kind == "index":
        return number == ""
    return kind in ("arg", "batch", "prologue", "sum", "stack", "out") and number.isdigit()


def _is_part(attribute: ir.Attribute) -> bool:
    found = list(ir.DenseI64ArrayAttr(attribute)) if isinstance(attribute, ir.DenseI64ArrayAttr) else []
    return len(found) == 3 and 0 <= found[0] < found[1] and found[2] >= 0


@dataclass(frozen=True)
class Declaration:
    """One attribute: its name, the type in words, where it may stand, what it means, its verifier."""

    rule: str
    name: str
    kind: str
    places: tuple[str, ...]
    meaning: str
    accepts: Callable[[ir.Attribute], bool]


DECLARATIONS: tuple[Declaration, ...] = (
    Declaration("V1", ROLE, '"state" | "batch" | "constant"', ("argument",),
                "what an argument of the program is: kept and replaced every step, new data every step, or neither",
                _one_of(ROLES)),
    Declaration("V2", UPDATES, "i64, not negative", ("argument",), "the result of @main that replaces this state argument",
                _below(2**31)),
    Declaration("V3", BINDING, 'string "kind:number" or "index"', ("argument", "result"),
                "what an argument or result of @microbatch, @update, @prologue or a stage function stands for", _is_binding),
    Declaration("V4", DIM, "i64", ("argument", "result", "op"), "the dimension along which microbatches are cut or stacked", is_i64),
    Declaration("V5", COMBINE, '"add" | "max" | "min"', ("argument", "result", "op"),
                "how the parts of a sum from several microbatches are combined", _one_of(("add", "max", "min"))),
    Declaration("V6", LEVEL, "string", ("module",), "the level of the IR (see docs/ir.md)", _one_of(LEVELS)),
    Declaration("V7", MICROBATCHES, "i64", ("module",), "number of microbatches of one step", is_i64),
    Declaration("V8", CLUSTER, "dictionary", ("module",), "the cluster planned for (see docs/clusters.md)",
                lambda a: isinstance(a, ir.DictAttr)),
    Declaration("V9", STAGES, "array of {mesh, devices}", ("module",), "the mesh and the devices of each stage; stages may share a mesh",
                lambda a: isinstance(a, ir.ArrayAttr)),
    Declaration("V10", LAYER, "i64 from 0 to 4095", ("op", "argument"), "the layer of an op of @microbatch or @update",
                _below(2**12)),
    Declaration("V11", PHASE, '"prologue" | "forward" | "backward" | "weight" | "update"', ("op",),
                "the phase of an op or fragment (weight: fragments only, the part of backward that no other stage waits for)",
                _one_of(PHASES)),
    Declaration("V12", STAGE, "i64", ("op", "argument"), "the stage on whose submesh an op runs or an argument lives", is_i64),
    Declaration("V13", COST, "f64 or dictionary", ("module", "op"), "predicted seconds",
                lambda a: isinstance(a, (ir.FloatAttr, ir.DictAttr))),
    Declaration("V14", DIGEST, "string", ("module",), "SHA-256 of the plan's text without this attribute",
                lambda a: isinstance(a, ir.StringAttr)),
    Declaration("V15", ID, "i64", ("op",), "the number by which instructions name a call or transfer of @main", is_i64),
    Declaration("V16", DONATE, "i64", ("argument",), "the result of this stage function that takes over the argument's buffer", is_i64),
    Declaration("V17", STATISTICS, '"batch" | "microbatch"', ("module",),
                "whether sums that feed per-example work (batch norm) are over the batch or over each microbatch",
                _one_of(("batch", "microbatch"))),
    Declaration("V18", NONNEGATIVE, "unit", ("argument",), "the program takes a root or logarithm of this argument: draw no negative values",
                lambda a: isinstance(a, ir.UnitAttr)),
    Declaration("V19", REMAT, "array of i64", ("module",), "the layers whose forward ops run again in the backward pass",
                lambda a: isinstance(a, ir.DenseI64ArrayAttr)),
    Declaration("V20", REPEATS, "i64", ("op",), "how many more equal layers of the program this op of one stands for, while a plan is searched",
                is_i64),
    Declaration("V21", CONSIDERED, "array of {microbatches, schedule, remat, …}", ("module",),
                "the plans that were compared: their predicted seconds and bytes per device, or why they cannot be",
                lambda a: isinstance(a, ir.ArrayAttr)),
    Declaration("V22", LAYOUT, "{layers, groups, cuts, shared}", ("module",), "how often, while a plan is searched, layers stand for more of the program, and where it is cut",
                lambda a: isinstance(a, ir.DictAttr)),
    Declaration("V23", ROUTE, "i64", ("op",), "the number of the route that a transfer takes (an alpa.route op of the module)", is_i64),
    Declaration("V24", BYTES, "i64", ("op",), "what a transfer sends from mesh to mesh, in bytes", is_i64),
    Declaration("V25", MESHES, "string", ("module",), "while a plan is searched, the logical meshes that were of use, such as 8,2x4",
                lambda a: isinstance(a, ir.StringAttr)),
    Declaration("V26", FLOOR, "array of f64", ("module",),
                "while a plan is searched, the seconds of a step if memory were no object, and if besides stages waited for no transfer",
                lambda a: isinstance(a, ir.DenseF64ArrayAttr)),
    Declaration("V27", AHEAD, "array of f64", ("module",),
                "while a plan is searched and memory is short, about the seconds of a step with 2, 4, 8 … times as many microbatches",
                lambda a: isinstance(a, ir.DenseF64ArrayAttr)),
    Declaration("V28", PART, "array of i64: number, count, dimension", ("argument", "result"),
                "which part of an argument or result of the program this one of @main is: their parts stand side by side", _is_part),
    Declaration("V29", TRIPS, "i64", ("op",), "how many rounds the loop has that this op is a mark of (alpa.loop_*)", is_i64),
    Declaration("V30", REVERSED, "unit", ("op",), "the rounds of the loop go through this stack from its end",
                lambda a: isinstance(a, ir.UnitAttr)),
)  # fmt: skip
BY_NAME = {d.name: d for d in DECLARATIONS}


def verify(module: ir.Module) -> None:
    """Check every `alpa.*` attribute of a module against its declaration; raises `CompileError`."""
    _check(module.operation, "module")
    for function in functions(module).values():
        for entry in argument_attributes(function):
            _check_entries(entry, "argument", function.location)
        for entry in result_attributes(function):
            _check_entries(entry, "result", function.location)
        for op in walk(function):
            _check(op, "op")


def walk(root: ir.Operation) -> Iterator[ir.Operation]:
    """All ops below `root` in program order, outer before inner."""
    for region in root.regions:
        for block in region.blocks:
            for op in block.operations:
                yield op.operation
                if len(op.regions):
                    yield from walk(op.operation)


def outermost(op: ir.Operation, block: ir.Block) -> ir.Operation:
    """The op of a block that holds an op of it, or of a region in it."""
    while op.block != block:
        op = op.parent.operation
    return op


def _check(op: ir.Operation, place: str) -> None:
    # By name: some attributes (constants of complex numbers) cannot be cast to Python's.
    attributes = op.attributes
    entries = {name: attributes[name] for name in attributes if name.startswith("alpa.")}
    _check_entries(entries, place, op.location)


def _check_entries(entries: dict[str, ir.Attribute], place: str, location: ir.Location) -> None:
    for name, attribute in entries.items():
        if not name.startswith("alpa."):
            continue
        declared = BY_NAME.get(name)
        if declared is None:
            raise CompileError(f"unknown attribute {name}", location)
        if place not in declared.places:
            raise CompileError(
                f"{name} may stand on {' or '.join(declared.places)}, not on a {place} ({declared.rule})",
                location,
            )
        if not declared.accepts(attribute):
            raise CompileError(f"{name} must be {declared.kind}, got {attribute} ({declared.rule})", location)


def i64(value: int, context: ir.Context) -> ir.Attribute:
    """`value : i64`."""
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(64, context), value)


def string(value: str, context: ir.Context) -> ir.Attribute:
    """`"value"`."""
    return ir.StringAttr.get(value, context)


def get_int(op: ir.Operation | ir.OpView, name: str) -> int | None:
    """An integer attribute of an op, or None where it has none."""
    op = op.operation
    found = op.attributes.get(name)
    return None if found is None else int(ir.IntegerAttr(found).value)


def get_string(op: ir.Operation | ir.OpView, name: str) -> str | None:
    """A string attribute of an op, or None where it has none."""
    op = op.operation
    found = op.attributes.get(name)
    return None if found is None else str(ir.StringAttr(found).value)


def set_int(op: ir.Operation | ir.OpView, name: str, value: int) -> None:
    """Write an `i64` attribute on an op."""
    op.operation.attributes[name] = i64(value, op.operation.context)


def set_string(op: ir.Operation | ir.OpView, name: str, value: str) -> None:
    """Write a string attribute on an op."""
    op.operation.attributes[name] = string(value, op.operation.context)


@dataclass(frozen=True)
class Binding:
    """What an argument or result of a derived function stands for: `kind:number`."""

    kind: str
    number: int = -1

    def __str__(self) -> str:
        return self.kind if self.number < 0 else f"{self.kind}:{self.number}"

    @staticmethod
    def parse(text: str) -> Binding:
        """The inverse of `str`."""
        kind, _, number = text.partition(":")
        return Binding(kind, int(number) if number else -1)


def bindings(entries: list[dict[str, ir.Attribute]]) -> list[Binding]:
    """The bindings of all arguments (or results) of a derived function; KeyError where one is missing."""
    return [Binding.parse(ir.StringAttr(e[BINDING]).value) for e in entries]
