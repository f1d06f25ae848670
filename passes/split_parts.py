"""The three functions of a sharded module, read once: what is live, what is cheap, what crosses submeshes.

A *part* is one of @prologue, @microbatch, @update.  Its top-level ops fall into

* *transfers*: an `sdy.reshard` whose operand lives on another mesh (docs/ir.md, level 5);
* *recomputable* ops: constants, iotas, and what is made from those alone by cheap ops, which only move or
  map elements (every factor is `pass`): repeated in each fragment rather than kept or sent;
* all others, which belong to exactly one fragment.

Among the last, a cheap op is *repeated* in other fragments of its submesh where that keeps fewer bytes than
keeping its result (the broadcast of a normalisation's scale, the cast of a weight): its *leaves*, what must
be kept to repeat it, are smaller than the result. Arguments of the program are there anyway and count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding, bindings
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.factors import OpFactors, read_factors
from alpa_mlir.dialect.rounds import MARKS, leaves_by_end
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    op_shardings,
    read_sharding,
    result_attributes,
    sharding_attribute,
)
from alpa_mlir.dialect.staged import MeshTensor, element_bytes
from alpa_mlir.passes.costs.compute import is_fusable

RESHARD = "sdy.reshard"


@dataclass
class Part:
    """One function: its values' types, and per live op its kind. Ops are known by their position."""

    name: str
    function: ir.Operation
    ops: list[ir.Operation]
    arguments: dict[ir.Value, int]
    argument_entries: list[dict[str, ir.Attribute]]
    argument_bindings: list[Binding]
    returns: list[ir.Value]
    result_entries: list[dict[str, ir.Attribute]]
    result_bindings: list[Binding]
    types: dict[ir.Value, MeshTensor]
    position: dict[int, int]
    maker: dict[ir.Value, int]
    """The position of the op that makes each value that is no argument."""
    terminator: ir.Operation
    live: list[bool] = field(default_factory=list)
    transfer: list[bool] = field(default_factory=list)
    recomputable: list[bool] = field(default_factory=list)
    leaves: dict[ir.Value, tuple[ir.Value, ...]] = field(default_factory=dict)
    _inputs: dict[int, list[ir.Value]] = field(default_factory=dict)

    @cached_property
    def argument_of(self) -> dict[Binding, int]:
        """The first argument that stands for each binding."""
        return {b: i for i, b in reversed(list(enumerate(self.argument_bindings)))}

    @cached_property
    def result_of(self) -> dict[Binding, int]:
        """The first result that stands for each binding."""
        return {b: i for i, b in reversed(list(enumerate(self.result_bindings)))}

    def producer(self, value: ir.Value) -> int | None:
        """The position of the op that makes a value; None for an argument."""
        return self.maker.get(value)

    def binding(self, value: ir.Value) -> Binding:
        """What an argument stands for."""
        return self.argument_bindings[self.arguments[value]]

    def returned(self, binding: Binding) -> ir.Value:
        """The value returned under a binding; CompileError where none is."""
        if binding not in self.result_of:
            raise CompileError(f"@{self.name} returns no {binding}", self.function.location)
        return self.returns[self.result_of[binding]]

    def mesh(self, position: int) -> str:
        """The mesh of an op's results."""
        return self.types[self.ops[position].results[0]].mesh

    def stage(self, position: int) -> int:
        """The `alpa.stage` of an op; CompileError where it has none."""
        stage = alpa.get_int(self.ops[position], alpa.STAGE)
        if stage is None:
            raise CompileError(
                f"{self.ops[position].name} has no alpa.stage: run alpa-stages first", self.location(position)
            )
        return stage

    def phase(self, position: int) -> str:
        """The `alpa.phase` of an op; CompileError where it has none."""
        phase = alpa.get_string(self.ops[position], alpa.PHASE)
        if phase is None:
            raise CompileError(
                f"{self.ops[position].name} has no alpa.phase: run alpa-layers first", self.location(position)
            )
        return phase

    def location(self, position: int) -> ir.Location:
        """The location of an op."""
        return self.ops[position].location

    def inputs(self, position: int) -> list[ir.Value]:
        """The values an op reads, those captured by its regions included, each once."""
        if position not in self._inputs:
            self._inputs[position] = list(dict.fromkeys(self._reads(self.ops[position])))
        return self._inputs[position]

    def _reads(self, op: ir.Operation) -> Iterator[ir.Value]:
        for value in op.operands:
            if value in self.types:
                yield value
        if len(op.regions):
            for inner in alpa.walk(op):
                for value in inner.operands:
                    if value in self.types:
                        yield value


def read_part(function: ir.Operation) -> Part:
    """Read a function of level 5; CompileError where an annotation is missing."""
    block = function.regions[0].blocks[0]
    ops = [view.operation for view in block.operations]
    entries, results = argument_attributes(function), result_attributes(function)
    name = ir.StringAttr(function.attributes["sym_name"]).value
    for entry in (*entries, *results):
        if alpa.BINDING not in entry or SHARDING not in entry:
            raise CompileError(f"an argument or result of @{name} has no alpa.binding or sharding", function.location)
    types: dict[ir.Value, MeshTensor] = {}
    for value, entry in zip(block.arguments, entries, strict=True):
        types[value] = MeshTensor.of(value.type, *read_sharding(entry[SHARDING]))
    for op in ops[:-1]:
        types.update(_result_types(op))
    return Part(
        name,
        function,
        ops[:-1],
        {v: i for i, v in enumerate(block.arguments)},
        entries,
        bindings(entries),
        list(ops[-1].operands),
        results,
        bindings(results),
        types,
        {op_id(op): i for i, op in enumerate(ops[:-1])},
        {value: i for i, op in enumerate(ops[:-1]) for value in op.results},
        ops[-1],
    )


