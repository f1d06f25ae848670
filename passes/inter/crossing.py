"""Values that cross from layer to layer, as a stage cut out of the program sees them.

What a range of layers reads of others arrives once, as it was made, however many products share a copy of it
(`intra/copies.py`): a stage makes no copies of what arrives. It is kept for each microbatch in flight where the range
reads it in its backward pass. So is what the range makes itself; what only others read then is passed on, and gone.

The parts of a folded program that run again take no heed of where layers begin (`parts.py`), but in the whole program a
part begins with each layer. So what is made again for layers above is not: what it is a clone of came over the border,
or was made below it, and is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.costs.memory import Spans
from alpa_mlir.passes.inter.layout import Flow, Ids, Layout, Table
from alpa_mlir.passes.intra.lifetimes import is_from_host
from alpa_mlir.passes.intra.sketch import Sketch

Flags = npt.NDArray[np.bool_]
OFTEN = ("microbatch", "main")
"""Functions that run once per microbatch."""
NOTHING: tuple[Table, Ids, Ids] = (np.zeros((0, 0, 0)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
"""No values that are there once."""


@dataclass(frozen=True, eq=False)
class Crossing:
    """The values that layers use of others, and how often ranges of search layers [i, j] hold each; ranges as one axis.

    `entries` [values, ranges]: how many copies of each enter; `entering_kept`: and are kept for each microbatch in
    flight; `often` [values]: whether each microbatch reads them.
    Of the nodes `held` [held, ranges]: `keeps` are made and kept there, unless for their own layer already (those
    `elsewhere` [nodes] are not); `continued` enter and are kept in a stage that begins ahead of the range.
    `origin` [nodes]: what a node is a copy of; `backward` [nodes]: whether it is made in the backward pass.
    """

    values: tuple[tuple[int, int], ...]
    """(node, result) of each."""
    entries: Table
    entering_kept: Table
    often: Flags
    held: Ids
    keeps: Table
    continued: Table
    elsewhere: Flags
    origin: Ids
    backward: Flags

    @property
    def nodes(self) -> Ids:
        """[values]: the node of each."""
        return np.array([node for node, _ in self.values], dtype=np.int64)

    def there_once(self, spans: Spans, count: int, held: Table) -> tuple[Table, Ids, Ids]:
        """[values, i, j] bytes of what arrives in ranges of `count` search layers and is there beside what is kept, and
        from and up to which moments: as long as the function that reads it runs, forwards or backwards."""
        found = np.flatnonzero(self.often & self.entries.any(axis=1))
        late = self.backward[self.nodes[found]]
        border = int(spans.born[self.backward[spans.node]].min(initial=spans.count))
        once = held[self.nodes[found], None] * self.entries[found]
        once[~late[:, None] & (self.entering_kept[found] > 0)] = 0.0
        return once.reshape(-1, count, count), np.where(late, border, 0), np.where(late, spans.count, border)


class _Value(NamedTuple):
    """A result of a node that is no copy."""

    node: int
    result: int


@dataclass
class _Readers:
    """The layers that read a value; those that read it backwards, as it is or as products share it (in `copies`,
    of which there is one at most); whether any does for each microbatch."""

    every: set[int] = field(default_factory=set)
    direct: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)
    often: bool = False


def read_crossing(sketch: Sketch, layout: Layout, layer: Ids, kept: Flags, backward: Flags) -> Crossing:
    """From the sketch of the whole program; `kept`: which nodes are kept there, `backward`: which run backwards."""
    copies = _copies(sketch)
    origins = _origins(sketch, copies)
    origin = np.array([v.node for v in origins], dtype=np.int64)
    readers = _readers(sketch, layout, layer, _read_for(sketch, backward), copies, origins, origin)
    tables = _Tables(layout)
    entries, entering_kept = (np.zeros((len(readers), layout.count**2)) for _ in range(2))
    held, keeps, continued = list[int](), list[Table](), list[Table]()
    elsewhere = np.zeros(len(sketch.nodes), dtype=bool)
    for k, (value, read) in enumerate(readers.items()):
        made, behind = int(layer[value.node]), read.direct | read.shared
        again = {u for u in behind if u > made} if backward[value.node] else set[int]()
        entries[k] = tables.entering(made, read.every - again)
        if again:
            entering_kept[k] = tables.entering(made, again)
            held.append(value.node)
            keeps.append(tables.over_cuts(made, again))
            continued.append(entering_kept[k])
            continue
        if kept[[value.node, *read.copies]].any():
            entering_kept[k] = tables.entering(made, behind or read.every)
        for node, layers in ((value.node, read.direct), *((copy, read.shared) for copy in read.copies)):
            if kept[node] and layers:
                held.append(node)
                elsewhere[node] = made not in layers
                keeps.append(tables.within(made, layers) * elsewhere[node])
                continued.append(tables.entering(made, layers))
    return Crossing(
        tuple((v.node, v.result) for v in readers),
        entries,
        entering_kept,
        np.array([read.often for read in readers.values()], dtype=bool),
        np.array(held, dtype=np.int64),
        np.array(keeps).reshape(len(held), layout.count**2),
        np.array(continued).reshape(len(held), layout.count**2),
        elsewhere,
        origin,
        backward,
    )


class _Tables:
    """How often ranges hold values, each distinct flow counted once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.known: dict[tuple[str, Flow], Table] = {}

    def entering(self, made: int, used: Iterable[int]) -> Table:
        """[ranges]: how many copies enter."""
        flow = Flow(made, tuple(sorted({*used} - {made})))
        return self._of("entering", flow, lambda: self.layout.entries(flow))

    def within(self, made: int, used: Iterable[int]) -> Table:
        """[ranges]: how many copies are made and used there."""
        flow = Flow(made, tuple(sorted(used)))
        return self._of("within", flow, lambda: self.layout.used_within(flow))

    def over_cuts(self, made: int, used: Iterable[int]) -> Table:
        """[ranges]: how many copies are made there, and used there in higher search layers."""
        flow = Flow(made, tuple(sorted(used)))
        return self._of("over cuts", flow, lambda: self.layout.used_above(flow))

    def _of(self, kind: str, flow: Flow, count: Callable[[], Table]) -> Table:
        key = (kind, flow)
        if key not in self.known:
            self.known[key] = count().ravel()
        return self.known[key]


