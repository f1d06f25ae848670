"""A module read once into plain values: ops with their factors, numbered tensors, the roles of arguments.

Everything after this works on small integers and shapes; the IR is touched again only when the result
is written. Arguments that stand for the same thing in several functions (same `alpa.binding`) are one
*slot*: `arg:i`, `batch:i`, `sum:k`, … . A result of a function that another function takes (`sum:k`)
or that replaces a state argument (`out:i` with `alpa.updates = i`) *feeds* that slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.factors import PASS, OpFactors
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.costs.compute import compute_kind
from alpa_mlir.passes.costs.fusion import Traffic

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
    trips: int = 1
    """How often it runs whenever its function does: in a loop that stands as one round more than once."""

    @cached_property
    def is_source(self) -> bool:
        """Constants, iota, and what is spread out of scalars: any part can be made anywhere at no cost."""
        return is_source_of(self.factors, self.operand_types, self.result_types)

    @cached_property
    def compute(self) -> str:
        """Which rule prices the op (`compute_kind`)."""
        return compute_kind(self.factors)


def is_source_of(factors: OpFactors, operands: Sequence[TensorType], results: Sequence[TensorType]) -> bool:
    """Whether ops of these types are sources (`OpKind.is_source`)."""
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
    loop: int
    """The number of the loop that it is in one round of (`dialect/rounds.py`), or -1."""
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
    repeated: frozenset[int]
    """The ops that are repeated in other phases that need their results (`repeated.py`)."""
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
    def users(self) -> list[list[int]]:
        """By op: the ops that read it."""
        found: list[list[int]] = [[] for _ in self.ops]
        for op in self.ops:
            for source in op.operands:
                if source.op >= 0:
                    found[source.op].append(op.number)
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

    @cached_property
    def loops(self) -> tuple[frozenset[int], ...]:
        """The ops of each loop that stands as one round."""
        found: dict[int, set[int]] = {}
        for op in self.ops:
            if op.loop >= 0:
                found.setdefault(op.loop, set()).add(op.number)
        return tuple(frozenset(ops) for ops in found.values())

    def kind_counts(self, times: Sequence[int]) -> dict[OpKind, int]:
        """How often ops of each kind run in a step, if those of layer k do `times[k]` times what the program says."""
        found: dict[OpKind, int] = {}
        for op in self.ops:
            often = op.kind.trips * self.weight(op.function) * times[max(0, op.layer)]
            found[op.kind] = found.get(op.kind, 0) + often
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


def itemsize(dtype: str) -> float:
    """Bytes of one element (booleans are stored as bytes, four-bit types as half bytes)."""
    if dtype.startswith("complex<"):
        return 2 * itemsize(dtype[len("complex<") : -1])
    digits = "".join(c if c.isdigit() else " " for c in dtype).split()
    bits = int(digits[0]) if digits else 32
    return 1.0 if bits == 1 else bits / 8
