"""A module read once into plain values: ops with their factors, numbered tensors, the roles of arguments.

Everything after this works on small integers and shapes; the IR is touched again only when the result
is written. Arguments that stand for the same thing in several functions (same `alpa.binding`) are one
*slot*: `arg:i`, `batch:i`, `sum:k`, … . A result of a function that another function takes (`sum:k`)
or that replaces a state argument (`out:i` with `alpa.updates = i`) *feeds* that slot.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, op_id
from alpa_mlir.dialect.factors import PASS, OpFactors, read_factors, shape_of
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes
from alpa_mlir.passes.costs.compute import compute_kind
from alpa_mlir.passes.costs.fusion import UNMOVED, FusedOp, FusedOps, Traffic, phased_traffic

DERIVED = ("prologue", "microbatch", "update")
PERSISTENT = ("arg", "batch", "prologue", "sum", "stack")


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a value; `itemsize` is 0 for what is not a tensor."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: float

    @cached_property
    def bytes(self) -> float:
        """Bytes of the whole tensor."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Slot:
    """What an argument stands for: binding text, its type, the stage that keeps it."""

    name: str
    type: TensorType
    stage: int
    batch_dim: int = -1
    """The dimension that counts examples, of a batch argument."""
    additive: bool = False
    """A sum over the microbatches (`sum:k` combined by addition)."""


@dataclass(frozen=True)
class Source:
    """Where a value comes from: result `index` of op `op`, or the slot `slot` (then `op` is -1)."""

    op: int
    index: int
    slot: str = ""


@dataclass(frozen=True, eq=False)
class OpKind:
    """What equal ops of a program share, one object for all of them: it is compared and hashed by identity.

    Operands from `captured` on are values that the op's regions use.
    """

    factors: OpFactors
    captured: int
    operand_types: tuple[TensorType, ...]
    result_types: tuple[TensorType, ...]
    traffic: Traffic
    """What the op moves through memory, among those that it is fused with."""

    @cached_property
    def is_source(self) -> bool:
        """Constants, iota, and what is spread out of scalars: any part can be made anywhere at no cost."""
        return _is_source(self.factors, self.operand_types, self.result_types)

    @cached_property
    def compute(self) -> str:
        """Which rule prices the op (`compute_kind`)."""
        return compute_kind(self.factors)


def _is_source(factors: OpFactors, operands: Sequence[TensorType], results: Sequence[TensorType]) -> bool:
    if any(t.shape for t in operands) or not any(t.shape for t in results):
        return not operands and all(k == PASS for k in factors.kinds)
    return all(k == PASS for k in factors.kinds)


@dataclass(frozen=True)
class OpRecord:
    """One op of a function body. `operands` include values captured by its regions (from `kind.captured` on)."""

    number: int
    function: str
    phase: str
    layer: int
    stage: int
    kind: OpKind
    operands: tuple[Source, ...]
    op: ir.Operation = field(compare=False, repr=False)

    @property
    def factors(self) -> OpFactors:
        """What the op means for distribution."""
        return self.kind.factors

    @property
    def captured(self) -> int:
        """The number of operands of the op itself."""
        return self.kind.captured

    @property
    def operand_types(self) -> tuple[TensorType, ...]:
        """Types of the operands, captured values included."""
        return self.kind.operand_types

    @property
    def result_types(self) -> tuple[TensorType, ...]:
        """Types of the results."""
        return self.kind.result_types

    @property
    def is_source(self) -> bool:
        """See `OpKind.is_source`."""
        return self.kind.is_source


@dataclass(frozen=True)
class Feed:
    """Result number `result` of a function that flows into a slot (`out:i` into the state slot it replaces)."""

    slot: str
    result: int
    source: Source
    function: str


