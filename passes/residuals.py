"""What the rounds of one loop keep for those of another: as few bytes as computing again what is cheap allows.

`jax.grad` of a scan keeps of each layer all that the backward pass reads, also what can be had from a few of them op by
op (a normalised value from the value, its mean and deviation; weights transposed). Unrolled, such values are computed
again where they are needed (`costs/fusion.py`); in a loop each is a stack that is written and read. Which values to
keep is a minimum cut between what cannot be computed again at little cost (products, reductions, what comes into the
round) and what the other loop reads: each value costs its bytes, arguments nothing. Compare the min-cut
rematerialisation of functorch's partitioner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa, rounds
from alpa_mlir.dialect.context import op_id
from alpa_mlir.passes.inter.dataflow import value_bytes
from alpa_mlir.passes.stacked import BROADCAST, ELEMENTWISE, RESHAPE, SLICE, TRANSPOSE

CHEAP = ELEMENTWISE | {BROADCAST, RESHAPE, TRANSPOSE, SLICE, "stablehlo.concatenate"}
SOURCE, SINK = "source", "sink"


def keep_little(block: ir.Block) -> None:
    """Let the loops of a block keep as few bytes for one another as they must; marks may be left that nothing needs."""
    ops = [view.operation for view in block.operations]
    loops = rounds.find_rounds(ops)
    if not loops:
        return
    of_op = {op_id(ops[n]): number for number, loop in enumerate(loops) for n in loop.ops}
    place = {op_id(op): n for n, op in enumerate(ops)}
    for number, loop in enumerate(loops):
        kept: dict[tuple[int, bool, bool], list[tuple[ir.Operation, ir.Operation]]] = {}
        for stack in (ops[n] for n in loop.ops if ops[n].name == rounds.STACK):
            readers = [use.owner.operation for use in stack.results[0].uses]
            if len(readers) == 1 and readers[0].name == rounds.SLICE and of_op[op_id(readers[0])] != number:
                ways = alpa.REVERSED in stack.attributes, alpa.REVERSED in readers[0].attributes
                kept.setdefault((of_op[op_id(readers[0])], *ways), []).append((stack, readers[0]))
        for (other, writes, reads), pairs in kept.items():
            members = [ops[n] for n in loops[other].ops if ops[n].name != rounds.SLICE]
            if loops[other].trips == loop.trips and members:
                inside = {op_id(ops[n]) for n in loop.ops}
                _Between(block, loop.trips, inside, pairs, (writes, reads), members[0], ops, place).run()


@dataclass
class _Between:
    """What one loop keeps for another: `pairs` of a stack and its slice, gone through in the same two ways."""

    block: ir.Block
    trips: int
    inside: set[int]
    """The ops of the first loop."""
    pairs: list[tuple[ir.Operation, ir.Operation]]
    ways: tuple[bool, bool]
    """Whether the first loop writes, and the second reads, from the end."""
    first: ir.Operation
    """The first op of the second loop that is no slice."""
    ops: list[ir.Operation]
    """Those of the block as it was, and `place` their numbers."""
    place: dict[int, int]
    there: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Values of the first loop as the second has them."""

    def run(self) -> None:
        """Cut, and rewrite where that keeps less; what is not read any more stays for `rounds.erase_unneeded`."""
        wanted = {stack.operands[0]: None for stack, _ in self.pairs}
        cut = self._cut(list(wanted))
        before = sum(value_bytes(v) for v in wanted)
        if sum(self._price(v) for v in cut) >= before:
            return
        stacked = {stack.operands[0]: stack for stack, _ in self.pairs}
        last = self.pairs[-1][0]
        for value in cut:
            self.there[value] = self._read(value, stacked, last)
        users = sorted(((self._earliest(row), stack, row) for stack, row in self.pairs), key=lambda found: found[0])
        for at, stack, row in users:
            value = self._computed(stack.operands[0], at)
            if value != row.results[0]:
                row.results[0].replace_all_uses_with(value)

    def _is_inside(self, value: ir.Value) -> bool:
        return not isinstance(value.owner, ir.Block) and op_id(value.owner.operation) in self.inside

    def _is_given(self, value: ir.Value) -> bool:
        """Whether a value is an argument of the program, a part of one, or the round's slice of that; or a constant."""
        if self._is_inside(value):
            op = value.owner.operation
            return op.name == rounds.SLICE and self._is_given(op.operands[0])
        while not isinstance(value.owner, ir.Block) and value.owner.operation.name == SLICE:
            value = value.owner.operation.operands[0]
        return isinstance(value.owner, ir.Block) or not value.owner.operation.operands

    def _is_cheap(self, value: ir.Value) -> bool:
        """Whether a value of the first loop is computed element by element, without an op of regions."""
        op = value.owner.operation
        return op.name in CHEAP and len(op.results) == 1

    def _price(self, value: ir.Value) -> float:
        """Bytes of a round's value, if it is kept."""
        return 0.0 if self._is_given(value) else value_bytes(value)

    def _cut(self, wanted: Sequence[ir.Value]) -> list[ir.Value]:
        """The values to keep: of equal cuts the one nearest to what is wanted."""
        import networkx as nx

        graph: nx.DiGraph = nx.DiGraph()
        numbers: dict[ir.Value, int] = {}
        pending = list(wanted)
        while pending:
            value = pending.pop()
            if value in numbers:
                continue
            n = numbers[value] = len(numbers)
            # Backwards, from what is wanted: then the side that it can reach is the smallest.
            graph.add_edge((n, "out"), (n, "in"), capacity=self._price(value))
            if self._is_inside(value) and self._is_cheap(value):
                pending += value.owner.operation.operands
            else:
                graph.add_edge((n, "in"), SOURCE, capacity=inf)
        for value, n in numbers.items():
            if self._is_inside(value) and self._is_cheap(value):
                for operand in value.owner.operation.operands:
                    graph.add_edge((n, "in"), (numbers[operand], "out"), capacity=inf)
        for value in wanted:
            graph.add_edge(SINK, (numbers[value], "out"), capacity=inf)
        _, (near, _) = nx.minimum_cut(graph, SINK, SOURCE)
        return [v for v, n in numbers.items() if (n, "out") in near and (n, "in") not in near]

    def _read(self, value: ir.Value, stacked: dict[ir.Value, ir.Operation], last: ir.Operation) -> ir.Value:
        """A kept value of the first loop in a round of the second."""
        if not self._is_inside(value):
            return value
        op = value.owner.operation
        with ir.InsertionPoint(self.first), op.location:
            if op.name == rounds.SLICE and self._is_given(value):
                turned = (alpa.REVERSED in op.attributes) != (self.ways[0] != self.ways[1])
                return rounds.mark(rounds.SLICE, value.type, [op.operands[0]], self.trips, turned)
        if value in stacked:
            row = next(row for stack, row in self.pairs if stack == stacked[value])
            row.move_before(self.first)
            return row.results[0]
        kind = ir.RankedTensorType(value.type)
        with ir.InsertionPoint(last), op.location:
            every = ir.RankedTensorType.get([self.trips, *kind.shape], kind.element_type)
            stack = rounds.mark(rounds.STACK, every, [value], self.trips, self.ways[0])
        with ir.InsertionPoint(self.first), op.location:
            return rounds.mark(rounds.SLICE, kind, [stack], self.trips, self.ways[1])

    def _earliest(self, row: ir.Operation) -> int:
        """The place of the first op that reads a slice."""
        begin = self.place[op_id(self.first)]
        users = (alpa.outermost(use.owner.operation, self.block) for use in row.results[0].uses)
        return min((self.place.get(op_id(user), begin) for user in users), default=begin)

    def _computed(self, value: ir.Value, at: int) -> ir.Value:
        """A value of the first loop, computed in the second before the op at a place."""
        if value in self.there or not self._is_inside(value):
            return self.there.get(value, value)
        op = value.owner.operation
        operands = [self._computed(v, at) for v in op.operands]
        copy = op.clone(ip=ir.InsertionPoint(self.ops[at])).operation
        for n, operand in enumerate(operands):
            copy.operands[n] = operand
        self.there[value] = copy.results[0]
        return self.there[value]