def _readers(
    sketch: Sketch,
    layout: Layout,
    layer: Ids,
    backward: Flags,
    copies: Mapping[int, int],
    origins: Sequence[_Value],
    origin: Ids,
) -> dict[_Value, _Readers]:
    """What is read in other layers than its own, in order; `backward`: which nodes read for the backward pass; `copies`
    and `origins`: see there, `origin` their nodes."""
    maker, reader = sketch.ends[:, 0], sketch.ends[:, 1]
    final = ~np.isin(reader, list(copies))
    away = final & (layer[origin[maker]] != layer[reader]) & (layer[origin[maker]] < layout.placed)
    found: dict[_Value, _Readers] = {}
    for e in np.flatnonzero(final & np.isin(origin[maker], origin[maker[away]])).tolist():
        u, v = sketch.ends[e].tolist()
        value = origins[u] if u in copies else _Value(u, sketch.edge_kinds[sketch.kinds[e]].result)
        if is_from_host(sketch.nodes[value.node].source.slot):
            continue
        read, layers = found.setdefault(value, _Readers()), layout.users(int(layer[v]))
        read.every.update(layers)
        read.often |= sketch.nodes[v].function in OFTEN
        read.copies.update([copies[u]] if u in copies else [])
        if backward[v]:
            (read.shared if u in copies else read.direct).update(layers)
    return {value: read for value, read in found.items() if read.every != {int(layer[value.node])}}


def _copies(sketch: Sketch) -> dict[int, int]:
    """For each copy that products share the first one of the same value, which is what is held."""
    return {copy: chain[0] for chain in sketch.of_copy.values() for copy in chain}


def _origins(sketch: Sketch, copies: Mapping[int, int]) -> list[_Value]:
    """For each node the value that it is a copy of; itself where it is none."""
    found = [_Value(n, 0) for n in range(len(sketch.nodes))]
    for e in np.flatnonzero(np.isin(sketch.ends[:, 1], list(copies))).tolist():
        u, v = sketch.ends[e].tolist()
        found[v] = found[u] if u in copies else _Value(u, sketch.edge_kinds[sketch.kinds[e]].result)
    return found


def _read_for(sketch: Sketch, backward: Flags) -> Flags:
    """Which nodes need their operands in the backward pass: its own, and what is computed in registers for them."""
    found = backward.copy()
    in_registers = np.ones(len(sketch.nodes), dtype=bool)
    in_registers[list(sketch.moments.counted())] = False
    for e in np.flatnonzero(in_registers[sketch.ends[:, 0]])[::-1].tolist():
        u, v = sketch.ends[e].tolist()
        found[u] |= found[v]
    return found
