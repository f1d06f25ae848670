"""From a program to the optimisation problem of one stage: nodes, edges with resharding seconds, live bytes.

Nodes are ops, *slots* (stored values: `arg:i`, `sum:k`, …, one node however many functions take them, so
that both sides agree, and a state argument agrees with the result that replaces it), and values that
arrive from another stage (any sharding, priced as a transfer). Constants and iota are no nodes: their
parts can be made anywhere for nothing. An edge prices the reshard from what a value's producer gives
to what its consumer wants, times how often the consumer runs in a step (M in `@microbatch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.compute import compute_kind
from alpa_mlir.passes.costs.memory import Lifetime, live_rows
from alpa_mlir.passes.intra.problem import Problem
from alpa_mlir.passes.intra.program import Feed, OpRecord, Program, Source, TensorType
from alpa_mlir.passes.intra.strategies import Enumerator, Strategy, StrategySet


@dataclass(frozen=True)
class Node:
    """A decision: an op (`op` ≥ 0), a slot, or (`incoming`) a value from another stage; run `weight` times a step."""

    choices: StrategySet
    weight: int
    source: Source
    function: str
    """The function whose runs the weight counts."""
    incoming: bool = False


@dataclass(frozen=True)
class Edge:
    """Result `result` of node `u` is operand `operand` of node `v`: `size` bytes, `weight` times a step."""

    u: int
    result: int
    v: int
    operand: int
    size: float
    weight: int
    function: str


@dataclass(frozen=True, eq=False)
class StageGraph:
    """The nodes and edges of one stage and the memory rows over its nodes."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    rows: sparse.csr_matrix
    of_op: dict[int, int]
    of_slot: dict[str, int]
    of_incoming: dict[Source, int]
    of_ended: dict[str, int]
    """The whole value of a sum that may be kept as addends: what its users in @update see."""
    enumerator: Enumerator = field(repr=False)

    def problem(self, limit: float = float("inf")) -> Problem:
        """The numbers of the graph: seconds of a step, bytes per device, `limit` bytes."""
        table = self.enumerator.table
        edges: dict[tuple[int, int], np.ndarray] = {}
        for e in self.edges:
            sources, targets = self.nodes[e.u].choices.results[e.result], self.nodes[e.v].choices.operands[e.operand]
            matrix = e.weight * table.matrix(sources, targets, e.size)
            key, matrix = ((e.u, e.v), matrix) if e.u < e.v else ((e.v, e.u), matrix.T)
            edges[key] = edges[key] + matrix if key in edges else matrix
        costs = tuple(n.weight * n.choices.seconds for n in self.nodes)
        held = tuple(np.asarray(sum(n.choices.bytes, np.zeros(len(n.choices)))) for n in self.nodes)
        return Problem(costs, edges, held, self.rows, limit)

    def signature(self) -> tuple[object, ...]:
        """Equal for stages that are the same problem (layers repeat), for caches."""
        nodes = tuple((id(n.choices), n.weight) for n in self.nodes)
        rows = (self.rows.indptr.tobytes(), self.rows.indices.tobytes(), self.rows.data.tobytes())
        return nodes, self.edges, rows

    def seconds(self, labels: tuple[int, ...], program: Program) -> tuple[float, float]:
        """(seconds of all runs of @microbatch, seconds of everything else) of a labelling.

        A level-1 program has only @main, which counts as the microbatch.
        """
        often = {"microbatch", "main"} & set(program.functions)
        repeated = once = 0.0
        table = self.enumerator.table
        for node, x in zip(self.nodes, labels, strict=True):
            cost = node.weight * float(node.choices.seconds[x])
            repeated, once = (repeated + cost, once) if node.function in often else (repeated, once + cost)
        for e in self.edges:
            sources, targets = self.nodes[e.u].choices.results[e.result], self.nodes[e.v].choices.operands[e.operand]
            cost = e.weight * table.pair(int(sources[labels[e.u]]), int(targets[labels[e.v]])).at(e.size)
            repeated, once = (repeated + cost, once) if e.function in often else (repeated, once + cost)
        return repeated, once

    def strategy(self, node: int, labels: tuple[int, ...]) -> Strategy:
        """The strategy that a labelling gives a node."""
        return self.nodes[node].choices.strategies[labels[node]]


def build_graph(
    program: Program,
    enumerator: Enumerator,
    included: Callable[[OpRecord], bool],
    stage: int = -1,
    in_flight: int = 1,
    given: dict[str, Sharding] | None = None,
) -> StageGraph:
    """The graph of the included ops.

    `stage` ≥ 0: slots kept by another stage are incoming values; otherwise every argument is local.
    `in_flight`: microbatches whose forward values are alive at once. `given`: fixed shardings of slots.
    """
    builder = _Builder(program, enumerator, included, stage, given or {})
    builder.run()
    nodes = tuple(builder.nodes)
    rows = live_rows(len(nodes), sorted(builder.slots.values()), builder.lifetimes(in_flight))
    return StageGraph(
        nodes, tuple(builder.edges), rows, builder.ops, builder.slots, builder.incoming, builder.ended, enumerator
    )


