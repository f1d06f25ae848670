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
optimum would treat better. The stages of the partition chosen are priced exactly afterwards (`search.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.communication import transfer_cost
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.inter.fold_layers import NotFoldable, segment_groups
from alpa_mlir.passes.inter.layout import Flow, Ids, Layout, Table
from alpa_mlir.passes.inter.tied import TiedGraph, TiedSketch
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.program import Program
from alpa_mlir.passes.intra.sketch import Sketch, SketchNode
from alpa_mlir.passes.intra.sketch_stage import sketch_stage
from alpa_mlir.passes.intra.stage_parts import StageParts
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.memo import digest, remembered

Flags = npt.NDArray[np.bool_]
OFTEN = ("microbatch", "main")
"""Functions that run once per microbatch."""
PRICES = (0.03, 0.12, 0.5, 2.0, 8.0, 1000.0)
"""Prices on memory, as the part of a stage's seconds that its whole memory would cost."""


PARTS = ("forward", "backward", "weight", "receive_forward", "receive_backward", "update")
"""Where seconds go, as in `StageParts`; the last once per step, the others once per microbatch."""
UPDATE, WEIGHT = PARTS.index("update"), PARTS.index("weight")
_ARRIVALS = {p: PARTS.index("receive_forward" if p == "forward" else "receive_backward") for p in PARTS[:3]}


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
    apart: Table

    @cached_property
    def repeated(self) -> Table:
        """Seconds of one microbatch."""
        result: Table = self.seconds[:UPDATE].sum(axis=0)
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


@dataclass(frozen=True, eq=False)
class Skeleton:
    """What prices need of the whole program beside its costs: the same on every mesh.

    Per node: its `layer`, the `part` (number in PARTS) that its seconds belong to, the part that a transfer of its
    value belongs to (`arrival`), whether its value is `stored` always, is `kept` per microbatch in flight, is read by a
    weight part that comes after it (`apart`).
    Per edge: layer and part of its consumer.
    """

    sketch: Sketch
    layout: Layout
    layer: Ids
    part: Ids
    arrival: Ids
    stored: Flags
    kept: Flags
    apart: Flags
    edge_layer: Ids
    edge_part: Ids
    values: tuple[tuple[int, int], ...]
    """(node, result) of values used in other layers than their own."""
    entries: Table
    """[values, ranges]: how many copies of each enter a range of search layers."""

    @cached_property
    def content(self) -> str:
        """A digest of everything here."""
        per_node = [self.layer, self.part, self.arrival, self.stored, self.kept, self.apart]
        arrays = [*per_node, self.edge_layer, self.edge_part]
        return digest(self.sketch.content, self.layout, *(a.tobytes() for a in arrays), self.values)


def read_skeleton(sketch: Sketch, layout: Layout) -> Skeleton:
    """From the sketch of the whole program with two microbatches in flight."""
    nodes = sketch.nodes
    layer = np.array(_layers_of_nodes(sketch), dtype=np.int64)
    part = np.array(_parts_of_nodes(sketch, _groups(layout)), dtype=np.int64)
    kinds = [sketch.edge_kinds[k] for k in sketch.kinds.tolist()]
    once = np.array([k.function not in OFTEN for k in kinds], dtype=bool)
    used: dict[tuple[int, int], set[int]] = {}
    reader = sketch.ends[:, 1]
    for e in np.flatnonzero(layer[sketch.ends[:, 0]] != layer[reader]).tolist():
        u, v = sketch.ends[e].tolist()
        if not _from_host(nodes[u]) and layer[u] < layout.placed:
            used.setdefault((u, kinds[e].result), set()).update(layout.users(int(layer[v])))
    flows = [Flow(int(layer[u]), tuple(sorted(layers - {int(layer[u])}))) for (u, _), layers in used.items()]
    counted = {flow: layout.entries(flow).ravel() for flow in dict.fromkeys(flows)}
    kept = np.zeros(len(nodes), dtype=bool)
    for spans in sketch.moments.spans:
        kept[spans.node[spans.kept > 0]] = True
    stored = np.zeros(len(nodes), dtype=bool)
    stored[sketch.moments.stored] = True
    apart = np.zeros(len(nodes), dtype=bool)
    apart[_held_for(sketch, sketch.ends[part[reader] == WEIGHT, 0])] = True
    apart &= (part != WEIGHT) & (part != UPDATE)
    arrival = np.array([_ARRIVALS.get(PARTS[p], UPDATE) for p in part.tolist()], dtype=np.int64)
    is_slot = np.array([n.source.op < 0 and not n.incoming for n in nodes], dtype=bool)
    # A result stored in a slot is resharded where it is made.
    payer = np.where(is_slot[reader], sketch.ends[:, 0], reader)
    return Skeleton(
        sketch,
        layout,
        layer,
        part,
        arrival,
        stored,
        kept,
        apart,
        layer[reader],
        np.where(once, UPDATE, part[payer]),
        tuple(used),
        np.array([counted[flow] for flow in flows]).reshape(len(flows), layout.count**2),
    )


def _held_for(sketch: Sketch, nodes: Ids) -> Ids:
    """The nodes that are held where these are read: what is copied for some products only is held as its origin."""
    origin = np.arange(len(sketch.nodes))
    held = np.zeros(len(sketch.nodes), dtype=bool)
    held[list(sketch.moments.counted())] = True
    copies = ~held[sketch.ends[:, 1]]
    origin[sketch.ends[copies, 1]] = sketch.ends[copies, 0]
    return np.where(held[nodes], nodes, origin[nodes])


def _groups(layout: Layout) -> list[int]:
    """A number for each layer, equal for those that no stage is cut between, as far as all copies are alike."""
    try:
        groups = segment_groups(layout)
    except NotFoldable:
        groups = list(range(layout.placed))
    return [*groups, *range(layout.placed, layout.layers)]


def _parts_of_nodes(sketch: Sketch, group: Sequence[int]) -> list[int]:
    """The part of each node; weight: backward ops that no op of another group of layers waits for."""
    program = sketch.program
    awaited: set[int] = set()
    for op in reversed(program.ops):
        if op.function == "microbatch":
            for source in op.operands:
                if source.op >= 0 and (op.number in awaited or group[program.ops[source.op].layer] != group[op.layer]):
                    awaited.add(source.op)
    found = []
    for node in sketch.nodes:
        if node.source.op < 0 or node.function not in OFTEN:
            found.append(UPDATE)
            continue
        phase = program.ops[node.source.op].phase or "forward"
        weight = phase == "backward" and node.source.op not in awaited
        found.append(PARTS.index("weight" if weight else phase))
    return found


def _from_host(node: SketchNode) -> bool:
    return node.source.slot.startswith("batch") or node.source.slot == "index"


def _layers_of_nodes(sketch: Sketch) -> list[int]:
    """Ops know their layer; a stored value lives where it is made, or else with its first user."""
    program, nodes = sketch.program, sketch.nodes
    made = {f.slot: program.ops[f.source.op].layer for f in program.feeds if f.source.op >= 0}
    lowest: dict[int, int] = {}
    for u, v in sketch.ends.tolist():
        op = nodes[v].source.op
        if op >= 0:
            lowest[u] = min(program.ops[op].layer, lowest.get(u, program.ops[op].layer))
    found = []
    for number, node in enumerate(nodes):
        if node.source.op >= 0:
            found.append(program.ops[node.source.op].layer)
        else:
            found.append(made.get(node.source.slot, lowest.get(number, 0)))
    return [max(0, k) for k in found]


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
        enumerator = Enumerator(mesh_links(mesh, cluster, cluster.first), cluster)
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
    nodes = np.array([node for node, _ in skeleton.values], dtype=np.int64)
    arrive = _transfers(graph, skeleton, labels)
    for part in sorted(set(skeleton.arrival[nodes].tolist())):
        seconds[part] += ((arrive * (skeleton.arrival[nodes] == part)) @ skeleton.entries).reshape(size)
    seconds[:UPDATE] /= microbatches
    least = _stored_and_kept(skeleton, graph.per_node(lambda c: graph.choices[c].least_held))
    fixed = (*_stored_and_kept(skeleton, held), *_working(skeleton, held), *least)
    return RangePrices(seconds, *fixed, _with_arriving(skeleton, held * skeleton.apart))


def _stored_and_kept(skeleton: Skeleton, held: Table) -> tuple[Table, Table]:
    """[i, j]: bytes that a range stores, and that it keeps for each microbatch in flight."""
    stored = skeleton.layout.sums(_by_layer(skeleton, held * skeleton.stored))
    return stored, _with_arriving(skeleton, held * skeleton.kept)


def _with_arriving(skeleton: Skeleton, held: Table) -> Table:
    """[i, j]: bytes of what a range makes and of what arrives in it, of `held` per node."""
    found = skeleton.layout.sums(_by_layer(skeleton, held))
    nodes = np.array([node for node, _ in skeleton.values], dtype=np.int64)
    if len(nodes):
        found += (held[nodes] @ skeleton.entries).reshape(found.shape)
    return found


def _by_layer(skeleton: Skeleton, per_node: Table) -> Table:
    found: Table = np.bincount(skeleton.layer, per_node, skeleton.layout.layers).astype(np.float64)
    return found


def _transfers(graph: TiedGraph, skeleton: Skeleton, labels: Ids) -> Table:
    """[values]: seconds per step for each to arrive from another stage in the sharding that it was made in."""
    known: dict[tuple[int, int], float] = {}
    found = []
    for node, result in skeleton.values:
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
    is there for all of them, from when it is born.
    """
    layout = skeleton.layout
    found = [np.zeros((layout.count, layout.count)) for _ in range(2)]
    for spans in skeleton.sketch.moments.spans:
        layer = skeleton.layer[spans.node]
        often = skeleton.sketch.nodes[int(spans.node[0])].function in OFTEN
        passing = np.where(spans.kept > 0, 0.0, held[spans.node])
        lasting = np.where((spans.died == spans.count) & (often and not layout.whole), passing, 0.0)
        change = np.zeros((layout.layers, spans.count + 1))
        np.add.at(change, (layer, spans.born), passing - lasting)
        np.add.at(change, (layer, spans.died), lasting - passing)
        alive, peaks = change.cumsum(axis=1)[:, :-1], found[0 if often else 1]
        if layout.whole:
            total = np.zeros((layout.count + 1, spans.count))
            np.cumsum(alive, axis=0, out=total[1:])
            _raise_to_peaks(peaks, total)
            continue
        rows, numbers = layout.unions
        times = np.unique([0, *spans.born[lasting > 0], spans.count])
        for begin, end in pairwise(times.tolist()):
            born = lasting * (spans.born <= begin)
            always = layout.sums(np.bincount(layer, born, layout.layers).astype(np.float64))
            np.maximum(peaks, (rows @ alive[:, begin:end]).max(axis=1)[numbers] + always, out=peaks)
    return found[0], found[1]


@compiled
def _raise_to_peaks(found: Table, total: Table) -> None:
    """found[i, j] at least as high as the peak of total[j + 1] - total[i]."""
    for i in range(len(found)):
        for j in range(i, len(found)):
            peak = found[i, j]
            for t in range(total.shape[1]):
                peak = max(peak, total[j + 1, t] - total[i, t])
            found[i, j] = peak
