"""A block as numbers, and the runs in which it repeats itself.

A model of many equal layers is traced layer by layer, so its ops come in *runs*: stretches in which op t and
op t+p are alike (same name, attributes and result types) for some period p. The forward pass of a stack of
layers is one run, its backward pass another, each part of the update one more. They are found as repeats in a
text are: equal windows of signatures suggest periods, each period's stretches of equality are runs, and the
longest take what they cover first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxlib.mlir import ir

Ids = npt.NDArray[np.int64]

WINDOW = 8
"""Ops that must be alike in a row for a period to be considered."""
PERIODS = 64
"""Periods that are tried, those first that most windows suggest."""
COPIES = 3
"""Least number of copies in a run."""


@dataclass(frozen=True, eq=False)
class Listing:
    """A block in numbers. Values are numbered arguments first, then results in program order.

    `signature[t]` says what op t is; its operands, captured values last, are `operands[start[t]:start[t+1]]`, its
    results the values `first[t]` … `first[t+1]-1`; `maker[v]` is the op that makes value v, -1 for an argument;
    `returned` are the terminator's operands.
    """

    ops: tuple[ir.Operation, ...]
    signature: Ids
    operands: Ids
    start: Ids
    first: Ids
    maker: Ids
    returned: Ids
    arguments: int


def list_block(block: ir.Block) -> Listing:
    """The numbers of a block; its last op is the terminator."""
    every = [view.operation for view in block.operations]
    numbers: dict[ir.Value, int] = {}
    for argument in block.arguments:
        numbers[argument] = len(numbers)
    known: dict[tuple[object, ...], int] = {}
    signature: list[int] = []
    operands: list[int] = []
    first: list[int] = []
    start, maker = [0], [-1] * len(numbers)
    for t, op in enumerate(every[:-1]):
        read = [numbers[v] for v in op.operands]
        results = list(op.results)
        key: tuple[object, ...] = (op.name, _attributes(op), tuple([r.type for r in results]))
        if len(op.regions):
            inside: dict[ir.Value, int] = {}
            key = (*key, _region_key(op, inside, numbers, read))
        signature.append(known.setdefault(key, len(known)))
        operands += read
        start.append(len(operands))
        first.append(len(maker))
        for value in results:
            numbers[value] = len(maker)
            maker.append(t)
    first.append(len(maker))
    return Listing(
        tuple(every[:-1]),
        _ids(signature),
        _ids(operands),
        _ids(start),
        _ids(first),
        _ids(maker),
        _ids([numbers[v] for v in every[-1].operands]),
        len(block.arguments),
    )


def _ids(numbers: list[int]) -> Ids:
    return np.array(numbers, dtype=np.int64)


def _region_key(
    op: ir.Operation, inside: dict[ir.Value, int], outside: dict[ir.Value, int], read: list[int]
) -> tuple[object, ...]:
    """What the regions of an op hold; values from outside are appended to `read`."""
    found: list[object] = []
    for region in op.regions:
        for block in region.blocks:
            for value in block.arguments:
                inside[value] = len(inside)
            for view in block.operations:
                inner = view.operation
                places: list[int] = []
                for value in inner.operands:
                    if value in inside:
                        places.append(inside[value])
                    else:
                        read.append(outside[value])
                        places.append(-1)
                for value in inner.results:
                    inside[value] = len(inside)
                types = tuple([r.type for r in inner.results])
                found.append((inner.name, _attributes(inner), types, tuple(places)))
                found.append(_region_key(inner, inside, outside, read))
    return tuple(found)


@dataclass(frozen=True)
class Run:
    """Ops `first` … `end`-1, in which op t and op t+period are alike."""

    first: int
    end: int
    period: int


def find_runs(signature: Ids) -> list[Run]:
    """Runs of at least COPIES copies that do not overlap, in order of ops."""
    free = np.ones(len(signature), dtype=bool)
    taken = []
    found = [run for period in _periods(signature) for run in _stretches(signature, period)]
    for run in sorted(found, key=lambda r: (r.first - r.end, r.period, r.first)):
        here = np.flatnonzero(free[run.first : run.end])
        if not here.size:
            continue
        pieces = np.split(here, np.flatnonzero(np.diff(here) > 1) + 1)
        longest = max(pieces, key=len)
        if len(longest) >= COPIES * run.period:
            first = run.first + int(longest[0])
            taken.append(Run(first, first + len(longest), run.period))
            free[first : first + len(longest)] = False
    return sorted(taken, key=lambda r: r.first)


def _periods(signature: Ids) -> list[int]:
    """Distances between equal windows and their next repeat, the most frequent first."""
    count = len(signature) - WINDOW + 1
    if count < 2:
        return []
    words = np.zeros(count, dtype=np.uint64)
    for i in range(WINDOW):
        words = (words + signature[i : i + count].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        words ^= words >> np.uint64(29)
    order = np.argsort(words, kind="stable")
    again = words[order][1:] == words[order][:-1]
    distance = (order[1:] - order[:-1])[again]
    periods, counts = np.unique(distance, return_counts=True)
    best = np.lexsort((periods, -counts))[:PERIODS]
    return [int(p) for p in periods[best]]


def _stretches(signature: Ids, period: int) -> list[Run]:
    alike = np.concatenate([[False], signature[:-period] == signature[period:], [False]])
    edges = np.flatnonzero(np.diff(alike.astype(np.int8)))
    return [
        Run(int(a), int(b) + period, period)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
        if b - a >= (COPIES - 1) * period
    ]


def _attributes(op: ir.Operation) -> tuple[object, ...]:
    return tuple(op.attributes.items())
