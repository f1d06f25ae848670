"""The parts of layers that run again by themselves: the grain of rematerialisation.

A layer of a deep program holds many equal blocks. What runs again as one is one of these, not the layer: for q
microbatches in flight, a layer of k blocks whose activations take a bytes and whose inputs take b then needs
q·k·b + a instead of q·b + k·a bytes, and runs the same ops again: less where a is many times b. Blocks are found as
repeats of the work of the forward pass's segments (`assign.py`). A layer begins with a part; the others begin where
least work runs again, as long as about as little is kept: the contraction that a part ends with need not run again
where no derivative reads what it makes, and of a transformer's two best the second takes four times as long as the
first. A program that does not repeat has its layers as parts. Of a folded program (`fold.py`) all copies must be alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from alpa_mlir.dialect import alpa
from alpa_mlir.passes.inter import assign
from alpa_mlir.passes.inter.dataflow import Dataflow
from alpa_mlir.passes.inter.fold_layers import NotFoldable, segment_layout
from alpa_mlir.passes.inter.layout import Ids, Layout, Table

Flags = npt.NDArray[np.bool_]

CALM = 0.1
"""Parts begin only where what is alive is more than the least in a block by no more than this part of it."""
MANY = 16.0
"""Blocks are parts where what they make is at least this many times what is alive between them."""


def parts_of_ops(micro: Dataflow, layout: Layout) -> list[int]:
    """The part of each op of a layered @microbatch: of what does not repeat, and of the layers of a folded program that
    have no place (`layout.shared`), any.

    NotFoldable where copies of a layer of a folded program differ in whether a part begins with them.
    """
    layers = [alpa.get_int(op, alpa.LAYER) or 0 for op in micro.ops]
    forward = {o for o, op in enumerate(micro.ops) if alpa.get_string(op, alpa.PHASE) == "forward"}
    spine = [o for o in assign.spine_of(micro, forward) if layers[o] < layout.placed]
    if not spine:
        return [0] * len(micro.ops)
    if not layout.whole:
        of_layer = _of_layers(micro, spine, dict(enumerate(layers)), layout)
        return [of_layer[k] if k < layout.placed else 0 for k in layers]
    segments = assign.segments_of(micro, spine)
    layer_of = dict(zip(segments, (layers[o] for o in spine), strict=True))
    cuts = np.flatnonzero(np.diff([-1, *(layer_of[s] for s in range(segments[-1] + 1))]))
    of_op = _completed(micro, forward, dict(zip(spine, segments, strict=True)))
    begins, _ = _begins(micro, spine, of_op, segment_layout(micro, spine, segments), cuts)
    of_segment = np.cumsum(begins)
    known = {o: int(of_segment[s]) for o, s in zip(spine, segments, strict=True)}
    parts = _completed(micro, forward, known)
    lowest, highest = _ranges(layers, known)
    found = []
    for o, k in enumerate(layers):
        part = parts[o]
        found.append(min(max(part, lowest.get(k, part)), highest.get(k, part)))
    return found


def _completed(micro: Dataflow, forward: set[int], spine: dict[int, int]) -> dict[int, int]:
    """Where each op of @microbatch belongs, by where those of the spine do."""
    count = max(spine.values()) + 1
    ahead = assign.complete_forward(micro, forward, spine, count)
    return ahead | assign.backward_layers(micro, ahead, count)


def _ranges(layers: Sequence[int], parts: dict[int, int]) -> tuple[dict[int, int], dict[int, int]]:
    """The lowest and the highest part of each layer."""
    lowest: dict[int, int] = {}
    highest: dict[int, int] = {}
    for o, part in parts.items():
        k = layers[o]
        lowest[k], highest[k] = min(part, lowest.get(k, part)), max(part, highest.get(k, part))
    return lowest, highest


def _of_layers(micro: Dataflow, spine: Sequence[int], known: Mapping[int, int], layout: Layout) -> list[int]:
    """The part of each layer of a folded program that has a place; cuts within repeats make no parts of their own."""
    cuts = np.array(layout.cuts, dtype=np.int64)
    begins, repeats = _begins(micro, spine, known, layout, cuts)
    begins[cuts[~repeats[cuts] & (cuts > 0)]] = True
    first = np.zeros(layout.placed, dtype=bool)
    first[layout.order] = begins
    if (first[layout.order] != begins).any():
        raise NotFoldable("parts that run again begin before some copies of a segment only")
    return [int(n) for n in np.cumsum(first)]


def _begins(
    micro: Dataflow, spine: Sequence[int], known: Mapping[int, int], layout: Layout, cuts: Ids
) -> tuple[Flags, Flags]:
    """For each place of the whole program whether a part begins there, and whether it lies within a repeat; `known`:
    the segment of each op; `cuts`: where layers begin."""
    segments = [known[o] for o in spine]
    work = assign.segment_work(micro, spine, segments, layout.layers)
    made = np.zeros(layout.layers)
    np.add.at(made, segments, [sum(micro.nbytes[v] for v in micro.results[o]) for o in spine])
    live = assign.live_before(micro, spine, segments, layout.layers)
    begins, repeats = np.zeros((2, len(layout.order)), dtype=bool)
    pending = [(0, len(layout.order))]
    while pending:
        low, high = pending.pop()
        run = assign.repeated(work[layout.order[low:high]])
        if run is None:
            continue
        first, end, period = low + run.first, low + run.first + run.length, run.period
        block = layout.order[first + period : first + 2 * period]
        pending += [(low, first), (end, high)]
        least = live[block].min()
        if made[block].sum() < MANY * least:
            continue
        inside = cuts[(cuts > first) & (cuts < end)]
        saved = np.roll([work[s] if _may_end(micro, known, s) else 0.0 for s in block.tolist()], 1)
        good = _good(live[block], saved)
        layers_begin = np.bincount((inside - first) % period, minlength=period)
        best = max(np.flatnonzero(good).tolist(), key=lambda p: (layers_begin[p], -live[block[p]]))
        begins[first + best : end : period] = True
        repeats[first + best : end] = True
        behind = layout.order[end:high][:1]
        if (live[behind] <= (1 + CALM) * least).all() and np.isin(layout.order, behind).sum() == 1:
            begins[end] = True
        for start, stop in pairwise([*inside, end] if layout.whole else []):
            begins[start] = True
            if good[(start - first) % period]:
                begins[start:stop] = False
                begins[start:stop:period] = True
    begins[0] = False
    return begins, repeats


def _good(live: Table, saved: Table) -> Flags:
    """Where in a block parts may begin: where most work is saved of what the block before ends with, of the places
    where about as little is alive as anywhere in it."""
    calm: Flags = live <= (1 + CALM) * live.min()
    good: Flags = calm & (saved == saved[calm].max())
    return good


def _may_end(micro: Dataflow, known: Mapping[int, int], segment: int) -> bool:
    """Whether a part that ends with a segment need not run the contractions of that again: no backward op of it reads
    what they make, nor what that becomes in it."""
    phase = {o: alpa.get_string(micro.ops[o], alpa.PHASE) for o, s in known.items() if s == segment}
    made: set[int] = set()
    for o in sorted(phase):
        if phase[o] == "forward" and (micro.heavy[o] or made.intersection(micro.producers(o))):
            made.add(o)
    return not any(phase.get(u) == "backward" for o in made for u in micro.users(o))
