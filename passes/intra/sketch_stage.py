"""The sketch of a stage, read off the program: which ops and values are nodes, what flows between them, when it lives.

A stage keeps its own slots; what comes from elsewhere, a slot of another stage too, is an incoming node. An edge goes
from what produces a value to each op that reads it and to the slot that keeps it. Sums whose users are all in the
stage may be kept as addends (`deferral.py`); values that several products use get nodes for their copies (`copies.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alpa_mlir.dialect.rounds import LEAVE, STACK
from alpa_mlir.passes.costs.memory import Lifetime, Moments
from alpa_mlir.passes.intra.copies import Copy, copies_of
from alpa_mlir.passes.intra.deferral import find_deferral
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
    stored = [node for node in builder.slots.values() if node not in builder.sliced]
    moments = Moments.of(len(builder.nodes), stored, builder.lifetimes(in_flight))
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


def is_from_host(slot: str) -> bool:
    """Whether what a slot holds comes from the host for each microbatch: a batch argument, or its number."""
    return slot.startswith("batch") or slot == "index"


@dataclass(frozen=True)
class _Reach:
    """The last op for which an op's operands must be there, and the phases in which they must."""

    last: int
    phases: frozenset[str]


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
        self.last = {op.function: op.number for op in self.included}
        """The last op of each function; `first` and `ends_of`: the first and the last of each phase."""
        self.first = {(op.function, op.phase): op.number for op in reversed(self.included)}
        self.ends_of = {(op.function, op.phase): op.number for op in self.included}
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
        """Nodes of copies; `shared`: the copies that are made of nodes; `unheld`: copies of copies."""
        self.shared: dict[int, list[int]] = {}
        self.unheld: set[int] = set()
        self.copied = copies_of(self.included, {op.number for op in self.included})
        self.feed_of = {f.slot: f for f in program.feeds}
        self.deferred = self._deferrable()
        feeders = [f.source.op for f in program.feeds if f.slot in self.deferred]
        self.deferral = find_deferral(program, self.included, feeders)
        self.users: list[list[OpRecord]] = []
        self.leaving: set[int] = set()
        self.reach: dict[int, _Reach] = {}
        self.sliced: set[int] = set()
        """Batch arguments that are kept for each microbatch in flight."""

    def run(self) -> None:
        """Make all nodes and edges."""
        for op in self.included:
            self._op(op)
        for feed in self.program.feeds:
            self._feed(feed)
        self._find_reaches()
        self.sliced = {node for slot, node in self.slots.items() if is_from_host(slot) and self._is_kept(node)}

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
        self.users.append([])
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
            self.users[holder].append(op)
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
                self.unheld.add(number)
            self.made.add(number)
            self.shared.setdefault(node, []).append(number)
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
        self.leaving.add(producer[0])
        self._edge(producer, (target, 0), slot.type.bytes, feed.function)

    def lifetimes(self, in_flight: int) -> list[Lifetime]:
        """When each op's and each arriving value is alive (rules M2 to M8)."""
        found = []
        for number, node in enumerate(self.nodes):
            arrives = node.incoming or number in self.sliced
            if (arrives or not node.source.slot) and number not in self.unheld:
                lifetime = self._lifetime(number, node, in_flight)
                found += [lifetime] if lifetime is not None else []
                if lifetime is not None and node.incoming and self._is_ahead(node):
                    begin, last = self._begin(lifetime.function), self.last[lifetime.function]
                    found.append(Lifetime(number, lifetime.function, begin, last))
        return found

    def _lifetime(self, number: int, node: SketchNode, in_flight: int) -> Lifetime | None:
        users = self.users[number] if number not in self.shared else self._without_copies(number)
        if number in self.shared and not users and number not in self.leaving:
            return None
        maker = self.program.ops[node.source.op] if node.source.op >= 0 else None
        first = next(iter(users), None) if maker is None or node.incoming else maker
        if first is None or (not node.incoming and self._is_fused_away(first, users, number)):
            return None
        if node.source.slot:
            kept = in_flight - 1 if is_from_host(node.source.slot) and self._is_kept(number) else 0
            return Lifetime(number, first.function, self._begin(first.function), self.last[first.function], kept)
        here = [u for u in users if u.function == first.function]
        loop = maker.loop if maker is not None else -1
        reach = [self._reach_of(u, loop) for u in here]
        phases = {phase for r in reach for phase in r.phases} | ({maker.phase} if maker is not None else set())
        kept = in_flight - 1 if "forward" in phases and "backward" in phases else 0
        if number in self.leaving and first.function == "microbatch":
            begin = self.first[first.function, first.phase]
            return Lifetime(number, first.function, begin, self.last[first.function], kept)
        if not users and number not in self.leaving:
            last = self.ends_of[first.function, first.phase]
        else:
            last = max([first.number, *[r.last for r in reach]])
        begin = first.number
        if maker is not None and maker.op.name == STACK:
            begin = min(self.program.loops[maker.loop]) if maker.loop >= 0 else begin
        return Lifetime(number, first.function, begin, last, kept)

    def _is_kept(self, number: int) -> bool:
        """Whether a batch argument is read in the forward pass and in the backward pass."""
        return {"forward", "backward"} <= self._phases(number)

    def _phases(self, number: int) -> set[str]:
        """The phases in which a node's value must be there for what reads it."""
        return {phase for user in self.users[number] for phase in self.reach[user.number].phases}

    def _without_copies(self, number: int) -> list[OpRecord]:
        """What reads a value itself of which there are copies: backward, a copy that is kept does for all."""
        users = self.users[number]
        forward = self.program.ops[self.nodes[number].source.op].phase == "forward"
        if forward and any("backward" in self._phases(copy) for copy in self.shared[number]):
            return [user for user in users if "backward" not in self.reach[user.number].phases]
        return users

    def _is_ahead(self, node: SketchNode) -> bool:
        """Whether an arriving value waits for its turn while another microbatch works: what comes forwards does."""
        op = self.program.ops[node.source.op] if node.source.op >= 0 else None
        return op is not None and (op.function, op.phase) == ("microbatch", "forward")

    def _begin(self, function: str) -> int:
        """The first op of a function."""
        return min(number for (name, _), number in self.first.items() if name == function)

    def _reach_of(self, user: OpRecord, loop: int) -> _Reach:
        """Up to when an op needs what is made in a loop (-1: in none): what is made before one is read in its every
        round."""
        found = self.reach[user.number]
        if user.loop < 0 or user.loop == loop:
            return found
        return _Reach(max(found.last, max(self.program.loops[user.loop])), found.phases)

    def _find_reaches(self) -> None:
        """Up to when each included op reads what it reads: as long as what it computes in registers is needed."""
        found = self.reach
        for op in reversed(self.included):
            number = self.ops[op.number]
            last, phases = op.number, {op.phase}
            if self._is_in_registers(op, number):
                for user in self.users[number]:
                    if user.function == op.function:
                        last = max(last, self._reach_of(user, op.loop).last)
                        phases |= found[user.number].phases
            found[op.number] = _Reach(last, frozenset(phases))

    def _is_in_registers(self, op: OpRecord, number: int) -> bool:
        """Whether the op's results are computed where they are needed (T1), so that nothing holds them."""
        return op.kind.traffic.is_fused and number not in self.leaving and number not in self.shared

    def _is_fused_away(self, maker: OpRecord, users: list[OpRecord], number: int) -> bool:
        """Rules M4 and M5."""
        if number in self.leaving and not users:
            return maker.kind.compute == "fused" and maker.function != "microbatch"
        return self._is_in_registers(maker, number)