def _result_types(op: ir.Operation) -> Iterator[tuple[ir.Value, MeshTensor]]:
    found = op_shardings(op)
    if found is None:
        raise CompileError(f"{op.name} has no sharding: run alpa-shard first", op.location)
    for value, sharding in zip(op.results, found[1], strict=True):
        yield value, MeshTensor.of(value.type, found[0], sharding)


def reshard_return(part: Part, number: int, wanted: MeshTensor, stage: int, phase: str) -> None:
    """Give a returned value the type its reader wants, by an `sdy.reshard` before the return."""
    value = part.returns[number]
    context = part.function.context
    op = make_reshard(value, wanted, ir.InsertionPoint(part.terminator))
    alpa.set_int(op, alpa.STAGE, stage)
    alpa.set_string(op, alpa.PHASE, phase)
    part.terminator.operands[number] = op.results[0]
    part.result_entries[number][SHARDING] = sharding_attribute(wanted.sharding, wanted.mesh, context)
    part.returns[number] = op.results[0]
    part.types[op.results[0]] = wanted
    part.position[op_id(op)] = part.maker[op.results[0]] = len(part.ops)
    part.ops.append(op)


def make_reshard(value: ir.Value, wanted: MeshTensor, ip: ir.InsertionPoint) -> ir.Operation:
    """An `sdy.reshard` of a value to the mesh and sharding of `wanted`."""
    sharding = sharding_attribute(wanted.sharding, wanted.mesh, value.type.context)
    location = ir.Location.unknown(value.type.context) if isinstance(value.owner, ir.Block) else value.owner.location
    return ir.Operation.create(
        RESHARD, results=[value.type], operands=[value], attributes={"sharding": sharding}, loc=location, ip=ip
    )


def classify(part: Part, wanted: Iterable[int]) -> None:
    """Fill `transfer`, `recomputable` and `live`, where only the results numbered `wanted` are needed."""
    factors = read_factors(part.function)
    part.transfer = [_crosses(part, i) for i in range(len(part.ops))]
    for i, op in enumerate(part.ops):
        cheap = _is_cheap(op, factors)
        part.recomputable.append(_is_recomputable(part, i, cheap))
        if cheap and not part.recomputable[i]:
            _add_leaves(part, op)
    needed = {part.returns[k] for k in wanted}
    part.live = [False] * len(part.ops)
    loops = leaves_by_end(part.ops)
    before = -1
    while before < len(needed):
        before = len(needed)
        for i in reversed(range(len(part.ops))):
            if not part.live[i] and any(r in needed for r in part.ops[i].results):
                part.live[i] = True
                needed.update(part.inputs(i))
                needed.update(part.ops[n].results[0] for n in loops.get(i, ()))
        if not loops:
            break


def live_bindings(part: Part) -> list[Binding]:
    """The bindings of arguments that live ops or the return read, in order."""
    read = set(part.returns) if part.name == "update" else set()
    for i, live in enumerate(part.live):
        if live:
            read.update(part.inputs(i))
    return [part.binding(v) for v in part.arguments if v in read]


def _crosses(part: Part, position: int) -> bool:
    op = part.ops[position]
    if op.name != RESHARD:
        meshes = {part.types[v].mesh for v in part.inputs(position)} - {part.mesh(position)}
        if meshes:
            raise CompileError(
                f"{op.name} on {part.mesh(position)} reads a value of {min(meshes)} without an sdy.reshard",
                op.location,
            )
        return False
    return part.types[op.operands[0]].mesh != part.mesh(position)


def _is_cheap(op: ir.Operation, factors: Mapping[int, OpFactors]) -> bool:
    """Whether an op with one result only moves or maps elements."""
    if len(op.regions) or len(op.results) != 1 or op.name == RESHARD or op.name in MARKS:
        return False
    known = factors[op_id(op)]
    return not known.reason and is_fusable(known)


def _is_recomputable(part: Part, position: int, cheap: bool) -> bool:
    op = part.ops[position]
    sources = [part.producer(v) for v in op.operands]
    if any(s is None or not part.recomputable[s] for s in sources):
        return False
    alone = len(op.results) == 1 and not len(op.regions)
    return alone and (cheap or op.name == RESHARD or not sources)


def _add_leaves(part: Part, op: ir.Operation) -> None:
    leaves: dict[ir.Value, None] = {}
    for value in op.operands:
        leaves.update(dict.fromkeys(part.leaves.get(value, (value,))))
    kept = [v for v in leaves if not _is_at_hand(part, v)]
    if sum(map(_size, kept)) < _size(op.results[0]):
        part.leaves[op.results[0]] = tuple(leaves)


def _is_at_hand(part: Part, value: ir.Value) -> bool:
    source = part.producer(value)
    return part.binding(value).kind == "arg" if source is None else part.recomputable[source]


def _size(value: ir.Value) -> float:
    """Bytes of a whole tensor."""
    return _type_size(value.type)


@lru_cache(maxsize=65536)
def _type_size(kind: ir.Type) -> float:
    kind = ir.RankedTensorType(kind)
    return element_bytes(str(kind.element_type)) * prod(int(n) for n in kind.shape)


def replicated(kind: MeshTensor, mesh: str) -> MeshTensor:
    """The same tensor, whole on every device of another mesh."""
    return MeshTensor(mesh, kind.shape, kind.element, Sharding.replicated(len(kind.shape)))
