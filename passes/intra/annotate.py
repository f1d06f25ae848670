"""Write a chosen strategy per op into the IR: shardings on every value, explicit reshards in between.

Where an operand is wanted in another sharding than its value has, an `sdy.reshard` stands right before
the first op that wants it and serves all later ones of the same stage and phase (not of another phase:
a parameter gathered for the forward pass must not stay gathered until the backward pass); a copy that
products of both phases share (`copies.py`) stands before the first of them. Values from another stage
first pass a reshard onto this stage's mesh: that is the transfer. Constants, iota and what is spread out
of scalars are cloned once per wanted sharding: no communication at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_op_shardings,
    set_result_attributes,
    sharding_attribute,
)
from alpa_mlir.passes.intra.copies import Operand
from alpa_mlir.passes.intra.program import OpRecord, Program
from alpa_mlir.passes.intra.strategies import Strategy

_PHASES = {"prologue": "prologue", "microbatch": "forward", "update": "update"}

Place = tuple[int, Sharding]
"""(stage, sharding on that stage's mesh)."""


@dataclass(frozen=True)
class Choices:
    """What was decided: a strategy and a stage per op number, a place per slot, and how values arrive.

    arrivals: sharding by (stage, slot name or "", op number or -1, result number).
    ended: the whole sharding of a sum whose slot keeps addends.
    copies: per operand of a product the shardings of the copies it is made from, the one common to all phases first.
    """

    ops: Mapping[int, Strategy]
    stages: Mapping[int, int]
    slots: Mapping[str, Place]
    arrivals: Mapping[tuple[int, str, int, int], Sharding]
    ended: Mapping[str, Sharding]
    copies: Mapping[Operand, tuple[Sharding, ...]]
    meshes: tuple[str, ...]


@dataclass(frozen=True)
class _Where:
    """For whom a value is wanted: before which op, with which stage, layer and phase."""

    anchor: ir.Operation
    function: str
    stage: int
    layer: int
    phase: str


@dataclass
class Annotator:
    """Writes the choices into one module."""

    module: ir.Module
    program: Program
    choices: Choices
    _places: dict[ir.Value, Place] = field(default_factory=dict)
    _ready: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)
    _makers: dict[ir.Value, OpRecord] = field(default_factory=dict)
    _names: dict[ir.Value, tuple[str, int, int]] = field(default_factory=dict)

    def run(self) -> None:
        """Annotate all functions of the program."""
        found = functions(self.module)
        for name in self.program.functions:
            self._arguments(found[name])
            for record in self.program.ops:
                if record.function == name:
                    self._op(record)
            self._returns(name, found[name])
        self._drop_unused_sources()

    def _arguments(self, function: ir.Operation) -> None:
        entries = argument_attributes(function)
        for i, (value, entry) in enumerate(zip(function.regions[0].blocks[0].arguments, entries, strict=True)):
            slot = ir.StringAttr(entry[alpa.BINDING]).value if alpa.BINDING in entry else f"arg:{i}"
            self._places[value] = self.choices.slots[slot]
            self._names[value] = (slot, -1, 0)
            entry[SHARDING] = self._attribute(self.choices.slots[slot])
        set_argument_attributes(function, entries)

    def _attribute(self, place: Place) -> ir.Attribute:
        return sharding_attribute(place[1], self.choices.meshes[place[0]], self.module.context)

    def _op(self, record: OpRecord) -> None:
        op = record.op
        for k, value in enumerate(op.results):
            self._makers[value] = record
            self._names[value] = ("", record.number, k)
        if record.is_source:
            return
        strategy, stage = self.choices.ops[record.number], self.choices.stages[record.number]
        where = _Where(op, record.function, stage, record.layer, record.phase)
        for k in range(record.captured):
            value = self._copied(record.number, k, op.operands[k], where)
            op.operands[k] = self._obtain(value, strategy.operands[k], where)
        self._captured(record, strategy, where)
        set_op_shardings(op, strategy.results, self.choices.meshes[stage])
        for value, sharding in zip(op.results, strategy.results, strict=True):
            self._places[value] = (stage, sharding)

    def _copied(self, op: int, operand: int, value: ir.Value, where: _Where) -> ir.Value:
        """The copy of an operand that it shares with other products, if the plan gives it one."""
        for group, sharding in zip(("copy", where.phase), self.choices.copies.get((op, operand), ()), strict=False):
            if self._places[value][1] != sharding:
                value = self._reshard(value, sharding, where, group)
        return value

    def _captured(self, record: OpRecord, strategy: Strategy, where: _Where) -> None:
        """Values used inside the op's regions are replaced by what the strategy wants of them."""
        for k, source in enumerate(record.operands[record.captured :], start=record.captured):
            inner = [
                (op, i)
                for op in alpa.walk(record.op)
                for i, value in enumerate(op.operands)
                if self._names.get(value) == (source.slot, source.op, source.index)
            ]
            for op, i in inner:
                op.operands[i] = self._obtain(op.operands[i], strategy.operands[k], where)

    def _obtain(self, value: ir.Value, wanted: Sharding, where: _Where) -> ir.Value:
        """The value in the wanted sharding on the stage's mesh, made before the anchor if need be."""
        maker = self._makers.get(value)
        if maker is not None and maker.is_source:
            return self._clone(maker, value, wanted, where)
        stage, sharding = self._places[value]
        if sharding.partial and not wanted.partial:
            whole = self.choices.ended.get(self._names[value][0], wanted)
            value = self._reshard(value, whole, where, "ending")
            sharding = whole
        if stage != where.stage:
            value = self._arrive(value, where, wanted)
            sharding = self._places[value][1]
        if sharding == wanted:
            return value
        return self._reshard(value, wanted, where, where.phase)

    def _arrive(self, value: ir.Value, where: _Where, wanted: Sharding) -> ir.Value:
        """The one transfer of a value to a stage."""
        name = self._names[value]
        sharding = self.choices.arrivals.get((where.stage, *name), wanted)
        return self._reshard(value, sharding, where, "transfer")

    def _reshard(self, value: ir.Value, sharding: Sharding, where: _Where, group: str) -> ir.Value:
        key = ("reshard", self._names[value], sharding, where.stage, group, where.function)
        if key not in self._ready:
            attribute = self._attribute((where.stage, sharding))
            op = sdy.ReshardOp(
                value, attribute, loc=where.anchor.location, ip=ir.InsertionPoint(where.anchor)
            ).operation
            self._mark(op, where)
            made = op.results[0]
            self._places[made] = (where.stage, sharding)
            self._names[made] = self._names[value] if group != where.phase else ("", -1, len(self._ready))
            self._ready[key] = made
        return self._ready[key]

    def _mark(self, op: ir.Operation, where: _Where) -> None:
        if where.layer >= 0:
            alpa.set_int(op, alpa.LAYER, where.layer)
            alpa.set_int(op, alpa.STAGE, where.stage)
        if where.phase:
            alpa.set_string(op, alpa.PHASE, where.phase)

    def _clone(self, maker: OpRecord, value: ir.Value, wanted: Sharding, where: _Where) -> ir.Value:
        """A source op made once more, in the wanted sharding, at the place where it is used."""
        key = ("clone", self._names[value], wanted, where.stage, where.phase, where.layer, where.function)
        if key not in self._ready:
            clone = maker.op.clone(ir.InsertionPoint(where.anchor)).operation
            before = replace(where, anchor=clone)
            for k, operand in enumerate(list(clone.operands)):
                clone.operands[k] = self._obtain(operand, Sharding(()), before)
            number = ir.OpResult(value).result_number
            ranks = [len(t.shape) for t in maker.result_types]
            shardings = [wanted if k == number else Sharding.replicated(rank) for k, rank in enumerate(ranks)]
            set_op_shardings(clone, shardings, self.choices.meshes[where.stage])
            self._mark(clone, where)
            made = clone.results[number]
            self._places[made] = (where.stage, wanted)
            self._names[made] = ("", -1, -1 - len(self._ready))
            self._ready[key] = made
        return self._ready[key]

    def _returns(self, name: str, function: ir.Operation) -> None:
        op = list(function.regions[0].blocks[0].operations)[-1].operation
        kept = {f.result: f.slot for f in self.program.feeds if f.function == name}
        entries = result_attributes(function)
        for i, value in enumerate(list(op.operands)):
            place = self.choices.slots[kept[i]] if i in kept else self._resting_place(value)
            op.operands[i] = self._obtain(value, place[1], self._before_return(op, name, value, place[0]))
            entries[i][SHARDING] = self._attribute(place)
        set_result_attributes(function, entries)

    def _resting_place(self, value: ir.Value) -> Place:
        """Where a result that no slot keeps lies: where it was made; constants replicated on their op's stage."""
        if value in self._places:
            return self._places[value]
        maker = self._makers[value]
        rank = len(maker.result_types[ir.OpResult(value).result_number].shape)
        return max(maker.stage, 0), Sharding.replicated(rank)

    def _before_return(self, op: ir.Operation, function: str, value: ir.Value, stage: int) -> _Where:
        """Reshards before the return belong to the layer and phase of what they return."""
        number = self._names[value][1]
        if number < 0:
            return _Where(op, function, stage, 0 if self.program.staged else -1, _PHASES.get(function, ""))
        maker = self.program.ops[number]
        return _Where(op, function, stage, maker.layer, maker.phase)

    def _drop_unused_sources(self) -> None:
        for record in reversed(self.program.ops):
            if record.is_source and not any(True for value in record.op.results for _ in value.uses):
                record.op.erase()
