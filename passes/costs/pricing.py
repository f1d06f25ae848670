"""What a sharded function costs, read from its ops and the shardings on their values.

Nothing is decided here: every op of levels 5 and 6 can be read by itself (docs/ir.md), so its local piece, the
collectives that end its partial sums, and the reshards between ops are known, and each is priced by the rule
that also chose it (C1 to C12, docs/costs.md).  Memory: the most bytes per device that values made inside the
function hold at once, in program order (M2, M4; M5: a result that takes over an argument's buffer holds none), but
for collectives, which XLA starts early and ends late (M8, M9), and for copies that a compiler makes (M11, M12).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import PASS, OpFactors, read_factors, shape_of
from alpa_mlir.dialect.kernels import POINT, VIEW, copied_operands
from alpa_mlir.dialect.rounds import MARKS, STACK, Round, find_rounds, trips_by_op
from alpa_mlir.dialect.sharding import SHARDING, Sharding, argument_attributes, op_shardings, read_sharding
from alpa_mlir.dialect.staged import element_bytes
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.communication import step_cost
from alpa_mlir.passes.costs.compute import compute_kind, compute_seconds, product_flops
from alpa_mlir.passes.costs.fusion import FusedOp, FusedOps, Traffic, traffic_of
from alpa_mlir.passes.costs.links import MeshLinks
from alpa_mlir.passes.local.device_placement import Placements
from alpa_mlir.passes.local.steps import Step, reshard_steps
from alpa_mlir.passes.local.time_analysis import captures

RESHARD = "sdy.reshard"
NOTHING = OpFactors((), (), (), ())
"""The factors of an op without results."""


@dataclass(frozen=True)
class FunctionCost:
    """Seconds by what takes them (`product`, `fused`, `all_reduce x`, …), and the most bytes held inside."""

    seconds_of: tuple[tuple[str, float], ...]
    working_bytes: float

    @property
    def seconds(self) -> float:
        """Of one run of the function."""
        return sum(seconds for _, seconds in self.seconds_of)


@dataclass(frozen=True)
class _Value:
    """A value's whole shape, element type, and sharding."""

    shape: tuple[int, ...]
    element: str
    sharding: Sharding

    @property
    def bytes(self) -> float:
        return prod(self.shape) * element_bytes(self.element)


@dataclass(frozen=True)
class _OpCost:
    """Seconds by what takes them; for each result the local bytes of the sum that a collective ends and of the copy
    that it works on, 0 where there is none."""

    seconds: tuple[tuple[str, float], ...]
    copies: tuple[tuple[float, float], ...]


def price_function(function: ir.Operation, links: MeshLinks, cluster: Cluster) -> FunctionCost:
    """The cost of a sharded function with one block, all of whose values lie on the mesh of `links`.

    CompileError where an op's shardings contradict one another (rules P1 to P6).
    """
    pricer = _Pricer(function, links, cluster)
    pricer.run()
    return FunctionCost(tuple(sorted(pricer.seconds.items())), _peak(function, pricer))


