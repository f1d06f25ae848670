"""What every range of layers would cost on a mesh, from one labelling of the whole program on that mesh.

A candidate stage is the intra-operator program of some layers on a submesh. Layers are much alike, so what is best
for one range is best for others: here the *whole* program is solved once per mesh (tied, so that its size is that of
its distinct layers), and any range of layers is priced under that labelling by adding up: an op's seconds and those
of the reshards into it belong to its layer; a value made outside the range and used inside arrives by a transfer, in
the sharding in which it was made. What fits depends on the range and on the microbatches in flight, so the
whole program is solved again with a price on each byte held (Lagrange; seconds per byte): higher prices give
labellings that hold less. Each entry takes the cheapest labelling that fits.

    memory of layers i … j with q microbatches in flight = Σ stored + max(q·Σ kept + working, updating)

All of these labellings can be run, so a price is the cost of a plan, but for the borders of the range, which its own
optimum would treat better. Where one labelling is too large and the next fits, something between both does as well
(`between`). The stages of the partition chosen are priced exactly afterwards (`search.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.communication import transfer_cost
from alpa_mlir.passes.costs.compute import adding_seconds
from alpa_mlir.passes.costs.links import border_links
from alpa_mlir.passes.inter.crossing import NOTHING, OFTEN
from alpa_mlir.passes.inter.layout import Ids, Layout, Table
from alpa_mlir.passes.inter.skeleton import PARTS, UPDATE, WEIGHT, Skeleton, read_skeleton
from alpa_mlir.passes.inter.tied import TiedGraph, TiedSketch
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.program import Program
from alpa_mlir.passes.intra.sketch import Sketch
from alpa_mlir.passes.intra.sketch_stage import sketch_stage
from alpa_mlir.passes.intra.stage_parts import StageParts
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.memo import digest, remembered

PRICES = (0.03, 0.12, 0.5, 2.0, 8.0, 1000.0)
"""Prices on memory, as the part of a stage's seconds that its whole memory would cost."""


BETWEEN = (0.25, 0.5, 0.75)
"""The parts of what is between one labelling and the next that are offered as well."""


@dataclass(frozen=True, eq=False)
class RangePrices:
    """Prices of all ranges of search layers [i, j] under one labelling.

    `seconds[part]` (see PARTS) of one microbatch or one update; bytes per device: `stored` always, `kept` for each
    microbatch in flight, besides them `working` while a microbatch runs, `updating` while the update does; `apart` from
    the backward part of a microbatch to its weight part, where they are apart.
    """

    seconds: Table
    stored: Table
    kept: Table
    working: Table
    updating: Table
    least_stored: Table
    least_kept: Table
    """What any labelling on this mesh stores and keeps at least."""
    continued: Table
    least_continued: Table
    """`kept` and `least_kept` in a stage that begins ahead of the range: there are copies of what products share."""
    apart: Table
    adding: Table
    """Seconds to add a microbatch to the sums; those of all but the first are part of `seconds`."""

    @cached_property
    def repeated(self) -> Table:
        """Seconds of one microbatch."""
        result: Table = self.seconds[:UPDATE].sum(axis=0)
        return result

    def of_smaller(self, seconds: Table, times: int) -> Table:
        """What `seconds` of work on one microbatch become where microbatches are `times` as small, and as many: each is
        added to sums as large as before."""
        # Ranges that cannot be take for ever, and none of that is not a number.
        result: Table = seconds / times + self.adding * (1 - 1 / times) if times > 1 else seconds
        return result

    @property
    def once(self) -> Table:
        """Seconds once per step."""
        result: Table = self.seconds[UPDATE]
        return result

    def step(self, microbatches: int) -> float:
        """Seconds of a step of all layers on this mesh."""
        return float(self.repeated[0, -1] * microbatches + self.once[0, -1])

    def memory(self, in_flight: int, times: int = 1) -> Table:
        """Bytes per device with so many microbatches in flight, `times` as small as those of these prices."""
        result: Table = self.stored + np.maximum((in_flight * self.kept + self.working) / times, self.updating)
        return result

    def least_memory(self, in_flight: int) -> Table:
        """Bytes per device that any labelling on this mesh needs at least."""
        result: Table = self.least_stored + in_flight * self.least_kept
        return result

    def parts(self, i: int, j: int) -> StageParts:
        """One range taken apart."""
        seconds = dict(zip(PARTS, self.seconds[:, i, j].tolist(), strict=True))
        bytes_held = {f"{k}_bytes": float(getattr(self, k)[i, j]) for k in ("stored", "kept", "working")}
        return StageParts(**seconds, **bytes_held, weight_bytes=float(self.apart[i, j]))


