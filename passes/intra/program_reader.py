"""Reading a module of level 1 to 4 into a `Program`: the IR is walked once, equal ops and types become one object."""

from __future__ import annotations

import io
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, op_id
from alpa_mlir.dialect.factors import OpFactors, read_factors, shape_of
from alpa_mlir.dialect.rounds import find_rounds, trips_by_op
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes
from alpa_mlir.passes.costs.fusion import UNMOVED, FusedOp, FusedOps, Traffic, phased_traffic
from alpa_mlir.passes.intra.program import (
    DERIVED,
    Feed,
    OpKind,
    OpRecord,
    Program,
    Slot,
    Source,
    TensorType,
    is_source_of,
    itemsize,
)
from alpa_mlir.passes.intra.repeated import repeated_ops
from alpa_mlir.passes.memo import digest, noted

KEPT = 2
"""How many programs are kept as they were read, the last ones: settings share a program, and plans of the same stages
with less and less memory do."""


def read_program(
    module: ir.Module, microbatches: int = 0, whole_sums: bool = False, pinned: frozenset[int] = frozenset()
) -> Program:
    """Read a module of level 1 (`@main`) or 2 to 4 (`@prologue`, `@microbatch`, `@update`).

    `microbatches` overrides `alpa.microbatches` (0: what the module says, else 1). With `whole_sums` no sum over
    microbatches may be kept as addends. `pinned` results of @main that replace no state get slots of their own.
    """
    found = functions(module)
    names = tuple(n for n in DERIVED if n in found) if "microbatch" in found else ("main",)
    bodies = [[view.operation for view in found[name].regions[0].blocks[0].operations] for name in names]
    reading = _reading(module, found, names, whole_sums, pinned)
    ops = [op for body in bodies for op in body[:-1]]
    attributes = module.operation.attributes
    stored = int(ir.IntegerAttr(attributes[alpa.MICROBATCHES]).value) if alpa.MICROBATCHES in attributes else 1
    records = tuple([OpRecord(*record, op) for record, op in zip(reading.ops, ops, strict=True)])
    return Program(
        records,
        dict(reading.slots),
        reading.feeds,
        microbatches or stored,
        names,
        reading.returned,
        reading.results,
        dict(reading.replaced),
        repeated_ops(records, reading.slots),
        module,
    )


class _Reading(NamedTuple):
    """All of a program but the ops themselves: records of ops without them."""

    ops: tuple[tuple[int, str, str, int, int, OpKind, tuple[Source, ...], int], ...]
    slots: Mapping[str, Slot]
    feeds: tuple[Feed, ...]
    returned: tuple[str, ...]
    results: tuple[Source, ...]
    replaced: Mapping[int, int]


def _reading(
    module: ir.Module,
    found: Mapping[str, ir.Operation],
    names: Sequence[str],
    whole_sums: bool,
    pinned: frozenset[int],
) -> _Reading:
    """A module read, or what one was read as that this planning read not long ago and that says the same."""
    text = io.BytesIO()
    module.operation.write_bytecode(text)
    key, known = digest(text.getvalue(), whole_sums, sorted(pinned)), noted("programs read")
    for other, reading in known:
        if other == key:
            return cast(_Reading, reading)
    reader = _Reader(whole_sums, pinned, _batch_dims(found["main"]) if "main" in found else {})
    replaced = _replacements(found["main"]) if "main" in found else {}
    for name in names:
        reader.read(name, found[name], replaced)
    lists = tuple(reader.feeds), tuple(reader.returned), tuple(reader.results)
    made = _Reading(tuple(reader.ops), reader.slots, *lists, replaced)
    known[:] = [(key, made), *known[: KEPT - 1]]
    return made


def _replacements(main: ir.Operation) -> dict[int, int]:
    """Result number of @main -> number of the state argument that it replaces."""
    entries = argument_attributes(main)
    return {int(ir.IntegerAttr(e[alpa.UPDATES]).value): i for i, e in enumerate(entries) if alpa.UPDATES in e}


