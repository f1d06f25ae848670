"""Which layer each op belongs to: forward by cutting, backward by following the data, update by its parameter.

*Forward.* Ops without a contraction among themselves and their ancestors (casts of parameters, masks,
embedding look-ups, one-hot targets) belong to their lowest user; ops that no contraction follows (losses,
metrics, statistics) to their highest operand; the others, in program order, are the *spine* that `layer_dp`
cuts.  A boundary may stand once between two consecutive contractions, where the fewest bytes are alive (after
the residual addition, before the normalisation; where equal, as late as possible).

*Backward.* Let c be the lowest layer among an op's backward operands (the last layer if there are
none); for each other operand take the highest layer ≤ c in which the forward pass defines or uses it;
the op's layer is the minimum of these, taken again until it changes no more.  So backward data flows only
from higher to lower layers, and a parameter's gradient ends in a layer that uses the parameter.  Ops that
depend on no argument belong to their highest user.

*Update.* An op belongs to the layer of its largest operand (ties: the lowest layer), starting from the
layer where each sum is produced.  Ops that only enlarge (broadcasts) and ops without such operands belong to
their lowest user.  So the sum of squares in a gradient norm is formed where the gradient is, and only scalars travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.inter.dataflow import Dataflow
from alpa_mlir.passes.inter.layer_dp import Crossing, Cut, cut_layers, entering_bytes
from alpa_mlir.passes.inter.layout import Flow, Ids, Layout, Table

MAX_SEGMENTS = 1024
"""Beyond this many candidate boundaries every few in a row keep the one with the fewest live bytes (the DP is
quadratic)."""

MAX_PERIOD = 64
"""Most segments of a part of the forward pass that is seen to repeat."""

Layers = list[int]


def spine_of(micro: Dataflow, forward: set[int]) -> list[int]:
    """Forward ops between the first contractions and the last; in a forward pass without any, all with operands."""
    contracts = _contracting(micro, forward)
    ahead: set[int] = set()
    for op in sorted(forward, reverse=True):
        if contracts[op] or any(u in ahead for u in micro.users(op)):
            ahead.add(op)
    return [op for op in _after_contractions(micro, forward) if op in ahead]


def _contracting(micro: Dataflow, forward: set[int]) -> Sequence[bool]:
    return micro.heavy if any(micro.heavy[o] for o in forward) else [bool(r) for r in micro.operands]


def _after_contractions(micro: Dataflow, forward: set[int]) -> list[int]:
    """Forward ops with a contraction among themselves and their ancestors, in order."""
    contracts = _contracting(micro, forward)
    below: set[int] = set()
    for op in sorted(forward):
        if contracts[op] or any(p in below for p in micro.producers(op)):
            below.add(op)
    return sorted(below)


def segments_of(micro: Dataflow, spine: Sequence[int]) -> list[int]:
    """Segment of each op of the spine: consecutive ops between candidate boundaries."""
    live = _live_bytes(micro, spine)
    any_heavy = any(micro.heavy[o] for o in spine)
    heavy = [p for p, o in enumerate(spine) if micro.heavy[o] or not any_heavy]
    marks = np.zeros(len(spine), dtype=np.int64)
    # No loop that stands as one round is cut.
    inside = [micro.loop_of.get(o, -1) for o in spine]
    live[1 : len(spine)][[a >= 0 and a == b for a, b in pairwise(inside)]] = np.inf
    for left, right in pairwise(heavy):
        best = right - int(np.argmin(live[right:left:-1]))
        marks[best] = live[best] < np.inf
    return [int(s) for s in np.cumsum(marks)]


def _live_bytes(micro: Dataflow, spine: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """At each position p of the spine the bytes defined before p and read at or after it."""
    place = {o: p for p, o in enumerate(spine)}
    change = np.zeros(len(spine) + 2)
    for o, p in place.items():
        for v in micro.results[o]:
            last = max((place[u] for u in micro.uses[v] if u in place), default=p)
            change[p + 1] += micro.nbytes[v]
            change[last + 1] -= micro.nbytes[v]
    return np.asarray(change.cumsum())


def live_before(micro: Dataflow, spine: Sequence[int], segments: Sequence[int], count: int) -> Table:
    """Bytes alive before each of the segments."""
    found: Table = _live_bytes(micro, spine)[np.searchsorted(np.array(segments), np.arange(count))]
    return found


def cut_forward(
    micro: Dataflow, spine: Sequence[int], segments: Sequence[int], layout: Layout, layers: int, even: bool
) -> tuple[tuple[int, ...], Cut]:
    """The first place of each layer, and the cut: `layers` (at most `most_layers`) of the segments in a layout.

    `even`: see `cut_layers`."""
    where = dict(zip(spine, segments, strict=True))
    work = np.zeros(layout.layers)
    for o, s in where.items():
        work[s] += micro.flops[o]
    live = live_before(micro, spine, segments, layout.layers)
    starts = _candidates(live[layout.order])
    block = np.searchsorted(starts, np.arange(len(layout.order)), side="right") - 1
    crossings = []
    for o in spine:
        for v in micro.results[o]:
            used = {where[u] for u in micro.uses[v] if u in where} - {where[o]}
            for made, users in layout.copies(Flow(where[o], tuple(sorted(used)))) if used else ():
                crossings.append(Crossing(int(block[made]), tuple(block[list(users)].tolist()), micro.nbytes[v]))
    weights = np.bincount(block, work[layout.order]).tolist()
    cut = cut_layers(entering_bytes(crossings, len(starts)), weights, layers, even=even)
    return tuple(starts[list(cut.starts)].tolist()), cut


def repetitions(micro: Dataflow, spine: Sequence[int], segments: Sequence[int], layout: Layout) -> int:
    """How often the part that repeats most follows itself in the forward pass, by its segments' work; 1: never."""
    run = repeated(segment_work(micro, spine, segments, layout.layers)[layout.order])
    return run.length // run.period if run is not None else 1


