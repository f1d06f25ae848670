"""A function's body as a graph of numbers: what the layer and stage passes reason about.

Ops are numbered in program order, values in the order arguments then results.  An op with regions is
one node; values that its regions capture count as its operands.  The work of an op is read off its
factors: a contraction (matrix product, convolution) does 2·∏ factor sizes floating-point operations
(one multiply, one add at each point of the iteration space, as in an einsum), every other op one per
result element; control flow does the work of its regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import Binding, bindings
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import OpFactors, read_factors, shape_of
from alpa_mlir.dialect.rounds import ENTER, LEAVE, Round, find_rounds, read_by, trips_by_op
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes

CONTRACTIONS = ("stablehlo.dot_general", "stablehlo.convolution", "stablehlo.dot")


@dataclass(frozen=True, eq=False)
class Dataflow:
    """One function: `operands[o]`, `results[o]` are the value numbers of op `o`.

    `definition[v]` is the op that yields value v (-1: an argument), `uses[v]` the ops that read it in
    program order, `nbytes[v]` its size, `returned` the values the function returns.
    """

    function: ir.Operation
    ops: tuple[ir.Operation, ...]
    operands: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    definition: tuple[int, ...]
    uses: tuple[tuple[int, ...], ...]
    nbytes: tuple[int, ...]
    returned: tuple[int, ...]
    arguments: tuple[Binding, ...]
    yields: tuple[Binding, ...]

    @cached_property
    def flops(self) -> tuple[float, ...]:
        """Work of each op, and with it (see `heavy`) whether a layer boundary may stand before it."""
        factors = read_factors(self.function)
        trips = trips_by_op(self.ops, self._rounds)
        return tuple(times * work(op, factors) for op, times in zip(self.ops, trips, strict=True))

    @cached_property
    def loops(self) -> tuple[tuple[int, ...], ...]:
        """The ops of each loop that stands as one round (`dialect/rounds.py`), ascending."""
        return tuple(found.ops for found in self._rounds)

    @cached_property
    def _rounds(self) -> list[Round]:
        return find_rounds(self.ops)

    @cached_property
    def loop_of(self) -> dict[int, int]:
        """For each op of a loop the number of the loop."""
        return {o: n for n, ops in enumerate(self.loops) for o in ops}

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """What cannot be torn apart: the ops of a loop, any other op by itself; each after what it depends on."""
        if not self.loops:
            return tuple((o,) for o in range(len(self.ops)))
        done: set[int] = set()
        found: list[tuple[int, ...]] = []
        for op in range(len(self.ops)):
            pending = [op]
            while pending:
                unit = self.unit_of(pending[-1])
                if unit[0] in done:
                    pending.pop()
                    continue
                before = {self.unit_of(p)[0] for o in unit for p in self.producers(o)} - done - {unit[0]} - {*pending}
                pending += sorted(before)
                if not before:
                    done.update(unit)
                    found.append(unit)
        return tuple(found)

    def unit_of(self, op: int) -> tuple[int, ...]:
        """The ops of the unit of an op, ascending."""
        loop = self.loop_of.get(op)
        return (op,) if loop is None else self.loops[loop]

    @cached_property
    def heavy(self) -> tuple[bool, ...]:
        """Whether an op contracts something (or holds an op that does)."""
        return tuple(contracts(op) for op in self.ops)

    def producers(self, op: int) -> list[int]:
        """The ops whose results op reads, each once, in order of operands."""
        found = [self.definition[v] for v in self.operands[op]]
        return list(dict.fromkeys(d for d in found if d >= 0))

    def users(self, op: int) -> list[int]:
        """The ops that read a result of op, ascending."""
        return sorted({u for v in self.results[op] for u in self.uses[v]})

    def slice_of(self, values: Sequence[int], known: Set[int] = frozenset()) -> set[int]:
        """All ops that the values depend on, without those of `known` (with each of which all it depends on)."""
        seen: set[int] = set()
        stack = [self.definition[v] for v in values]
        while stack:
            op = stack.pop()
            if op >= 0 and op not in seen and op not in known:
                seen.add(op)
                stack.extend(self.definition[v] for v in self.operands[op])
                stack.extend(self.passed_on.get(op, ()))
        return seen

    @cached_property
    def passed_on(self) -> dict[int, tuple[int, ...]]:
        """For each `alpa.loop_enter` the ops that say what the rounds pass on: who needs the one needs the other."""
        found = {}
        for o, op in enumerate(self.ops):
            if op.name == ENTER:
                leaves = [
                    u for u in self.users(o) if self.ops[u].name == LEAVE and self.operands[u][0] in self.results[o]
                ]
                found[o] = tuple(leaves)
        return found


def read_dataflow(function: ir.Operation) -> Dataflow:
    """The graph of a function with one block."""
    block = function.regions[0].blocks[0]
    every = [op.operation for op in block.operations]
    ops, terminator = every[:-1], every[-1]
    number: dict[ir.Value, int] = {}
    definition: list[int] = []
    nbytes: list[int] = []
    sizes: dict[ir.Type, int] = {}

    def add(value: ir.Value, owner: int) -> int:
        number[value] = len(definition)
        definition.append(owner)
        kind = value.type
        if kind not in sizes:
            sizes[kind] = value_bytes(value)
        nbytes.append(sizes[kind])
        return number[value]

    for argument in block.arguments:
        add(argument, -1)
    operands: list[tuple[int, ...]] = []
    results: list[tuple[int, ...]] = []
    for index, op in enumerate(ops):
        operands.append(tuple([number[v] for v in read_by(op) if v in number]))
        results.append(tuple([add(v, index) for v in op.results]))
    uses: list[list[int]] = [[] for _ in definition]
    for index, read in enumerate(operands):
        for v in dict.fromkeys(read):
            uses[v].append(index)
    return Dataflow(
        function,
        tuple(ops),
        tuple(operands),
        tuple(results),
        tuple(definition),
        tuple(tuple(u) for u in uses),
        tuple(nbytes),
        tuple(number[v] for v in terminator.operands),
        tuple(bindings(argument_attributes(function))),
        tuple(bindings(result_attributes(function))),
    )


def value_bytes(value: ir.Value) -> int:
    """Size of a tensor value in bytes (sub-byte types count as one byte); 0 for tokens and tuples."""
    shape = shape_of(value)
    if shape is None:
        return 0
    return prod(shape) * element_bytes(ir.RankedTensorType(value.type).element_type)


def element_bytes(kind: ir.Type) -> int:
    """Bytes of one element of a tensor."""
    if isinstance(kind, ir.ComplexType):
        return 2 * element_bytes(ir.ComplexType(kind).element_type)
    if isinstance(kind, ir.IntegerType):
        return max(1, int(ir.IntegerType(kind).width) // 8)
    if isinstance(kind, ir.FloatType):
        return max(1, int(ir.FloatType(kind).width) // 8)
    return 8


def work(op: ir.Operation, factors: dict[int, OpFactors]) -> float:
    """Floating-point operations of one op, regions of control flow included (once each)."""
    if op.name in CONTRACTIONS:
        known = factors.get(op_id(op))
        return 2.0 * prod(known.sizes) if known is not None else 0.0
    own = float(sum(prod(shape_of(v) or ()) for v in op.results)) if op.operands else 0.0
    return own + sum(work(inner, factors) for inner in _control_flow_body(op))


def contracts(op: ir.Operation) -> bool:
    """Whether the op, or an op inside it, is a contraction."""
    return op.name in CONTRACTIONS or any(contracts(inner) for inner in _control_flow_body(op))


def _control_flow_body(op: ir.Operation) -> Iterator[ir.Operation]:
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