def _batch_dims(main: ir.Operation) -> dict[int, int]:
    """Number of each batch argument of @main -> the dimension that counts examples."""
    entries = argument_attributes(main)
    batch = [i for i, e in enumerate(entries) if alpa.ROLE in e and ir.StringAttr(e[alpa.ROLE]).value == "batch"]
    return {i: int(ir.IntegerAttr(entries[i][alpa.DIM]).value) if alpa.DIM in entries[i] else 0 for i in batch}


class _Reader:
    def __init__(self, whole_sums: bool, pinned: frozenset[int], batch_dims: dict[int, int]) -> None:
        self.whole_sums = whole_sums
        self.pinned = pinned
        self.batch_dims = batch_dims
        self.ops: list[tuple[int, str, str, int, int, OpKind, tuple[Source, ...], int]] = []
        self.slots: dict[str, Slot] = {}
        self.feeds: list[Feed] = []
        self.returned: list[str] = []
        self.results: list[Source] = []
        self.loops = 0
        """How many loops that stand as one round were read."""
        self.types: dict[ir.Type, TensorType] = {}
        self.kinds: dict[tuple[object, ...], OpKind] = {}
        self.read_kinds: dict[tuple[object, ...], OpKind] = {}
        """By identity of the factors and types, within one function."""

    def read(self, name: str, function: ir.Operation, replaced: dict[int, int]) -> None:
        values: dict[ir.Value, Source] = {}
        block = function.regions[0].blocks[0]
        self._arguments(name, function, block, values)
        sources = list(values.values())
        self.read_kinds = {}
        numbers, entries = self._body(function, block)
        for entry in entries:
            self._op(name, entry, sources)
        terminator = list(block.operations)[-1].operation
        values = {v: sources[numbers[v]] for v in terminator.operands}
        self._results(name, function, terminator, values, replaced)

    def _body(self, function: ir.Operation, block: ir.Block) -> tuple[dict[ir.Value, int], list[_Entry]]:
        """All values numbered, and the ops with their factors and what they move when they are fused."""
        factors = read_factors(function)
        numbers = {value: n for n, value in enumerate(block.arguments)}
        types = [self.type_of(v) for v in numbers]
        found: list[_Entry] = []
        make, fused = FusedOps().make, list[FusedOp]()
        ops = [view.operation for view in block.operations]
        for op in ops[:-1]:
            operands, results = list(op.operands), list(op.results)
            captured = len(operands)
            operands += _captures(op, numbers)
            read = tuple([numbers[v] for v in operands])
            made = tuple(range(len(types), len(types) + len(results)))
            given = tuple([self.type_of(v) for v in results])
            numbers.update(zip(results, made, strict=True))
            types += given
            entry = _Entry(
                op, factors.get(op_id(op)) or _NOTHING, captured, read, tuple([types[n] for n in read]), given
            )
            free = is_source_of(entry.factors, entry.taken, given)
            fused.append(make(op, entry.factors, read, made, free))
            found.append(entry)
        at_hand = {n for n, e in enumerate(argument_attributes(function)) if _binding(e, n).startswith("arg")}
        leaving = [numbers[v] for v in ops[-1].operands]
        phases = [alpa.get_string(op, alpa.PHASE) or "" for op in ops[:-1]]
        traffic = phased_traffic(fused, phases, [t.bytes for t in types], leaving, at_hand)
        for entry, phase, moved in zip(found, phases, traffic, strict=True):
            entry.phase, entry.traffic = phase, moved
        loops = find_rounds(ops[:-1])
        for entry, trips in zip(found, trips_by_op(ops[:-1], loops), strict=True):
            entry.trips = trips
        for loop in loops:
            for n in loop.ops:
                found[n].loop = self.loops
            self.loops += 1
        return numbers, found

    def _arguments(self, name: str, function: ir.Operation, block: ir.Block, values: dict[ir.Value, Source]) -> None:
        for i, (value, entry) in enumerate(zip(block.arguments, argument_attributes(function), strict=True)):
            slot = _binding(entry, i)
            stage = int(ir.IntegerAttr(entry[alpa.STAGE]).value) if alpa.STAGE in entry else -1
            values[value] = Source(-1, 0, slot)
            binding = alpa.Binding.parse(slot)
            dim = self.batch_dims.get(binding.number, -1) if binding.kind in ("arg", "batch") else -1
            known = self.slots.setdefault(slot, Slot(slot, self.type_of(value), stage, dim))
            if known.stage < stage:
                self.slots[slot] = replace(known, stage=stage)

    def _results(
        self,
        name: str,
        function: ir.Operation,
        op: ir.Operation,
        values: dict[ir.Value, Source],
        replaced: dict[int, int],
    ) -> None:
        for i, (value, entry) in enumerate(zip(op.operands, result_attributes(function), strict=True)):
            text = ir.StringAttr(entry[alpa.BINDING]).value if alpa.BINDING in entry else f"out:{i}"
            binding = alpa.Binding.parse(text)
            if binding.kind == "out":
                self.returned += [values[value].slot] if values[value].slot else []
                if binding.number not in replaced and binding.number not in self.pinned:
                    self.results.append(values[value])
                    continue
                if binding.number in replaced:
                    text = f"arg:{replaced[binding.number]}"
            self.feeds.append(Feed(text, i, values[value], name))
            if text not in self.slots:
                combine = ir.StringAttr(entry[alpa.COMBINE]).value if alpa.COMBINE in entry else "add"
                additive = binding.kind == "sum" and combine == "add" and not self.whole_sums
                self.slots[text] = Slot(text, self.type_of(value), -1, additive=additive)

    def _op(self, name: str, entry: _Entry, sources: list[Source]) -> None:
        number, op = len(self.ops), entry.op
        read = tuple([sources[n] for n in entry.read])
        layer, stage = _number(op, alpa.LAYER), _number(op, alpa.STAGE)
        self.ops.append((number, name, entry.phase, layer, stage, self._kind(entry), read, entry.loop))
        sources += [Source(number, i) for i in range(len(entry.given))]

    def _kind(self, entry: _Entry) -> OpKind:
        # Within a function, equal factors are one object, as equal types are: comparing identities is enough.
        types = (*map(id, entry.taken), None, *map(id, entry.given))
        key = (id(entry.factors), entry.captured, *types, entry.traffic, entry.trips)
        found = self.read_kinds.get(key)
        if found is None:
            whole = (entry.factors, entry.captured, entry.taken, entry.given, entry.traffic, entry.trips)
            found = self.read_kinds[key] = self.kinds.setdefault(whole, OpKind(*whole))
        return found

    def type_of(self, value: ir.Value) -> TensorType:
        """The type of a value, read once per distinct type."""
        kind = value.type
        found = self.types.get(kind)
        if found is None:
            found = self.types[kind] = _tensor_type(value)
        return found