@dataclass(frozen=True)
class Program:
    """All ops of the functions to be sharded, in program order, with slots and feeds."""

    ops: tuple[OpRecord, ...]
    slots: dict[str, Slot]
    feeds: tuple[Feed, ...]
    microbatches: int
    functions: tuple[str, ...]
    returned: tuple[str, ...]
    """Slots that leave the step as they are."""
    results: tuple[Source, ...]
    """What functions return that no slot keeps."""
    replaced: dict[int, int]
    """Result of @main -> the state argument that it replaces."""
    module: ir.Module = field(compare=False, repr=False)
    """Kept alive for the ops of the records."""

    @property
    def staged(self) -> bool:
        """Whether ops say their stage (level 4)."""
        return any(op.stage >= 0 for op in self.ops)

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Slot -> the ops that read it."""
        found: dict[str, list[int]] = {name: [] for name in self.slots}
        for op in self.ops:
            for source in op.operands:
                if source.slot:
                    found[source.slot].append(op.number)
        return found

    @cached_property
    def home_ops(self) -> dict[str, int]:
        """Slot -> the op in whose stage it lives: that which makes its next value, else its user of the lowest layer.

        Slots that take over another slot's value, or a constant, are left out: they can live anywhere.
        """
        found: dict[str, int] = {}
        for op in self.ops:
            for source in op.operands:
                first = found.get(source.slot, op.number)
                if source.slot and op.layer <= self.ops[first].layer:
                    found[source.slot] = first if op.layer == self.ops[first].layer else op.number
        for feed in self.feeds:
            anywhere = bool(feed.source.slot) or self.ops[feed.source.op].is_source
            found.pop(feed.slot, None) if anywhere else found.update({feed.slot: feed.source.op})
        return found

    def kind_counts(self, times: Sequence[int]) -> dict[OpKind, int]:
        """How often ops of each kind run in a step, if those of layer k do `times[k]` times what the program says."""
        found: dict[OpKind, int] = {}
        for op in self.ops:
            found[op.kind] = found.get(op.kind, 0) + self.weight(op.function) * times[max(0, op.layer)]
        return found

    def argument(self, slot: str) -> ir.BlockArgument | None:
        """The argument of @main that a slot stands for, or else the first argument of a function that stands for it."""
        known = functions(self.module)
        binding = alpa.Binding.parse(slot)
        if binding.kind in ("arg", "batch") and "main" in known:
            return known["main"].regions[0].blocks[0].arguments[binding.number]
        for name in self.functions:
            arguments = known[name].regions[0].blocks[0].arguments
            for i, (value, entry) in enumerate(zip(arguments, argument_attributes(known[name]), strict=True)):
                if slot == (ir.StringAttr(entry[alpa.BINDING]).value if alpa.BINDING in entry else f"arg:{i}"):
                    return value
        return None

    def weight(self, function: str) -> int:
        """How often a function runs in a step."""
        return self.microbatches if function == "microbatch" else 1


def read_program(
    module: ir.Module, microbatches: int = 0, whole_sums: bool = False, pinned: frozenset[int] = frozenset()
) -> Program:
    """Read a module of level 1 (`@main`) or 2 to 4 (`@prologue`, `@microbatch`, `@update`).

    `microbatches` overrides `alpa.microbatches` (0: what the module says, else 1). With `whole_sums` no sum over
    microbatches may be kept as addends. `pinned` results of @main that replace no state get slots of their own.
    """
    found = functions(module)
    names = tuple(n for n in DERIVED if n in found) if "microbatch" in found else ("main",)
    reader = _Reader(whole_sums, pinned, _batch_dims(found["main"]) if "main" in found else {})
    replaced = _replacements(found["main"]) if "main" in found else {}
    for name in names:
        reader.read(name, found[name], replaced)
    attributes = module.operation.attributes
    stored = int(ir.IntegerAttr(attributes[alpa.MICROBATCHES]).value) if alpa.MICROBATCHES in attributes else 1
    return Program(
        tuple(reader.ops),
        reader.slots,
        tuple(reader.feeds),
        microbatches or stored,
        names,
        tuple(reader.returned),
        tuple(reader.results),
        replaced,
        module,
    )


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
        self.ops: list[OpRecord] = []
        self.slots: dict[str, Slot] = {}
        self.feeds: list[Feed] = []
        self.returned: list[str] = []
        self.results: list[Source] = []
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
            free = _is_source(entry.factors, entry.taken, given)
            fused.append(make(op, entry.factors, read, made, free))
            found.append(entry)
        at_hand = {n for n, e in enumerate(argument_attributes(function)) if _binding(e, n).startswith("arg")}
        leaving = [numbers[v] for v in ops[-1].operands]
        phases = [alpa.get_string(op, alpa.PHASE) or "" for op in ops[:-1]]
        traffic = phased_traffic(fused, phases, [t.bytes for t in types], leaving, at_hand)
        for entry, phase, moved in zip(found, phases, traffic, strict=True):
            entry.phase, entry.traffic = phase, moved
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
        self.ops.append(OpRecord(number, name, entry.phase, layer, stage, self._kind(entry), read, op))
        sources += [Source(number, i) for i in range(len(entry.given))]

    def _kind(self, entry: _Entry) -> OpKind:
        # Within a function, equal factors are one object, as equal types are: comparing identities is enough.
        types = (*map(id, entry.taken), None, *map(id, entry.given))
        key = (id(entry.factors), entry.captured, *types, entry.traffic)
        found = self.read_kinds.get(key)
        if found is None:
            whole = (entry.factors, entry.captured, entry.taken, entry.given, entry.traffic)
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


def itemsize(dtype: str) -> float:
    """Bytes of one element (booleans are stored as bytes, four-bit types as half bytes)."""
    if dtype.startswith("complex<"):
        return 2 * itemsize(dtype[len("complex<") : -1])
    digits = "".join(c if c.isdigit() else " " for c in dtype).split()
    bits = int(digits[0]) if digits else 32
    return 1.0 if bits == 1 else bits / 8


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