def between(more: RangePrices, less: RangePrices, part: float) -> RangePrices:
    """Prices where `part` of what is alike is run under the second labelling, which holds less, and the rest under the
    first: what fits between two labellings is found when stages are solved exactly."""
    pairs = ((f.name, getattr(more, f.name), getattr(less, f.name)) for f in fields(RangePrices))
    return RangePrices(**{name: (1 - part) * a + part * b for name, a, b in pairs})


class Pricer:
    """Prices ranges of layers of one module (level 3); `sketch`: where there is one already, of all its ops with two
    microbatches in flight."""

    def __init__(self, program: Program, layout: Layout, sketch: Callable[[], Sketch] | None = None) -> None:
        self.program, self.layout, self.sketch = program, layout, sketch

    @cached_property
    def skeleton(self) -> Skeleton:
        """What is the same on every mesh."""
        sketch = self.sketch() if self.sketch is not None else sketch_stage(self.program, lambda op: True, -1, 2)
        return read_skeleton(sketch, self.layout)

    @cached_property
    def tied(self) -> TiedSketch:
        """The program with what looks alike tied."""
        skeleton = self.skeleton
        times = self.layout.times
        alike = skeleton.stored + 2 * skeleton.kept.astype(np.int64)
        return TiedSketch.of(skeleton.sketch, alike, times[skeleton.layer], times[skeleton.edge_layer])

    def prices(self, mesh: Mesh, in_flight: int, share: float, cluster: Cluster) -> Iterator[RangePrices]:
        """Prices on a mesh of a cluster's equal devices, under one labelling after another, each holding less memory
        than the one before.

        `in_flight`: how many microbatches are reckoned with; `share`: the part of the program that a stage on
        this mesh would have.
        """
        enumerator = Enumerator(border_links(mesh, cluster, cluster.first), cluster)
        made: list[TiedGraph] = []
        units, labellings = [0.0], list[Ids]()

        def compute(number: int) -> dict[str, Table]:
            skeleton, tied = self.skeleton, self.tied
            if not made:
                made.append(TiedGraph(tied, enumerator))
            copies = (skeleton.stored + in_flight * skeleton.kept)[tied.first]
            # Each labelling begins with the one before, which may have been remembered.
            for unit in units[len(labellings) : number + 1]:
                labellings.append(made[0].labelling((unit * copies).tolist() if unit else ()))
            return vars(_read_prices(made[0], skeleton, labellings[number]))

        def prices(number: int) -> RangePrices:
            unit = units[number]
            key = lambda: digest("prices", self.skeleton.content, enumerator.content, in_flight, unit)  # noqa: E731
            return RangePrices(**remembered(key, lambda: compute(number)))

        free = prices(0)
        yield free
        unit = share * free.step(self.program.microbatches) / cluster.memory
        units += [price * unit for price in PRICES]
        for number in range(1, len(units)):
            yield prices(number)


def _read_prices(graph: TiedGraph, skeleton: Skeleton, labels: Ids) -> RangePrices:
    layout, layer = skeleton.layout, skeleton.layer
    microbatches = skeleton.sketch.program.microbatches
    held = graph.per_node(lambda c: float(graph.choices[c].held[labels[c]]))
    per_layer = np.zeros((len(PARTS), layout.layers))
    np.add.at(per_layer, (skeleton.part, layer), graph.per_node(lambda c: float(graph.seconds[c][labels[c]])))
    np.add.at(per_layer, (skeleton.edge_part, skeleton.edge_layer), graph.edge_seconds(labels))
    seconds = np.array([layout.sums(row) for row in per_layer])
    size = (layout.count, layout.count)
    crossing, arrivals = skeleton.crossing, skeleton.arrival[skeleton.crossing.nodes]
    arrive = _transfers(graph, skeleton, labels)
    for part in sorted(set(arrivals.tolist())):
        seconds[part] += ((arrive * (arrivals == part)) @ crossing.entries).reshape(size)
    seconds[:UPDATE] /= microbatches
    sums = layout.sums(_by_layer(skeleton, held * skeleton.sums))
    adding = sums * adding_seconds(1.0, graph.enumerator.cluster)
    seconds[WEIGHT] += adding * (1 - 1 / microbatches)
    least = _stored_and_kept(skeleton, graph.per_node(lambda c: graph.choices[c].least_held))
    stored, kept, continued = _stored_and_kept(skeleton, held)
    memory = (stored, kept, *_working(skeleton, held), *least[:2], continued, least[2])
    return RangePrices(seconds, *memory, _apart(skeleton, held), adding)


def _stored_and_kept(skeleton: Skeleton, held: Table) -> tuple[Table, Table, Table]:
    """[i, j]: bytes that a range stores, that it keeps for each microbatch in flight, and keeps as part of a stage that
    begins ahead of it."""
    crossing, layout = skeleton.crossing, skeleton.layout
    stored = layout.sums(_by_layer(skeleton, held * skeleton.stored))
    made = layout.sums(_by_layer(skeleton, held * skeleton.kept_here))
    made += (held[crossing.held] @ crossing.keeps).reshape(made.shape)
    kept = made + (held[crossing.nodes] @ crossing.entering_kept).reshape(made.shape)
    return stored, kept, made + (held[crossing.held] @ crossing.continued).reshape(made.shape)


