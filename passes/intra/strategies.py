"""How one op can be spread over a mesh: its strategies, from its factors alone.

A strategy puts every mesh axis on at most one factor of the op (several axes on one factor in mesh
order). The factor's dimensions of operands and results are split alike; an axis on a reduction factor
leaves partial sums, which end in an all-reduce or, for sums, in a reduce-scatter that puts the axis
minor-most on a divisible dimension of the result. Nothing is special-cased: data, tensor, expert,
sequence parallelism and ZeRO are choices among these (Alpa §4.1; Shardy's op sharding rules).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import overload

import numpy as np

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.communication import Ids, Matrix, ReshardTable, transfer_cost
from alpa_mlir.passes.costs.compute import compute_seconds, product_flops
from alpa_mlir.passes.costs.links import MeshLinks
from alpa_mlir.passes.intra.outline_table import OutlineTable
from alpa_mlir.passes.intra.outlines import Form, form_of, orders, outlines
from alpa_mlir.passes.intra.program import OpKind, OpRecord, TensorType
from alpa_mlir.passes.intra.rules import ResultLike, Rules, obeying
from alpa_mlir.passes.local.steps import Step, ending_steps

STORED = 1e-3
"""Rule C14: of equally fast plans the one that stores less: local bytes / memory bandwidth / 1000 per stored value."""


@dataclass(frozen=True)
class Strategy:
    """One way to run an op: axes per factor, shardings needed and given, and what it costs once.

    `partial` are the result's shardings before the partial sums end; `ending` the collectives that end them.
    """

    factor_axes: tuple[tuple[str, ...], ...]
    operands: tuple[Sharding, ...]
    results: tuple[Sharding, ...]
    partial: tuple[Sharding, ...]
    compute: float
    communication: float

    @property
    def ending(self) -> tuple[Step, ...]:
        """The collectives that end partial sums, of all results."""
        pairs = zip(self.partial, self.results, strict=True)
        return tuple(step for before, after in pairs for step in ending_steps(before, after))


@dataclass(frozen=True, eq=False)
class StrategySet:
    """The strategies of a node as arrays: sharding numbers per operand and result, seconds, bytes.

    operands[k][i], results[k][i]: number (in the mesh's `ReshardTable`) of operand k's, result k's sharding;
    seconds[i]: compute plus ending; bytes[k][i]: local bytes of result k.
    """

    strategies: Sequence[Strategy]
    operands: tuple[Ids, ...]
    results: tuple[Ids, ...]
    seconds: Matrix
    bytes: tuple[Matrix, ...]

    def __len__(self) -> int:
        return len(self.strategies)

    @cached_property
    def held(self) -> Matrix:
        """Local bytes of all results, per strategy."""
        result: Matrix = np.sum(self.bytes, axis=0) if self.bytes else np.zeros(len(self.strategies))
        return result

    @cached_property
    def least_held(self) -> float:
        """Local bytes of the smallest strategy."""
        return float(self.held.min())


@dataclass(frozen=True)
class EdgeKind:
    """What equal edges share: `size` bytes of a producer's result are a consumer's operand, `weight` times a step."""

    producer: StrategySet
    result: int
    consumer: StrategySet
    operand: int
    size: float
    weight: int
    function: str
    """The function whose runs the weight counts."""


@dataclass
class Enumerator:
    """Makes strategy sets for one mesh; equal ops, values and edges share one set, one matrix (content-keyed cache)."""

    links: MeshLinks
    cluster: Cluster
    table: ReshardTable = field(init=False)
    edge_kinds: list[EdgeKind] = field(default_factory=list)
    _ops: dict[tuple[OpKind, bool, tuple[int, ...], Rules], StrategySet] = field(default_factory=dict)
    _tables: dict[tuple[Form, bool, tuple[int, ...], bool], OutlineTable] = field(default_factory=dict)
    _values: dict[tuple[object, ...], StrategySet] = field(default_factory=dict)
    _edges: dict[EdgeKind, int] = field(default_factory=dict)
    _seconds: dict[int, Matrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = ReshardTable(self.links)

    @property
    def content(self) -> tuple[object, ...]:
        """All that prices depend on: links, speeds, without names and without how much memory there is."""
        return self.links.content, self.links.memory_bandwidth, replace(self.cluster, name="", first=0, memory=0)

    def edge(self, kind: EdgeKind) -> int:
        """The number of a kind of edge in `edge_kinds`."""
        found = self._edges.get(kind)
        if found is None:
            found = self._edges[kind] = len(self.edge_kinds)
            self.edge_kinds.append(kind)
        return found

    def edge_seconds(self, number: int) -> Matrix:
        """Seconds of a step [producer's strategies, consumer's strategies] that resharding over such an edge takes."""
        found = self._seconds.get(number)
        if found is None:
            kind = self.edge_kinds[number]
            sources, targets = kind.producer.results[kind.result], kind.consumer.operands[kind.operand]
            found = self._seconds[number] = kind.weight * self.table.matrix(sources, targets, kind.size)
        return found

    @property
    def mesh(self) -> Mesh:
        """The mesh that strategies are made for."""
        return self.links.mesh

    def of_op(
        self, op: OpRecord, partial: bool = False, carried: tuple[int, ...] = (), rules: Rules = ()
    ) -> StrategySet:
        """The strategies of an op that obey the rules; `partial`: also those that leave its sums to be ended later,
        `carried`: also those that take these operands partial (the op is linear in them).

        `Clash` where no strategy obeys them all.
        """
        key = (op.kind, partial, carried, rules)
        found = self._ops.get(key)
        if found is None:
            found = self._ops[key] = self._of_op(op, partial, carried, rules)
        return found

    def _of_op(self, op: OpRecord, partial: bool, carried: tuple[int, ...], rules: Rules) -> StrategySet:
        made = op_strategies(op, self, partial, carried, _pins(rules))
        if rules:
            strategies = list(made)
            place = {id(s): n for n, s in enumerate(strategies)}
            made = made.only(np.array([place[id(s)] for s in obeying(strategies, rules)], dtype=np.int64))
        if not made.table.distinct:
            made = made.only(made.table.undominated(made.rows, made.seconds))
        table, rows = made.table, made.rows
        outline = table.outline[rows]
        return StrategySet(
            made,
            tuple([numbers[outline] for numbers in table.operands]),
            tuple([numbers[rows] for numbers in table.results]),
            made.seconds,
            tuple([t.bytes / parts[rows] for t, parts in zip(op.result_types, table.held, strict=True)]),
        )

    def outline_table(self, op: OpRecord, partial: bool, carried: tuple[int, ...], any_order: bool) -> OutlineTable:
        """The outlines of an op on this mesh; `any_order`: axes on one factor in any order."""
        key = (form_of(op.kind), partial, carried, any_order)
        found = self._tables.get(key)
        if found is None:
            every = outlines(op.kind, _real_axes(self.mesh), partial, carried, any_order)
            found = self._tables[key] = OutlineTable.of(every, self.mesh, self.table)
        return found

    def of_value(
        self, kind: TensorType, incoming: bool = False, partial: bool = False, rules: Rules = ()
    ) -> StrategySet:
        """The shardings of a stored value that obey the rules; `incoming` prices the transfer from another stage,
        `partial` allows addends that are summed later. `Clash` where no sharding obeys them all."""
        key = (kind, incoming, partial, rules)
        found = self._values.get(key)
        if found is None:
            shardings = value_shardings(kind.shape, self.mesh, _pins(rules))
            if partial:
                shardings = [Sharding(s.dims, p) for s in shardings for p in _subsets(s, self.mesh)]
            strategies = [self._held(s, kind, incoming) for s in shardings]
            found = self._values[key] = self._arrays(obeying(strategies, rules), (kind,))
        return found

    def of_copy(self, kind: TensorType, made: Ids) -> StrategySet:
        """All shardings in which products may share a value: any, or one of those (`made`) that its maker gives."""
        numbers = tuple(int(n) for n in np.unique(made))
        key = (kind, numbers)
        found = self._values.get(key)
        if found is None:
            own = sorted((s for s in map(self.table.sharding, numbers) if not s.partial), key=self._place)
            shardings = dict.fromkeys([*own, *value_shardings(kind.shape, self.mesh)])
            strategies = [Strategy((), (s,), (s,), (s,), 0.0, 0.0) for s in shardings]
            found = self._values[key] = self._arrays(strategies, (kind,))
        return found

    def _place(self, sharding: Sharding) -> tuple[tuple[int, ...], ...]:
        """Where a sharding stands among others, whatever this enumerator met first: labels are remembered, and must
        mean the same on equal meshes."""
        axes = [name for name, _ in self.mesh.axes]
        return tuple(tuple(axes.index(a) for a in dim) for dim in sharding.dims)

    def _held(self, sharding: Sharding, kind: TensorType, incoming: bool) -> Strategy:
        seconds = transfer_cost(sharding, self.links).at(kind.bytes) if incoming else 0.0
        seconds += STORED * kind.bytes / self.mesh.extent(sharding.axes) / self.cluster.memory_speed
        return Strategy((), (sharding,), (sharding,), (sharding,), 0.0, seconds)

    def _arrays(self, strategies: list[Strategy], types: tuple[TensorType, ...]) -> StrategySet:
        strategies = undominated(strategies)
        number, mesh = self.table.number, self.mesh
        first = strategies[0]
        return StrategySet(
            tuple(strategies),
            tuple(np.array([number(s.operands[k]) for s in strategies]) for k in range(len(first.operands))),
            tuple(np.array([number(s.results[k]) for s in strategies]) for k in range(len(first.results))),
            np.array([s.compute + s.communication for s in strategies]),
            tuple(
                np.array([t.bytes / mesh.extent(s.results[k].axes) for s in strategies]) for k, t in enumerate(types)
            ),
        )


def undominated(strategies: list[Strategy]) -> list[Strategy]:
    """Of strategies with equal operand and result shardings only the cheapest (the first of equals)."""
    best: dict[tuple[object, ...], Strategy] = {}
    for s in strategies:
        key = (s.operands, s.results)
        if key not in best or s.compute + s.communication < best[key].compute + best[key].communication:
            best[key] = s
    return list(best.values())


def value_shardings(shape: tuple[int, ...], mesh: Mesh, any_order: bool = False) -> list[Sharding]:
    """All shardings of a shape that divide it, each axis on one dimension or none, in mesh order or in any."""
    axes = _real_axes(mesh)
    found = []
    for places in product(range(-1, len(shape)), repeat=len(axes)):
        dims = tuple(tuple(a for a, p in zip(axes, places, strict=True) if p == d) for d in range(len(shape)))
        if Sharding(dims).divides(shape, mesh):
            found += [Sharding(turned) for turned in (orders(dims) if any_order else [dims])]
    return found


def _pins(rules: Rules) -> bool:
    """Whether some rule asks for certain shardings, which may name axes in any order."""
    return any(isinstance(r, ResultLike) for r in rules)


def _subsets(sharding: Sharding, mesh: Mesh) -> list[tuple[str, ...]]:
    """Sets of axes over which a value of this sharding may be partial besides."""
    free = [a for a in sorted(_real_axes(mesh)) if a not in sharding.axes]
    return [
        tuple(a for a, on in zip(free, bits, strict=True) if on) for bits in product((False, True), repeat=len(free))
    ]


def _real_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(name for name, size in mesh.axes if size > 1)


@dataclass(frozen=True, eq=False)
class MadeStrategies(Sequence[Strategy]):
    """Strategies of an op, each made where it is asked for: `rows` of a table, and what these cost."""

    table: OutlineTable
    rows: Ids
    compute: Matrix
    communication: Matrix

    @property
    def seconds(self) -> Matrix:
        """What each costs once."""
        return self.compute + self.communication

    def only(self, places: Ids) -> MadeStrategies:
        """Those at these places."""
        return MadeStrategies(self.table, self.rows[places], self.compute[places], self.communication[places])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Strategy: ...

    @overload
    def __getitem__(self, place: slice) -> list[Strategy]: ...

    def __getitem__(self, place: int | slice) -> Strategy | list[Strategy]:
        if isinstance(place, slice):
            return [self[k] for k in range(len(self))[place]]
        row = int(self.rows[place])
        outline = self.table.outlines[int(self.table.outline[row])]
        results = self.table.endings[row]
        costs = float(self.compute[place]), float(self.communication[place])
        return Strategy(outline.held, outline.operands, results, outline.partial, *costs)


def op_strategies(
    op: OpRecord, enumerator: Enumerator, partial: bool, carried: tuple[int, ...], any_order: bool
) -> MadeStrategies:
    """All strategies of an op (see `Enumerator.of_op`); `any_order`: with axes on one factor in any order."""
    table = enumerator.outline_table(op, partial, carried, any_order)
    rows = table.possible(op.factors, op.result_types[0].shape if op.result_types else ())
    seconds = np.zeros(len(rows))
    for kind, start, per_byte in zip(op.result_types, table.start, table.per_byte, strict=True):
        seconds = seconds + (start[rows] + per_byte[rows] * kind.bytes)
    return MadeStrategies(table, rows, _compute(op, table, table.outline[rows], enumerator.cluster), seconds)


def _compute(op: OpRecord, table: OutlineTable, outline: Ids, cluster: Cluster) -> Matrix:
    """Seconds of an op's local piece under these outlines."""
    nothing = np.zeros(len(outline))
    if not op.result_types or op.is_source:
        return nothing
    read = [t.bytes / parts[outline] for t, parts in zip(op.operand_types, table.reads, strict=True)]
    written = [t.bytes / parts[outline] for t, parts in zip(op.result_types, table.written, strict=True)]
    flops = nothing
    if op.kind.compute == "product":
        whole = product_flops(op.factors, [t.shape for t in op.operand_types], op.result_types[0].shape)
        flops = whole / table.split[outline]
    traffic = op.kind.traffic
    computed = traffic.runs * sum(read[:1] if op.kind.compute == "reduction" else written)
    dtype = op.operand_types[0].dtype if op.operand_types else op.result_types[0].dtype
    moved = traffic.read_bytes(read, written, np.minimum), traffic.written_bytes(written)
    seconds: Matrix = compute_seconds(cluster, dtype, flops, *moved, computed, np.maximum) + nothing
    return seconds
