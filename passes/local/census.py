"""Which collectives a program holds: those its shardings ask for, those written in it, those XLA kept.

All three are lists of the same small value (kind, mesh axes, bytes of the result on one device), so that
*planned = executed* is an equality of lists.  XLA combines collectives of one kind and group into one with
several operands: those count singly again, as before combining.  An all-to-all of one value, which XLA writes
with one operand per device of its group, counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.local.collectives import COLLECTIVES, byte_size, exchanges
from alpa_mlir.passes.local.device_function import local_type, plan_function
from alpa_mlir.passes.local.steps import ALL_GATHER, ALL_TO_ALL, PERMUTE, SLICE

Axes = tuple[str, ...]
Group = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Collective:
    """One collective: its kind, the axes it joins devices along (mesh order), bytes of its result on one device."""

    kind: str
    axes: Axes
    bytes: int


@dataclass(frozen=True)
class CollectiveCount:
    """How many collectives of one kind a program holds and the bytes of their results on one device."""

    number: int = 0
    bytes: int = 0


def by_kind(collectives: Iterable[Collective]) -> dict[str, CollectiveCount]:
    """Numbers and bytes by kind, only those that occur, sorted."""
    found: dict[str, CollectiveCount] = {}
    for c in collectives:
        old = found.get(c.kind, CollectiveCount())
        found[c.kind] = CollectiveCount(old.number + 1, old.bytes + c.bytes)
    return dict(sorted(found.items()))


def planned_collectives(function: ir.Operation, mesh: Mesh) -> list[Collective]:
    """The collectives that the shardings of a function ask for, in program order; what the localiser will emit."""
    found = []
    for item in plan_function(function, mesh):
        chains = [item.steps] if item.placement is None else item.placement.endings
        for value, steps in zip(item.op.results, chains, strict=False):
            for step in steps:
                if step.kind != SLICE and mesh.extent(step.axes) > 1:
                    with item.op.location:
                        size = byte_size(local_type(value.type, step.after, mesh))
                    axes = _significant(step.axes, mesh)
                    if step.kind == PERMUTE:
                        axes = _crossed(exchanges(step.before, step.after, mesh), mesh)
                    found.append(Collective(step.kind, axes, size))
    return found


def _significant(axes: Axes, mesh: Mesh) -> Axes:
    return tuple(a for a in mesh.axis_names if a in axes and mesh.size(a) > 1)


def _crossed(pairs: Iterable[Iterable[int]], mesh: Mesh) -> Axes:
    """The axes along which some pair of devices differs."""
    pairs = [tuple(p) for p in pairs]

    def apart(i: int, j: int, axis: str) -> bool:
        stride, size = mesh.stride(axis), mesh.size(axis)
        return i // stride % size != j // stride % size

    return tuple(a for a in mesh.axis_names if any(apart(i, j, a) for i, j in pairs))


def written_collectives(root: ir.Operation, mesh: Mesh) -> list[Collective]:
    """The `stablehlo` collectives of a localised module or function, in order."""
    names = {f"stablehlo.{kind}": kind for kind in COLLECTIVES}
    axes = _AxesOf(mesh)
    found = []
    for op in walk(root.operation):
        if op.name in names:
            kind = names[op.name]
            rows = op.attributes["source_target_pairs" if kind == PERMUTE else "replica_groups"]
            groups = np.array(ir.DenseIntElementsAttr(rows)).tolist()
            size = sum(byte_size(v.type) for v in op.results)
            where = _crossed(groups, mesh) if kind == PERMUTE else axes.of(groups)
            found.append(Collective(kind, where, size))
    return found


def compiled_collectives(text: str, mesh: Mesh) -> list[Collective]:
    """The collectives of optimised HLO text, combined ones taken apart, in order."""
    return list(_in_hlo(text, mesh))


class _AxesOf:
    """Which axes a partition of the devices into groups stands for."""

    def __init__(self, mesh: Mesh) -> None:
        self.table: dict[frozenset[frozenset[int]], Axes] = {}
        real = [name for name, size in mesh.axes if size > 1]
        for count in range(len(real) + 1):
            for axes in combinations(real, count):
                self.table[frozenset(frozenset(g) for g in mesh.groups(axes))] = axes

    def of(self, groups: Iterable[Iterable[int]]) -> Axes:
        """The axes, or one made-up name where the groups are those of no axes."""
        rows = [tuple(g) for g in groups]
        key = frozenset(frozenset(g) for g in rows)
        return self.table.get(key, (f"groups {sorted(rows)}",))


_HLO_KIND = re.compile(r"= (.+?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(-start)?\((.*)")
_HLO_SHAPE = re.compile(r"\b([a-z]+)(\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")
_HLO_GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs)=(\{\{[\d,{}]*\}\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)"
)


def _in_hlo(text: str, mesh: Mesh) -> Iterator[Collective]:
    axes = _AxesOf(mesh)
    for match in _HLO_KIND.finditer(text):
        kind = match.group(2).replace("-", "_")
        sizes = [_hlo_bytes(*s) for s in _HLO_SHAPE.findall(match.group(1))]
        if match.group(3) and kind in (ALL_GATHER, PERMUTE):
            # An asynchronous start yields the operands, then the results.
            sizes = sizes[len(sizes) // 2 :]
        groups = _hlo_groups(match.group(4))
        where = _crossed(groups, mesh) if kind == PERMUTE else axes.of(groups)
        for size in [sum(sizes)] if kind == ALL_TO_ALL else sizes:
            yield Collective(kind, where, size)


def _hlo_groups(attributes: str) -> list[list[int]]:
    """Groups written out, `{{0,1},{2,3}}`, or as a transposed iota, `[2,2]<=[2,2]T(1,0)`."""
    found = _HLO_GROUPS.search(attributes)
    if found is None:
        return []
    written = found.group(1)
    if written.startswith("{"):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", written)]
    shape, source, turn = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", written).groups()  # type: ignore[union-attr]
    devices = np.arange(prod(_numbers(source))).reshape(_numbers(source))
    rows: list[list[int]] = devices.transpose(_numbers(turn) if turn else None).reshape(_numbers(shape)).tolist()
    return rows


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _hlo_bytes(letter: str, width: str, dims: str) -> int:
    each = 1 if letter == "pred" or not width else max(1, int(width) // 8)
    return each * prod(int(d) for d in dims.split(",") if d)


def table(collectives: Iterable[Collective]) -> dict[tuple[str, Axes, int], int]:
    """How often each (kind, axes, bytes) occurs, sorted."""
    return dict(sorted(Counter((c.kind, c.axes, c.bytes) for c in collectives).items()))