class _Pricer:
    """Walks the ops of one function and adds up seconds by kind."""

    def __init__(self, function: ir.Operation, links: MeshLinks, cluster: Cluster) -> None:
        self.links, self.cluster = links, cluster
        self.block = function.regions[0].blocks[0]
        self.factors = read_factors(function)
        self.placements = Placements(self.factors, links.mesh)
        self.values: dict[ir.Value, _Value] = {}
        self.equal: dict[tuple[ir.Type, Sharding], _Value] = {}
        self.known: dict[tuple[object, ...], _OpCost] = {}
        """What ops cost, by the identity of their factors and values and by their traffic."""
        self.free: set[int] = set()
        """The ops that are free, by `op_id`."""
        self.unended: dict[ir.Value, float] = {}
        """Local bytes of the sums that collectives end, by the value that they end in."""
        self.turned: dict[ir.Value, float] = {}
        """Local bytes of the copies that collectives work on, where they do not work on the value itself."""
        self.seconds: dict[str, float] = {}
        self.loops: list[Round] = []
        self.trips = 1
        """How often the op that is looked at runs: in a loop that stands as one round more than once."""
        self.traffic: dict[int, Traffic] = {}
        self.kinds: dict[int, str] = {}
        for value, entry in zip(self.block.arguments, argument_attributes(function), strict=True):
            self.values[value] = self._value(value, read_sharding(entry[SHARDING])[1])

    def run(self) -> None:
        """Price every op but the return."""
        self.traffic = self._traffic()
        ops = [view.operation for view in self.block.operations][:-1]
        self.loops = find_rounds(ops)
        for op, trips in zip(ops, trips_by_op(ops, self.loops), strict=True):
            self.trips = trips
            found = op_shardings(op)
            for value, sharding in zip(op.results, found[1] if found is not None else (), strict=True):
                self.values[value] = self._value(value, sharding)
            if op.name == RESHARD:
                source, target = self.values[op.operands[0]], self.values[op.results[0]]
                steps = reshard_steps(source.sharding, target.sharding, self.links.mesh)
                for name, seconds in self._steps(steps, target.bytes):
                    self._add(name, seconds)
                if self._turns(steps):
                    self.turned[op.results[0]] = target.bytes / self.links.mesh.extent(target.sharding.axes)
            elif len(op.results):
                number = op_id(op)
                if number not in self.free:
                    self._op(op, self.factors[number], self.traffic[number])

    def _value(self, value: ir.Value, sharding: Sharding) -> _Value:
        """A value with its sharding; equal ones are one object."""
        key = (value.type, sharding)
        found = self.equal.get(key)
        if found is None:
            found = self.equal[key] = _value(value, sharding)
        return found

    def _traffic(self) -> dict[int, Traffic]:
        """What the ops move; reshards are taken for views: what they move is priced by itself (C2 to C6)."""
        numbers = {value: n for n, value in enumerate(self.block.arguments)}
        ops = [view.operation for view in self.block.operations]
        make, fused = FusedOps().make, list[FusedOp]()
        for op in ops[:-1]:
            for value in op.results:
                numbers[value] = len(numbers)
            read, made = (tuple(numbers[v] for v in values) for values in (_inputs(op), op.results))
            factors = self.factors.get(op_id(op), NOTHING)
            free = is_free(factors, op.operands, op.results)
            if free:
                self.free.add(op_id(op))
            fused.append(make(op, factors, read, made, free))
        leaving = [numbers[v] for v in ops[-1].operands]
        self.kinds = {op_id(op): f.kind for op, f in zip(ops, fused, strict=False)}
        found = traffic_of(fused, [_whole_bytes(v) for v in numbers], leaving)
        return {op_id(op): t for op, t in zip(ops, found, strict=False)}

    def _op(self, op: ir.Operation, factors: OpFactors, traffic: Traffic) -> None:
        operands, results = [self.values[v] for v in op.operands], [self.values[v] for v in op.results]
        taken = [self.values[v] for v in captures(op)] if len(op.regions) else []
        key = (id(factors), traffic, *map(id, operands), None, *map(id, taken), None, *map(id, results))
        found = self.known.get(key)
        if found is None:
            found = self._op_cost(op, factors, traffic, operands, taken, results)
            # Whether an op may take partial operands depends on more than its factors.
            if not any(v.sharding.partial for v in operands):
                self.known[key] = found
        for name, seconds in found.seconds:
            self._add(name, seconds)
        for made, (unended, turned) in zip(op.results, found.copies, strict=True):
            if unended:
                self.unended[made] = unended
            if turned:
                self.turned[made] = turned

    def _op_cost(
        self,
        op: ir.Operation,
        factors: OpFactors,
        traffic: Traffic,
        operands: Sequence[_Value],
        taken: Sequence[_Value],
        results: Sequence[_Value],
    ) -> _OpCost:
        mesh = self.links.mesh
        placed = self.placements.of(op, [v.sharding for v in operands], [v.sharding for v in results])
        kind = compute_kind(factors)
        read = [v.bytes / mesh.extent(v.sharding.axes) for v in (*operands, *taken)]
        written = [v.bytes / mesh.extent(natural.axes) for v, natural in zip(results, placed.natural, strict=True)]
        split = prod(mesh.extent(axes) for axes in placed.axes)
        flops = 0.0
        if kind == "product":
            flops = product_flops(factors, [v.shape for v in operands], results[0].shape) / split
        element = (operands or results)[0].element
        computed = traffic.runs * sum(read[:1] if kind == "reduction" else written)
        moved = traffic.read_bytes(read, written), traffic.written_bytes(written)
        seconds = [(kind, compute_seconds(self.cluster, element, flops, *moved, computed))]
        copies = []
        for value, natural, ending in zip(results, placed.natural, placed.endings, strict=True):
            seconds += self._steps(ending, value.bytes)
            unended = value.bytes / mesh.extent(natural.axes) if ending else 0.0
            copies.append((unended, unended if self._turns(ending) else 0.0))
        return _OpCost(tuple(seconds), tuple(copies))

    def _steps(self, steps: Sequence[Step], size: float) -> list[tuple[str, float]]:
        """What steps cost: (kind and axes, seconds)."""
        names = [" ".join((step.kind, *step.axes)) if step.kind != "slice" else "slice" for step in steps]
        return [(name, step_cost(step, self.links).at(size)) for name, step in zip(names, steps, strict=True)]

    def _turns(self, steps: Sequence[Step]) -> bool:
        """Whether a copy is made in which the scattered or gathered dimension comes first (rule M11)."""
        return self.cluster.operand_copies and any(s.kind != "slice" and s.dim > 0 for s in steps)

    def _add(self, name: str, seconds: float) -> None:
        if seconds > 0:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.trips * seconds


