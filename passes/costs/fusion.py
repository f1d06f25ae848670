"""What moves through memory when a program's ops are fused into kernels: the traffic of each op.

A kernel reads values that lie in memory, computes what it can in registers, and writes what others need from memory.
Values in memory are arguments, results of ops that run alone and of reductions, and among those computed point by
point (``dialect/kernels.py``): what an op that runs alone reads, what leaves the fragment, and

    (T1) a value is stored where that moves fewer bytes than computing it again in each kernel that needs it

A kernel's *level* is the number of kernels that must end before it can start.  Whatever is computed at one level from
the same value is one kernel and reads it once (XLA's sibling fusion), but for reductions over different dimensions,
which are kernels of their own:

    (T2) a value in memory is read once per level that uses it, and once per op that runs alone
    (T3) an op that takes a part (slice, gather) reads that part

So each op has weights, how often it moves its operands and results, and how often it is computed. They depend on the
program alone, not on shardings: seconds stay a sum over ops, which the intra-operator program needs.

    softmax(x) = m: max(x) | s: sum(exp(x - m)) | exp(x - m) / s       x is read three times, the quotient written
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlib.mlir import ir

from alpa_mlir.dialect.factors import OpFactors, factors_in
from alpa_mlir.dialect.kernels import ALONE, POINT, SUM, VIEW, kernel_kind, takes_part

FREE = "free"
"""The kind of constants and what is spread out of scalars."""
MOST_INPUTS = 32
"""A kernel that would read more values than this is cut in two (XLA limits the parameters of a fusion as well)."""

MOST_OPS = 256
"""Values that take more ops than this are not computed again."""

Kernel = tuple[int, tuple[int, ...]]
"""A level, and the dimensions that a reduction sums over (none: point by point)."""


@dataclass(frozen=True)
class Traffic:
    """How often an op moves each operand and each result through memory, and is computed element by element.

    `part`: of operand 0 it reads as much as its result holds (T3); `view`: the result lies where operand 0 does.
    """

    reads: tuple[float, ...]
    writes: tuple[float, ...]
    runs: float
    part: bool = False
    view: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether results are computed where they are needed, and never lie in memory."""
        return not any(self.writes) and (self.runs > 0 or self.view)

    def __add__(self, other: Traffic) -> Traffic:
        """Of an op that two fragments compute."""
        reads = tuple(a + b for a, b in zip(self.reads, other.reads, strict=True))
        writes = tuple(a + b for a, b in zip(self.writes, other.writes, strict=True))
        return Traffic(reads, writes, self.runs + other.runs, self.part, self.view)

    def read_bytes(self, operands: Sequence[Any], results: Sequence[Any], smaller: Any = min) -> Any:
        """Local bytes that are read, where operands and results have these; with `smaller` numpy's minimum these may be
        arrays, of many pieces."""
        read = [smaller(operands[0], results[0]), *operands[1:]] if self.part else operands
        return sum(times * size for times, size in zip(self.reads, read, strict=True))

    def written_bytes(self, results: Sequence[Any]) -> Any:
        """Local bytes that are written, likewise."""
        return sum(times * size for times, size in zip(self.writes, results, strict=True))


UNMOVED = Traffic((), (), 0.0)
"""The traffic of an op without operands and results."""


@dataclass(frozen=True)
class FusedOp:
    """One op: values by number. `dims`: dimensions that a reduction sums over; `part`: it takes a part of operand 0."""

    kind: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    dims: tuple[int, ...] = ()
    part: bool = False


def traffic_of(ops: Sequence[FusedOp], size: Sequence[float], leaving: Sequence[int]) -> list[Traffic]:
    """The traffic of each op of a fragment. `size`: bytes of each value; `leaving`: values used outside of it."""
    fragment = _Fragment(ops, size, leaving)
    fragment.settle()
    return fragment.weigh()