_NOTHING = OpFactors((), (), (), ())
"""The factors of an op without results."""


@dataclass
class _Entry:
    """An op of a function: the values that it reads (with what its regions use) by number, types read and made."""

    op: ir.Operation
    factors: OpFactors
    captured: int
    read: tuple[int, ...]
    taken: tuple[TensorType, ...]
    given: tuple[TensorType, ...]
    phase: str = ""
    traffic: Traffic = UNMOVED
    trips: int = 1
    loop: int = -1


def _binding(entry: Mapping[str, ir.Attribute], number: int) -> str:
    """What an argument of a function stands for."""
    return str(ir.StringAttr(entry[alpa.BINDING]).value) if alpa.BINDING in entry else f"arg:{number}"


def _number(op: ir.Operation, name: str) -> int:
    found = alpa.get_int(op, name)
    return -1 if found is None else found


def _tensor_type(value: ir.Value) -> TensorType:
    shape = shape_of(value)
    if shape is None:
        return TensorType((), str(value.type), 0.0)
    dtype = str(ir.RankedTensorType(value.type).element_type)
    return TensorType(shape, dtype, itemsize(dtype))


def _captures(op: ir.Operation, values: Container[ir.Value]) -> list[ir.Value]:
    """Values of the function body that the op's regions use, in order of first use."""
    if not len(op.regions):
        return []
    found: dict[ir.Value, None] = {}
    for inner in alpa.walk(op):
        for value in inner.operands:
            if value in values:
                found[value] = None
    return list(found)