def is_free(factors: OpFactors, operands: Iterable[ir.Value], results: Iterable[ir.Value]) -> bool:
    """Constants, iotas, and what is spread out of scalars: every device makes its part for nothing."""
    if not all(k == PASS for k in factors.kinds):
        return False
    read, made = [shape_of(v) for v in operands], [shape_of(v) for v in results]
    return not any(read) and (not read or any(made))


def _inputs(op: ir.Operation) -> list[ir.Value]:
    """The operands, and what regions use of the function."""
    return [*op.operands, *(captures(op) if len(op.regions) else ())]


def _whole_bytes(value: ir.Value) -> float:
    shape = shape_of(value)
    return 0.0 if shape is None else prod(shape) * element_bytes(str(ir.RankedTensorType(value.type).element_type))


def _value(value: ir.Value, sharding: Sharding) -> _Value:
    shape = shape_of(value)
    if shape is None:
        return _Value((0,), "i8", sharding)
    return _Value(shape, str(ir.RankedTensorType(value.type).element_type), sharding)


def _peak(function: ir.Operation, pricer: _Pricer) -> float:
    """Most local bytes of values made in the function, alive from their op to their last use in program order."""
    ops = [view.operation for view in pricer.block.operations]
    last_of, fused = _reach(ops, pricer)
    adopted, early = _adopted(function, ops[-1]), set(pricer.block.arguments)
    begins = {n: loop.ops[0] for loop in pricer.loops for n in loop.ops if ops[n].name == STACK}
    changes = [0.0] * (len(ops) + 1)

    def hold(size: float, first: int, last: int) -> None:
        changes[first] += size
        changes[last + 1] -= size

    for n, op in enumerate(ops[:-1]):
        gathered = _follows_arguments(op, early, pricer)
        for value in op.results:
            last = last_of[value]
            if gathered:
                early.add(value)
            if value in pricer.unended:
                leaves = all(op_id(use.owner.operation) == op_id(ops[-1]) for use in value.uses)
                hold(pricer.unended[value], n, last if leaves else n)
            hold(pricer.turned.get(value, 0.0), n, n)
            if value in adopted or value in fused:
                continue
            known = pricer.values[value]
            size = known.bytes / pricer.links.mesh.extent(known.sharding.axes)
            at_once = last == len(ops) - 1 or (gathered and op.name == RESHARD)
            hold(size, 0 if at_once else begins.get(n, n), last)
    if pricer.cluster.operand_copies:
        for size, first, end in _copies(ops, pricer):
            hold(size, first, end)
    now = most = 0.0
    for change in changes:
        now += change
        most = max(most, now)
    return most