def segment_work(micro: Dataflow, spine: Sequence[int], segments: Sequence[int], count: int) -> Table:
    """The work of the contractions in each of the segments."""
    found = np.zeros(count)
    np.add.at(found, list(segments), [micro.flops[o] if micro.heavy[o] else 0.0 for o in spine])
    return found


@dataclass(frozen=True)
class Repeat:
    """Places `first` … `first + length - 1` of a sequence, in which those that are `period` apart are equal."""

    first: int
    length: int
    period: int


def repeated(places: Table) -> Repeat | None:
    """The longest repeat of a sequence of figures, of at least two copies; of equal ones that of the least period."""
    best: Repeat | None = None
    for period in range(1, min(MAX_PERIOD, len(places) // 2) + 1):
        alike = np.concatenate([[False], places[period:] == places[:-period], [False]])
        edges = np.flatnonzero(np.diff(alike.astype(np.int8)))
        lengths = edges[1::2] - edges[::2]
        longest = int(lengths.max(initial=0)) + period
        if longest >= 2 * period and (best is None or longest > best.length):
            best = Repeat(int(edges[2 * int(np.argmax(lengths))]), longest, period)
    return best


def most_layers(layout: Layout) -> int:
    """How many layers can be cut from the segments of a layout."""
    return min(len(layout.order), MAX_SEGMENTS)


def _candidates(live: Table) -> Ids:
    """The places where a layer may begin, the first among them; `live`: bytes alive before each place."""
    stride = -(-(len(live) - 1) // (MAX_SEGMENTS - 1))
    if stride <= 1:
        return np.arange(len(live))
    rows = range(1, len(live), stride)
    return np.array([0, *(p + int(np.argmin(live[p : p + stride])) for p in rows)], dtype=np.int64)


def user_layers(micro: Dataflow, forward: set[int]) -> dict[int, int] | None:
    """The layers a user wrote on forward ops, completed along the data; None where there are none.

    CompileError where data would flow from a higher to a lower layer.
    """
    given = {o: alpa.get_int(micro.ops[o], alpa.LAYER) for o in sorted(forward)}
    if all(layer is None for layer in given.values()):
        return None
    placed = set(_after_contractions(micro, forward)) | {o for o, layer in given.items() if layer is not None}
    known: dict[int, int] = {}
    for o in sorted(placed):
        floor = max((known[p] for p in micro.producers(o) if p in known), default=0)
        layer = given[o]
        if layer is not None and layer < floor:
            raise CompileError(
                f"alpa.layer = {layer}, but an operand comes from layer {floor}: forward data must not flow to a "
                "lower layer",
                micro.ops[o].location,
            )
        known[o] = floor if layer is None else layer
    return known


def complete_forward(micro: Dataflow, forward: set[int], spine: dict[int, int], layers: int) -> dict[int, int]:
    """Layers of all forward ops: those after the spine at their highest operand, the others at their lowest user."""
    known = dict(spine)
    for loop in micro.loops:
        places = {known[o] for o in loop if o in known}
        if places:
            known.update(dict.fromkeys(loop, min(places)))
    after = {*_after_contractions(micro, forward)}
    for unit in micro.units:
        if unit[0] not in known and not after.isdisjoint(unit):
            known.update(dict.fromkeys(unit, max(known[p] for o in unit for p in micro.producers(o) if p in known)))
    for unit in reversed(micro.units):
        if unit[0] in forward and unit[0] not in known:
            users = {u for o in unit for u in micro.users(o)} - {*unit}
            known.update(dict.fromkeys(unit, min((known[u] for u in users if u in forward), default=layers - 1)))
    return known


def backward_layers(micro: Dataflow, forward: dict[int, int], layers: int) -> dict[int, int]:
    """Layers of the ops of @microbatch that are not forward."""
    presence = _forward_presence(micro, forward)
    known: dict[int, int] = {}
    free: list[tuple[int, ...]] = []
    for unit in micro.units:
        if unit[0] in forward:
            continue
        behind = [known[p] for o in unit for p in micro.producers(o) if p in known]
        ahead = [presence[v] for o in unit for v in micro.operands[o] if presence.get(v)]
        layer = _settle(min(behind, default=layers - 1), ahead)
        anchored = bool(behind) or any(places[0] <= layer for places in ahead)
        if anchored:
            known.update(dict.fromkeys(unit, layer))
        else:
            free.append(unit)
    for unit in reversed(free):
        layer = max((known[u] for o in unit for u in micro.users(o) if u in known), default=layers - 1)
        known.update(dict.fromkeys(unit, layer))
    return known


def _settle(layer: int, ahead: list[list[int]]) -> int:
    """The highest layer, at most `layer`, in which every operand is present that is present at or below it.

    Otherwise a forward value would have to be brought to a layer it never visits.
    """
    before = -1
    while layer != before:
        before = layer
        for places in ahead:
            layer = max((k for k in places if k <= layer), default=layer)
    return layer


def _forward_presence(micro: Dataflow, forward: dict[int, int]) -> dict[int, list[int]]:
    """For each forward value and argument the layers in which the forward pass defines or uses it, ascending.

    Values without arguments among their ancestors (masks, constants) can be had anywhere and bind nothing.
    """
    bound = {v: True for v in range(len(micro.arguments))}
    presence: dict[int, list[int]] = {}
    for o in sorted(forward):
        for v in micro.results[o]:
            bound[v] = o in micro.loop_of or any(bound.get(i, False) for i in micro.operands[o])
    for v, is_bound in bound.items():
        if is_bound:
            defined = [forward[micro.definition[v]]] if micro.definition[v] in forward else []
            presence[v] = sorted({*defined, *(forward[u] for u in micro.uses[v] if u in forward)})
    return presence


WIDER = 2
"""A cast to twice the bits stays with what it casts; what makes more out of a value (a broadcast) goes to its users."""


def update_layers(update: Dataflow, sums: dict[Binding, int]) -> Layers:
    """Layers of the ops of @update; `sums` says in which layer each sum or stack is produced."""
    at: dict[int, int] = {v: sums[b] for v, b in enumerate(update.arguments) if b in sums}
    known: dict[int, int] = {}
    for unit in update.units:
        own = {v for o in unit for v in update.results[o]}
        taken = [v for o in unit for v in update.operands[o] if v not in own]
        given = [v for v in own if len(unit) == 1 or not {*unit}.issuperset(update.uses[v])]
        layered = [(update.nbytes[v], -at[v]) for v in taken if v in at]
        if layered and sum(update.nbytes[v] for v in given) <= WIDER * sum(update.nbytes[v] for v in taken):
            layer = -max(layered)[1]
            known.update(dict.fromkeys(unit, layer))
            at.update(dict.fromkeys(own, layer))
    return _at_lowest_user(update, known, {})


def prologue_layers(prologue: Dataflow, needed: dict[Binding, int]) -> Layers:
    """Layers of the ops of @prologue: the lowest layer that needs what they yield."""
    wanted: dict[int, int] = {}
    for value, binding in zip(prologue.returned, prologue.yields, strict=True):
        layer = needed.get(binding, 0)
        wanted[value] = min(wanted.get(value, layer), layer)
    return _at_lowest_user(prologue, {}, wanted)


def _at_lowest_user(flow: Dataflow, known: dict[int, int], returned: dict[int, int]) -> Layers:
    for unit in reversed(flow.units):
        if unit[0] not in known:
            users = [known[u] for o in unit for u in flow.users(o) if u in known]
            users += [returned[v] for o in unit for v in flow.results[o] if v in returned]
            known.update(dict.fromkeys(unit, min(users, default=0)))
    return [known[o] for o in range(len(flow.ops))]