def _apart(skeleton: Skeleton, held: Table) -> Table:
    """[i, j]: bytes of what a range makes, and of what arrives in it, that a weight part reads."""
    crossing = skeleton.crossing
    arriving = np.zeros(len(held), dtype=bool)
    np.logical_or.at(arriving, crossing.origin, skeleton.apart)
    found = skeleton.layout.sums(_by_layer(skeleton, held * skeleton.apart))
    found += ((held * arriving)[crossing.nodes] @ crossing.entries).reshape(found.shape)
    return found


def _by_layer(skeleton: Skeleton, per_node: Table) -> Table:
    found: Table = np.bincount(skeleton.layer, per_node, skeleton.layout.layers).astype(np.float64)
    return found


def _transfers(graph: TiedGraph, skeleton: Skeleton, labels: Ids) -> Table:
    """[values]: seconds per step for each to arrive from another stage in the sharding that it was made in."""
    known: dict[tuple[int, int], float] = {}
    found = []
    for node, result in skeleton.crossing.values:
        key = (int(graph.tied.of_node[node]), result)
        if key not in known:
            known[key] = _transfer(graph, *key, int(labels[key[0]]))
        found.append(known[key])
    return np.array(found)


def _transfer(graph: TiedGraph, number: int, result: int, label: int) -> float:
    choices = graph.choices[number]
    sharding = choices.strategies[label].results[result]
    size = float(choices.bytes[result][label]) * graph.enumerator.mesh.extent(sharding.axes)
    return float(graph.weights[number] * transfer_cost(sharding, graph.enumerator.links).at(size))


def _working(skeleton: Skeleton, held: Table) -> tuple[Table, Table]:
    """[i, j]: the most bytes of layers i … j alive at once, of those that are not kept, in @microbatch and in @update.

    Copies of a layer run one after the other, in an update as well; what lasts to the end of a microbatch (gradients)
    is there for all of them, from when it is born. What arrives is there beside it.
    """
    layout = skeleton.layout
    found = [np.zeros((layout.count, layout.count)) for _ in range(2)]
    for spans in skeleton.sketch.moments.spans:
        layer = skeleton.layer[spans.node]
        often = any(skeleton.sketch.nodes[node].function in OFTEN for node in spans.node.tolist())
        passing = np.where(spans.kept > 0, 0.0, held[spans.node])
        lasting = np.where((spans.died == spans.count) & (often and not layout.whole), passing, 0.0)
        change = np.zeros((layout.layers, spans.count + 1))
        np.add.at(change, (layer, spans.born), passing - lasting)
        np.add.at(change, (layer, spans.died), lasting - passing)
        alive, peaks = change.cumsum(axis=1)[:, :-1], found[0 if often else 1]
        crossing = skeleton.crossing.there_once(spans, layout.count, held) if often else NOTHING
        if layout.whole:
            total, places = np.zeros((layout.count + 1, spans.count)), np.arange(layout.count)
            np.cumsum(alive, axis=0, out=total[1:])
            low, high = np.meshgrid(places, places + 1, indexing="ij")
            _raise_to_peaks(peaks, total, high, low, np.zeros_like(peaks), *crossing, 0, spans.count)
            continue
        rows, numbers = layout.unions
        total = np.concatenate([np.zeros((1, spans.count)), rows @ alive])
        times = np.unique([0, *spans.born[lasting > 0], spans.count])
        for begin, end in pairwise(times.tolist()):
            born = lasting * (spans.born <= begin)
            always = layout.sums(np.bincount(layer, born, layout.layers).astype(np.float64))
            _raise_to_peaks(peaks, total, numbers + 1, np.zeros_like(numbers), always, *crossing, begin, end)
    return found[0], found[1]


@compiled
def _raise_to_peaks(
    found: Table,
    total: Table,
    high: Ids,
    low: Ids,
    always: Table,
    once: Table,
    born: Ids,
    died: Ids,
    begin: int,
    end: int,
) -> None:
    """found[i, j] at least as high as the peak from moment `begin` to `end` of total[high[i, j]] - total[low[i, j]] +
    always[i, j] + those of once[:, i, j] that are alive from born to died."""
    change = np.zeros(total.shape[1] + 1)
    for i in range(len(found)):
        for j in range(i, len(found)):
            change[:] = 0.0
            for v in range(len(once)):
                change[born[v]] += once[v, i, j]
                change[died[v]] -= once[v, i, j]
            peak, there = found[i, j], always[i, j] + change[:begin].sum()
            for t in range(begin, end):
                there += change[t]
                peak = max(peak, total[high[i, j], t] - total[low[i, j], t] + there)
            found[i, j] = peak