class _Builder:
    def __init__(
        self,
        program: Program,
        enumerator: Enumerator,
        included: Callable[[OpRecord], bool],
        stage: int,
        given: dict[str, Sharding],
    ) -> None:
        self.program = program
        self.enumerator = enumerator
        self.stage = stage
        self.given = given
        self.included = [op for op in program.ops if included(op) and not op.is_source]
        self.inside = {op.number for op in program.ops if included(op)}
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.ops: dict[int, int] = {}
        self.slots: dict[str, int] = {}
        self.incoming: dict[Source, int] = {}
        self.ended: dict[str, int] = {}
        self.feed_of = {f.slot: f for f in program.feeds}
        self.deferred = self._deferrable()
        self.feeders = {f.source.op for f in program.feeds if f.slot in self.deferred}
        self.users: dict[int, list[OpRecord]] = {}
        self.leaving: set[int] = set()

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
        found -= {*self.program.returned, *self.given, *(f.source.slot for f in self.program.feeds)}
        for op in self.program.ops:
            if op.number not in self.inside:
                found -= {s.slot for s in op.operands}
        return {n for n in found if self.feed_of[n].source.op in self.inside}

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        self.users[len(self.nodes) - 1] = []
        return len(self.nodes) - 1

    def _op(self, op: OpRecord) -> None:
        choices = self.enumerator.of_op(op, op.number in self.feeders)
        weight = self.program.weight(op.function)
        producers = [self._producer(s, t) for s, t in zip(op.operands, op.operand_types, strict=True)]
        number = self.ops[op.number] = self._add(Node(choices, weight, Source(op.number, 0), op.function))
        for k, (producer, kind) in enumerate(zip(producers, op.operand_types, strict=True)):
            if producer is None:
                continue
            self.users[producer[0]].append(op)
            self.edges.append(Edge(producer[0], producer[1], number, k, kind.bytes, weight, op.function))

    def _producer(self, source: Source, kind: TensorType) -> tuple[int, int] | None:
        """(node, result number) that holds a value in this stage; None for constants."""
        if source.slot in self.deferred:
            return self._ended(source.slot), 0
        if source.slot:
            return (self._slot(source.slot), 0) if self._is_local(source.slot) else (self._arrival(source, kind), 0)
        if self.program.ops[source.op].is_source:
            return None
        if source.op in self.inside:
            return self.ops[source.op], source.index
        return self._arrival(source, kind), 0

    def _is_local(self, slot: str) -> bool:
        """Whether this stage keeps the slot."""
        home = self.program.slots[slot].stage
        if self.stage >= 0 and home >= 0:
            return home == self.stage
        feed = self.feed_of.get(slot)
        if feed is None or slot.startswith("arg:"):
            return True
        return bool(feed.source.slot) or feed.source.op in self.inside or self.program.ops[feed.source.op].is_source

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            kind, partial = self.program.slots[name].type, name in self.deferred
            choices = self.enumerator.of_value(kind, given=self.given.get(name), partial=partial)
            self.slots[name] = self._add(Node(choices, 1, Source(-1, 0, name), ""))
        return self.slots[name]

    def _ended(self, name: str) -> int:
        """The node of a deferred sum's whole value: the edge to it ends the sum, once per step."""
        if name not in self.ended:
            kind, slot = self.program.slots[name].type, self._slot(name)
            self.ended[name] = self._add(Node(self.enumerator.of_value(kind), 1, Source(-1, 0, name), "update"))
            self.edges.append(Edge(slot, 0, self.ended[name], 0, kind.bytes, 1, "update"))
        return self.ended[name]

    def _arrival(self, source: Source, kind: TensorType) -> int:
        if source not in self.incoming:
            fed_by_host = source.slot.startswith("batch") or source.slot == "index"
            choices = self.enumerator.of_value(kind, incoming=not fed_by_host)
            repeated = not source.slot and self.program.ops[source.op].function == "microbatch"
            weight = self.program.microbatches if repeated else 1
            self.incoming[source] = self._add(
                Node(choices, weight, source, "microbatch" if repeated else "", incoming=True)
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
        weight = self.program.weight(feed.function)
        self.edges.append(Edge(producer[0], producer[1], target, 0, slot.type.bytes, weight, feed.function))

    def lifetimes(self, in_flight: int) -> list[Lifetime]:
        """When each op's and each arriving value is alive (rules M2 to M6)."""
        found = []
        for number, node in enumerate(self.nodes):
            if node.source.slot and not node.incoming:
                continue
            found.extend(self._lifetime(number, node, in_flight))
        return found

    def _lifetime(self, number: int, node: Node, in_flight: int) -> list[Lifetime]:
        users = self.users[number]
        maker = self.program.ops[node.source.op] if node.source.op >= 0 else None
        first = next(iter(users), None) if node.incoming else maker
        if first is None or (not node.incoming and self._is_fused_away(first, users, number)):
            return []
        here = [u for u in users if u.function == first.function]
        phases = {u.phase for u in (*here, maker) if u is not None}
        kept = in_flight - 1 if {"forward", "backward"} <= phases else 0
        stays = not users and number not in self.leaving
        until = [op for op in self.included if op.function == first.function] if stays else [first, *here]
        return [Lifetime(number, first.function, first.number, max(op.number for op in until), kept)]

    def _is_fused_away(self, maker: OpRecord, users: list[OpRecord], number: int) -> bool:
        """Rules M4 and M5."""
        kind = compute_kind(maker.factors)
        if number in self.leaving and not users:
            return kind == "fused"
        if kind != "fused" or len(users) != 1 or number in self.leaving:
            return False
        return users[0].phase == maker.phase and compute_kind(users[0].factors) in ("fused", "reduction")