def _follows_arguments(op: ir.Operation, early: set[ir.Value], pricer: _Pricer) -> bool:
    """Whether an op can run at once: it gathers or casts an argument, and nothing else is needed for it."""
    if len(op.operands) != 1 or op.operands[0] not in early or op.name in MARKS:
        return False
    return op.name == RESHARD or compute_kind(pricer.factors[op_id(op)]) in ("fused", "moved")


def _adopted(function: ir.Operation, terminator: ir.Operation) -> set[ir.Value]:
    """Results that take over the buffer of an argument."""
    donated = [e[alpa.DONATE] for e in argument_attributes(function) if alpa.DONATE in e]
    return {terminator.operands[int(ir.IntegerAttr(a).value)] for a in donated}


def _copies(ops: Sequence[ir.Operation], pricer: _Pricer) -> Iterator[tuple[float, int, int]]:
    """Copies of products' operands in other layouts (rule M11): local bytes, first and last op.

    Those of arguments are made at once, for they wait for nothing.
    """
    place_of = {value: n for n, op in enumerate(ops) for value in op.results}
    made: dict[tuple[ir.Value, int], list[int]] = {}
    for n, op in enumerate(ops):
        for k in copied_operands(op):
            made.setdefault((op.operands[k], k), []).append(n)
    for (value, _), users in made.items():
        known = pricer.values[value]
        size = known.bytes / pricer.links.mesh.extent(known.sharding.axes)
        yield size, _origin_place(value, place_of, pricer), users[-1]


def _origin_place(value: ir.Value, place_of: Mapping[ir.Value, int], pricer: _Pricer) -> int:
    """Where a value, or what it is a view of, is made; 0 for arguments."""
    while value in place_of and pricer.kinds[op_id(value.owner)] == VIEW:
        value = value.owner.operands[0]
    return place_of.get(value, 0)


def _reach(ops: Sequence[ir.Operation], pricer: _Pricer) -> tuple[dict[ir.Value, int], set[ir.Value]]:
    """Up to which op each value is needed, and the values that are never held: what is computed where it is needed
    (rule M4) keeps what it is computed from as long as itself.

    Where operands are copied (M11), sums are not kept either for those who can compute them again (M12): a value that
    is held for a product is computed again for other ops.
    """
    place_of = {op_id(op): n for n, op in enumerate(ops)}
    loop_of = {n: number for number, loop in enumerate(pricer.loops) for n in loop.ops}

    def end(user: ir.Operation, maker: int) -> int:
        """Up to where an op needs a value: what is made before a loop is read in its every round."""
        place = place_of[op_id(user)]
        loop = loop_of.get(place)
        return place if loop is None or loop == loop_of.get(maker) else pricer.loops[loop].ops[-1]

    last: dict[ir.Value, int] = {}
    again: dict[ir.Value, int] = {}
    """Up to which op a value that is computed point by point is computed again."""
    fused: set[ir.Value] = set()
    alone = pricer.cluster.operand_copies and all(size == 1 for _, size in pricer.links.mesh.axes)
    for n, op in reversed(list(enumerate(ops[:-1]))):
        for value in op.results:
            users = [alpa.outermost(use.owner.operation, pricer.block) for use in value.uses]
            ends = [max([end(u, n), *(last[r] for r in u.results if r in fused)]) for u in users]
            if alone:
                ends += [again[r] for u in users for r in u.results if r in again]
            last[value] = max(ends, default=n)
            if _is_fused_away(op, users, ops[-1], pricer):
                fused.add(value)
            elif pricer.kinds[op_id(op)] == POINT:
                points = [u for u in users if pricer.kinds.get(op_id(u)) == POINT]
                again[value] = max([last[r] if r in fused else again[r] for u in points for r in u.results], default=n)
    return last, fused


def _is_fused_away(op: ir.Operation, users: Sequence[ir.Operation], end: ir.Operation, pricer: _Pricer) -> bool:
    """Rule M4, and what costs nothing to make is not kept. A reshard reads and writes memory."""
    if op.name == RESHARD or any(op_id(user) == op_id(end) for user in users):
        return False
    number = op_id(op)
    if number in pricer.free:
        return True
    return pricer.traffic[number].is_fused and all(user.name != RESHARD for user in users)
