"""The sketch of a stage, read off the program: which ops and values are nodes, what flows between them, when it lives.

A stage keeps its own slots; what comes from elsewhere, a slot of another stage too, is an incoming node. An edge goes
from what produces a value to each op that reads it and to the slot that keeps it. Sums whose users are all in the
stage may be kept as addends (`deferral.py`); values that several products use get nodes for their copies (`copies.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alpa_mlir.dialect.rounds import LEAVE
from alpa_mlir.passes.costs.memory import Moments
from alpa_mlir.passes.intra.copies import Copy, copies_of
from alpa_mlir.passes.intra.deferral import find_deferral
from alpa_mlir.passes.intra.lifetimes import Lifetimes, Uses, is_from_host
from alpa_mlir.passes.intra.program import Feed, OpRecord, Program, Source, TensorType
from alpa_mlir.passes.intra.restrictions import Restrictions
from alpa_mlir.passes.intra.sketch import CopyRecipe, OpRecipe, Recipe, Sketch, SketchEdge, SketchNode, ValueRecipe

TIED = 1000
"""How often a value that rounds of a loop pass on would be resharded if it came in otherwise than it leaves, which no
loop can do: so often that it is never worth it."""


def sketch_stage(
    program: Program,
    included: Callable[[OpRecord], bool],
    stage: int = -1,
    in_flight: int = 1,
    restrictions: Restrictions | None = None,
) -> Sketch:
    """The nodes and edges of the included ops, on any mesh.

    Slots kept by another stage are incoming values: where `stage` ≥ 0 and slots say their stage, by that, else those
    whose home op is not included.
    `in_flight`: microbatches whose forward values are alive at once. `restrictions`: what users want.
    """
    builder = _Builder(program, included, stage, restrictions or Restrictions())
    builder.run()
    lifetimes = Lifetimes(program, builder.included, builder.nodes, builder.ops, builder.slots, builder.uses)
    stored = [node for node in builder.slots.values() if node not in lifetimes.sliced]
    moments = Moments.of(len(builder.nodes), stored, lifetimes.of(in_flight))
    return Sketch(
        program,
        tuple(builder.recipes),
        tuple(builder.nodes),
        np.array([n.recipe for n in builder.nodes], dtype=np.int64),
        np.array(builder.ends, dtype=np.int64).reshape(-1, 2),
        tuple(builder.edge_kinds),
        np.array(builder.kinds, dtype=np.int64),
        moments,
        builder.ops,
        builder.slots,
        builder.incoming,
        builder.ended,
        {operand: tuple(builder.copies[c] for c in chain) for operand, chain in builder.copied.items()},
    )


class _Builder:
    def __init__(
        self,
        program: Program,
        included: Callable[[OpRecord], bool],
        stage: int,
        restrictions: Restrictions,
    ) -> None:
        self.program = program
        self.stage = stage
        self.restrictions = restrictions
        taken = [op for op in program.ops if included(op)]
        self.included = [op for op in taken if not op.kind.is_source]
        self.inside = {op.number for op in taken}
        self.recipes: dict[Recipe, int] = {}
        self.nodes: list[SketchNode] = []
        self.trips: list[int] = []
        """How often a node's value is made whenever its function runs."""
        self.ends: list[tuple[int, int]] = []
        self.edge_kinds: dict[SketchEdge, int] = {}
        self.kinds: list[int] = []
        self.known: dict[tuple[object, ...], int] = {}
        self.ops: dict[int, int] = {}
        self.slots: dict[str, int] = {}
        self.incoming: dict[Source, int] = {}
        self.ended: dict[str, int] = {}
        self.copies: dict[Copy, int] = {}
        self.made: set[int] = set()
        """Nodes of copies."""
        self.uses = Uses()
        self.copied = copies_of(self.included, {op.number for op in self.included})
        self.feed_of = {f.slot: f for f in program.feeds}
        self.deferred = self._deferrable()
        feeders = [f.source.op for f in program.feeds if f.slot in self.deferred]
        self.deferral = find_deferral(program, self.included, feeders)

    def run(self) -> None:
        """Make all nodes and edges."""
        for op in self.included:
            self._op(op)
        for feed in self.program.feeds:
            self._feed(feed)

    def _deferrable(self) -> set[str]:
        """Sums over several microbatches all of whose users are ops of this stage: they may be kept as addends,
        to be reduced once per step instead of once per microbatch."""
        found = {n for n, slot in self.program.slots.items() if slot.additive and self.program.microbatches > 1}
        found -= {*self.program.returned, *(f.source.slot for f in self.program.feeds)}
        return {n for n in found if self.inside.issuperset((self.feed_of[n].source.op, *self.program.readers[n]))}

    def _recipe(self, recipe: Recipe) -> int:
        return self.recipes.setdefault(recipe, len(self.recipes))

    def _add(self, node: SketchNode, trips: int = 1) -> int:
        self.nodes.append(node)
        self.trips.append(trips)
        self.uses.users.append([])
        return len(self.nodes) - 1

    def _edge(
        self, producer: tuple[int, int], consumer: tuple[int, int], size: float, function: str, times: int = 1
    ) -> None:
        """Result of a node -> operand of a node, each as (node, number); `times`: see `TIED`."""
        (u, result), (v, operand) = producer, consumer
        key = (self.nodes[u].recipe, result, self.nodes[v].recipe, operand, size, function, times)
        kind = self.known.get(key)
        if kind is None:
            edge = SketchEdge(*key[:5], self.program.weight(function) * self.trips[u] * times, function)
            kind = self.known[key] = self.edge_kinds.setdefault(edge, len(self.edge_kinds))
        self.ends.append((u, v))
        self.kinds.append(kind)

    def _op(self, op: OpRecord) -> None:
        recipe = self._of_op(op)
        weight = self.program.weight(op.function) * op.kind.trips
        types = op.kind.operand_types
        producers = [self._producer(s, t) for s, t in zip(op.operands, types, strict=True)]
        number = self.ops[op.number] = self._add(
            SketchNode(recipe, weight, Source(op.number, 0), op.function), op.kind.trips
        )
        for k, (producer, kind) in enumerate(zip(producers, types, strict=True)):
            if producer is None:
                continue
            holder = producer[0]
            for depth, copy in enumerate(self.copied.get((op.number, k), ())):
                producer = self._copy(copy, producer), 0
                holder = holder if depth else producer[0]
            self.uses.users[holder].append(op)
            tied = TIED if k == 0 and op.op.name == LEAVE else 1
            self._edge(producer, (number, k), kind.bytes, op.function, tied)
            if tied > 1:
                self._edge((number, 0), (producer[0], 0), kind.bytes, op.function, tied)

    def _of_op(self, op: OpRecord) -> int:
        unended, carried = op.number in self.deferral.unended, self.deferral.carried.get(op.number, ())
        return self._recipe(OpRecipe(op.kind, unended, carried, self.restrictions.of_op(op.number), op))

    def _value(self, kind: TensorType, slot: str, incoming: bool = False, partial: bool = False) -> int:
        return self._recipe(ValueRecipe(kind, incoming, partial, self.restrictions.of_slot(slot), slot))

    def _producer(self, source: Source, kind: TensorType) -> tuple[int, int] | None:
        """(node, result number) that holds a value in this stage; None for constants."""
        if source.slot:
            if source.slot in self.deferred:
                return self._ended(source.slot), 0
            return (self._slot(source.slot), 0) if self._is_local(source.slot) else (self._arrival(source, kind), 0)
        made = self.ops.get(source.op)
        if made is not None:
            return made, source.index
        if self.program.ops[source.op].kind.is_source:
            return None
        return self._arrival(source, kind), 0

    def _is_local(self, slot: str) -> bool:
        """Whether this stage keeps the slot."""
        home = self.program.slots[slot].stage
        if self.stage >= 0 and home >= 0:
            return home == self.stage
        op = self.program.home_ops.get(slot)
        return op is None or op in self.inside

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            kind, partial = self.program.slots[name].type, name in self.deferred
            self.slots[name] = self._add(
                SketchNode(self._value(kind, name, partial=partial), 1, Source(-1, 0, name), "")
            )
        return self.slots[name]

    def _ended(self, name: str) -> int:
        """The node of a deferred sum's whole value: the edge to it ends the sum, once per step."""
        if name not in self.ended:
            kind, slot = self.program.slots[name].type, self._slot(name)
            self.ended[name] = self._add(SketchNode(self._value(kind, name), 1, Source(-1, 0, name), "update"))
            self._edge((slot, 0), (self.ended[name], 0), kind.bytes, "update")
        return self.ended[name]

    def _copy(self, copy: Copy, origin: tuple[int, int]) -> int:
        """The node of a value as its products share it, made from the value itself or from another copy.

        The common copy is alive for all products (rule M7); those of a phase are not counted beside it.
        """
        if copy not in self.copies:
            node, result = origin
            kind = self.program.ops[copy.op].kind.result_types[copy.index]
            maker = self.nodes[node]
            recipe = self._recipe(CopyRecipe(kind, maker.recipe, result))
            number = self.copies[copy] = self._add(
                SketchNode(recipe, maker.weight, maker.source, maker.function), self.trips[node]
            )
            self._edge(origin, (number, 0), kind.bytes, maker.function)
            if node in self.made:
                self.uses.unheld.add(number)
            self.made.add(number)
            self.uses.shared.setdefault(node, []).append(number)
        return self.copies[copy]

    def _arrival(self, source: Source, kind: TensorType) -> int:
        if source not in self.incoming:
            fed_by_host = is_from_host(source.slot)
            recipe = self._value(kind, source.slot if fed_by_host else "", incoming=not fed_by_host)
            repeated = not source.slot and self.program.ops[source.op].function == "microbatch"
            weight = self.program.microbatches if repeated else 1
            self.incoming[source] = self._add(
                SketchNode(recipe, weight, source, "microbatch" if repeated else "", incoming=True)
            )
        return self.incoming[source]

    def _feed(self, feed: Feed) -> None:
        """The edge from a function's result into the slot that keeps it."""
        slot = self.program.slots[feed.slot]
        made_here = feed.source.slot != "" or feed.source.op in self.inside
        if not made_here and (self.stage < 0 or slot.stage != self.stage):
            return
        if self.stage >= 0 and slot.stage >= 0 and slot.stage != self.stage:
            return
        if feed.source.slot and feed.slot not in self.slots and self.stage < 0:
            return
        producer = self._producer(feed.source, slot.type)
        target = self._slot(feed.slot)
        if producer is None or producer[0] == target:
            return
        self.uses.leaving.add(producer[0])
        self._edge(producer, (target, 0), slot.type.bytes, feed.function)