class FusedOps:
    """Makes `FusedOp`s, looking at equal ops once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int, int], tuple[str, tuple[int, ...], bool]] = {}

    def make(
        self, op: ir.Operation, factors: OpFactors, operands: tuple[int, ...], results: tuple[int, ...], free: bool
    ) -> FusedOp:
        """An op whose operands (with what its regions use) and results have these numbers; `free`: see `FREE`.

        `factors` must stay alive as long as this object: they are told apart by identity.
        """
        if free:
            return FusedOp(FREE, operands, results)
        key = (op.name, id(factors), len(operands))
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = _described(op, factors)
        return FusedOp(found[0], operands, results, *found[1:])


def _described(op: ir.Operation, factors: OpFactors) -> tuple[str, tuple[int, ...], bool]:
    kind = kernel_kind(op, factors)
    dims: tuple[int, ...] = ()
    if kind == SUM:
        kept = factors_in(factors.results)
        dims = tuple(d for d, made_of in enumerate(factors.operands[0]) if not kept.intersection(made_of))
    return kind, dims, takes_part(op)


def phased_traffic(
    ops: Sequence[FusedOp], phases: Sequence[str], size: Sequence[float], leaving: Sequence[int], at_hand: set[int]
) -> list[Traffic]:
    """The traffic of each op of a function whose phases will be functions of their own (`alpa-split`).

    What one phase needs of another lies in memory, or is computed in both where less must be kept for that: values
    `at_hand` are there anyway.
    """
    names = list(dict.fromkeys(phases))
    if len(names) == 1:
        return traffic_of(ops, size, leaving)
    phased = _Phased(ops, phases, size, at_hand)
    members = {name: phased.members(name) for name in names}
    outside: dict[str, list[int]] = {name: [] for name in names}
    for v in dict.fromkeys([*leaving, *phased.kept]):
        if phased.maker[v] >= 0:
            outside[phases[phased.maker[v]]].append(v)
    found: dict[int, Traffic] = {}
    for name in names:
        parts = traffic_of([ops[n] for n in members[name]], size, outside[name])
        for n, traffic in zip(members[name], parts, strict=True):
            found[n] = found[n] + traffic if n in found else traffic
    return [found[n] for n in range(len(ops))]


class _Phased:
    """Which ops each phase computes: its own, and what is cheaper computed again than kept."""

    def __init__(self, ops: Sequence[FusedOp], phases: Sequence[str], size: Sequence[float], at_hand: set[int]) -> None:
        self.ops, self.phases = ops, phases
        self.maker = [-1] * len(size)
        self.again: list[bool] = []
        self.kept: dict[int, None] = {}
        leaves: dict[int, frozenset[int]] = {}
        for n, op in enumerate(ops):
            for result in op.results:
                self.maker[result] = n
            found: frozenset[int] = frozenset()
            if op.kind in (POINT, VIEW):
                found = frozenset().union(*(leaves.get(v, frozenset((v,))) for v in op.operands)) - at_hand
            small = sum(size[v] for v in found) < sum(size[r] for r in op.results)
            self.again.append(op.kind == FREE or (op.kind in (POINT, VIEW) and len(op.results) == 1 and small))
            if self.again[-1]:
                leaves[op.results[0]] = found

    def members(self, phase: str) -> list[int]:
        """The ops that a phase computes, in order; fills in what it needs kept."""
        found = {n: None for n, p in enumerate(self.phases) if p == phase}
        pending = list(found)
        while pending:
            for v in self.ops[pending.pop()].operands:
                n = self.maker[v]
                if n < 0 or n in found:
                    continue
                if self.again[n]:
                    found[n] = None
                    pending.append(n)
                else:
                    self.kept[v] = None
        return sorted(found)


class _Fragment:
    """Values that are views of others are known by the number of those (`origin`)."""

    def __init__(self, ops: Sequence[FusedOp], size: Sequence[float], leaving: Sequence[int]) -> None:
        self.ops, self.size = ops, size
        self.origin = origin = list(range(len(size)))
        self.maker = [-1] * len(size)
        self.point = [False] * len(size)
        """Whether a value is computed point by point in this fragment."""
        self.level = [0] * len(size)
        """Of a value in memory the first level that can read it, of others that at which it can be computed."""
        self.sources: list[list[int]] = []
        """What each op reads, one entry per operand that costs something."""
        self.stored: frozenset[int] = frozenset()
        self.kernels: list[frozenset[Kernel]] = [_NONE] * len(ops)
        """The kernels that compute an op."""
        free: set[int] = set()
        wanted: set[int] = set()
        for n, op in enumerate(ops):
            read: list[int] = []
            for result in op.results:
                self.maker[result] = n
            if op.kind == VIEW:
                for k, result in enumerate(op.results):
                    origin[result] = origin[op.operands[min(k, len(op.operands) - 1)]]
            elif op.kind == FREE:
                free.update(op.results)
            else:
                read = [v for v in [origin[v] for v in op.operands] if v not in free]
                self._place(op, read)
                if op.kind != POINT:
                    wanted.update(op.results)
                if op.kind == ALONE:
                    wanted.update(read)
            self.sources.append(read)
        self.free = free
        self.wanted = frozenset((wanted | {origin[v] for v in leaving}) - free)
        self.better: set[int] = set()
        """Values that are stored by T1."""

    def _place(self, op: FusedOp, read: Sequence[int]) -> None:
        """The level of an op: what is computed at one is at hand in its kernel, but not for an op that runs alone."""
        at = 0
        for v in read:
            at = max(at, self.level[v] + (op.kind == ALONE and self.point[v]))
        for result in op.results:
            self.point[result] = op.kind == POINT
            self.level[result] = at if op.kind == POINT else at + 1

    def _inputs(self, value: int, stored: Container[int]) -> set[int] | None:
        """The values in memory that a value is computed from; None: too many."""
        found: set[int] = set()
        pending, seen = [self.maker[value]], {self.maker[value]}
        while pending:
            for v in self.sources[pending.pop()]:
                if not self.point[v] or v in stored:
                    found.add(v)
                elif self.maker[v] not in seen:
                    seen.add(self.maker[v])
                    pending.append(self.maker[v])
            if len(found) > MOST_INPUTS or len(seen) > MOST_OPS:
                return None
        return found

    def settle(self) -> None:
        """The kernels of each op, and what is stored. What is stored decides what it would take to compute other
        values again: where that matters a second look is taken."""
        self._need()
        if self.better:
            self._need()

    def _need(self) -> None:
        """In reverse; a value that is better stored is, from then on (T1)."""
        before = self.wanted | self.better
        self.better = set()
        needed: dict[int, frozenset[Kernel]] = {}
        for n in range(len(self.ops) - 1, -1, -1):
            op = self.ops[n]
            if op.kind in (VIEW, FREE):
                continue
            if op.kind == POINT:
                kernels = self._kernels_of(op, needed, before)
            else:
                kernels = frozenset([(self.level[op.results[0]] - 1, op.dims)])
            self.kernels[n] = kernels
            if op.kind != ALONE:
                for v in self.sources[n]:
                    there = needed.get(v)
                    needed[v] = kernels if there is None or there is kernels else there | kernels
        self.stored = self.wanted | self.better

    def _kernels_of(
        self, op: FusedOp, needed: Mapping[int, frozenset[Kernel]], before: Container[int]
    ) -> frozenset[Kernel]:
        """The kernels that compute an op point by point."""
        kernels: frozenset[Kernel] = _NONE
        for result in op.results:
            users = needed.get(result, _NONE)
            if result not in self.wanted and len(users) > 1 and self._is_better_stored(result, users, before):
                self.better.add(result)
            if result in self.wanted or result in self.better:
                users = frozenset([(self.level[result], ())])
            kernels = kernels | users if kernels else users
        return kernels

    def _is_better_stored(self, value: int, users: frozenset[Kernel], before: Container[int]) -> bool:
        times = _count(users)
        if times < 2:
            return False
        found = self._inputs(value, before)
        if found is None:
            return True
        again = times * sum(self.size[v] for v in found)
        later = _count(k for k in users if k[0] != self.level[value])
        return again > again / times + self.size[value] * (1 + later)

    def weigh(self) -> list[Traffic]:
        """The weights of all ops (T2, T3)."""
        readers: dict[int, list[tuple[int, int]]] = {}
        reads = [[0.0] * len(op.operands) for op in self.ops]
        for n, op in enumerate(self.ops):
            if op.kind in (VIEW, FREE):
                continue
            for k, operand in enumerate(op.operands):
                v = self.origin[operand]
                if v in self.free or (self.point[v] and v not in self.stored):
                    continue
                if op.kind == ALONE:
                    reads[n][k] = 1.0
                elif op.part and k == 0:
                    reads[n][k] = float(_count(self._reading(n, v)))
                else:
                    readers.setdefault(v, []).append((n, k))
        for v, places in readers.items():
            self._share(v, places, reads)
        return [self._traffic(n, op, reads[n]) for n, op in enumerate(self.ops)]

    def _reading(self, n: int, value: int) -> Iterable[Kernel]:
        """The kernels of an op that read a value: not those of the kernel that stores it."""
        if not self.point[value]:
            return self.kernels[n]
        return [k for k in self.kernels[n] if k[0] != self.level[value]]

    def _share(self, value: int, places: Sequence[tuple[int, int]], reads: list[list[float]]) -> None:
        """Reads of a value at one level are shared evenly by the operands that want it there."""
        found: dict[int, dict[tuple[int, int], None]] = {}
        kernels: dict[int, set[Kernel]] = {}
        for place in places:
            for kernel in self._reading(place[0], value):
                found.setdefault(kernel[0], {})[place] = None
                kernels.setdefault(kernel[0], set()).add(kernel)
        for level, sharing in found.items():
            part = _count(kernels[level]) / len(sharing)
            for n, k in sharing:
                reads[n][k] += part

    def _traffic(self, n: int, op: FusedOp, reads: Sequence[float]) -> Traffic:
        if op.kind in (VIEW, FREE):
            return Traffic(tuple(reads), (0.0,) * len(op.results), 0.0, op.part, op.kind == VIEW)
        written = tuple([float(r in self.stored) for r in op.results])
        runs = _count(self.kernels[n]) if op.kind != ALONE else 0
        return Traffic(tuple(reads), written, float(runs), op.part)


_NONE: frozenset[Kernel] = frozenset()


def _count(kernels: Iterable[Kernel]) -> int:
    """How many kernels: at one level, what goes point by point joins a reduction."""
    sums: dict[int, int] = {}
    for level, dims in kernels:
        sums[level] = sums.get(level, 0) + (1 if dims else 0)
    return sum([n or 1 for n in sums.values()])
