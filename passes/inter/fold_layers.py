"""The layers of a folded program, and what they stand for.

The layers that stages are cut between are made of many equal ones: they cannot be told apart in a program that holds
few of those. So a folded program gets a layer for each *segment* (a contraction and what goes with it), and its
layout (`layout.py`) says which segments repeat, how often, and where in the whole program its layers begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.inter.dataflow import Dataflow
from alpa_mlir.passes.inter.layout import Group, Layout
from alpa_mlir.passes.inter.repeat import cheap_ops

TOLERANCE = 0.01
"""The part of the ops that may be counted otherwise by layers than by `alpa.repeats`."""


class NotFoldable(CompileError):
    """A folded program whose layers do not repeat as its ops do."""


def segment_layout(micro: Dataflow, spine: Sequence[int], segments: Sequence[int]) -> Layout:
    """The layout of the segments of @microbatch: those with a contraction that repeats do."""
    repeats = [0] * (segments[-1] + 1)
    for o, s in zip(spine, segments, strict=True):
        if micro.heavy[o]:
            repeats[s] = alpa.get_int(micro.ops[o], alpa.REPEATS) or 0
    groups = []
    for copies, members in groupby(range(len(repeats)), key=lambda s: repeats[s]):
        place = list(members)
        if copies:
            groups.append(Group(place[0], place[-1], copies))
    return Layout(len(repeats), tuple(groups))


def segment_groups(layout: Layout) -> list[int]:
    """For each segment that has places the number of its group: segments between two cuts, wherever they occur.

    NotFoldable where copies of a segment differ in whether a layer is cut before them.
    """
    cut = np.zeros(len(layout.order), dtype=bool)
    cut[list(layout.cuts) or slice(None)] = True
    first = np.zeros(layout.placed, dtype=bool)
    first[layout.order] = cut
    if (first[layout.order] != cut).any():
        raise NotFoldable("layers are cut before some copies of a segment only")
    return [int(n) for n in np.cumsum(first) - 1]


def share_cheap_ops(flows: Iterable[Dataflow], layout: Layout) -> Layout:
    """Give cheap ops (`repeat.py`) that several layers use a layer of their own, one for each set of such layers."""
    shared: dict[tuple[int, ...], int] = {}
    for flow in flows:
        _share(flow, layout.layers, shared)
    return replace(layout, layers=layout.layers + len(shared), shared=tuple(shared))


def _share(flow: Dataflow, first: int, shared: dict[tuple[int, ...], int]) -> None:
    cheap, returned = cheap_ops(flow), set(flow.returned)
    layers = [alpa.get_int(op, alpa.LAYER) or 0 for op in flow.ops]
    sets = {number: layers_of for layers_of, number in shared.items()}
    for o in reversed([o for o in range(len(flow.ops)) if cheap[o]]):
        readers, op = flow.users(o), flow.ops[o]
        using = tuple(sorted({k for u in readers for k in sets.get(layers[u], (layers[u],))}))
        if not using:
            continue
        if returned & set(flow.results[o]):
            op = _copy_for_readers(op)
        layers[o] = using[0] if len(using) == 1 else shared.setdefault(using, first + len(shared))
        sets.setdefault(layers[o], using)
        alpa.set_int(op, alpa.LAYER, layers[o])
        if {alpa.get_string(flow.ops[u], alpa.PHASE) for u in readers} == {"backward"}:
            alpa.set_string(op, alpa.PHASE, "backward")


def _copy_for_readers(op: ir.Operation) -> ir.Operation:
    """A copy of an op whose results are returned, for all others that read them."""
    copy = op.clone(ip=ir.InsertionPoint(op)).operation
    for old, new in zip(op.results, copy.results, strict=True):
        for use in list(old.uses):
            if use.owner.operation.name != "func.return":
                use.owner.operation.operands[use.operand_number] = new
    return copy


def check_repeats(flows: Iterable[Dataflow], layout: Layout) -> None:
    """NotFoldable where the ops of a layered program are not as many by their layers as by `alpa.repeats`."""
    ops = [op for flow in flows for op in flow.ops]
    repeats = [alpa.get_int(op, alpa.REPEATS) or 0 for op in ops]
    if layout.whole and not any(repeats):
        return
    times = layout.times.tolist()
    by_layer, by_repeats = sum(times[alpa.get_int(op, alpa.LAYER) or 0] for op in ops), len(ops) + sum(repeats)
    if abs(by_layer - by_repeats) > TOLERANCE * by_repeats:
        raise NotFoldable(f"{by_layer} ops by their layers, {by_repeats} by alpa.repeats")
