"""What prices of ranges of layers (`pricing.py`) need of the whole program beside its costs, read off its sketch.

A node's seconds belong to a part of the step (forward, backward, weight, update) and to a layer; a value that another
layer uses arrives by a transfer where a stage is cut between the two; bytes are stored always, kept per microbatch in
flight, or held while a microbatch works. None of it depends on the mesh, so it is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alpa_mlir.dialect.rounds import with_whole_loops
from alpa_mlir.passes.inter.crossing import OFTEN, Crossing, Flags, read_crossing
from alpa_mlir.passes.inter.fold_layers import NotFoldable, segment_groups
from alpa_mlir.passes.inter.layout import Ids, Layout
from alpa_mlir.passes.intra.sketch import Sketch
from alpa_mlir.passes.memo import digest

PARTS = ("forward", "backward", "weight", "receive_forward", "receive_backward", "update")
"""Where seconds go, as in `StageParts`; the last once per step, the others once per microbatch."""
UPDATE, BACKWARD, WEIGHT = (PARTS.index(part) for part in ("update", "backward", "weight"))
_ARRIVALS = {p: PARTS.index("receive_forward" if p == "forward" else "receive_backward") for p in PARTS[:3]}


@dataclass(frozen=True, eq=False)
class Skeleton:
    """What prices need of the whole program beside its costs: the same on every mesh.

    Per node: its `layer`, the `part` (number in PARTS) that its seconds belong to, the part that a transfer of its
    value belongs to (`arrival`), whether its value is `stored` always, is `kept` per microbatch in flight, is read by a
    weight part that comes after it (`apart`), is a sum that microbatches are added to (`sums`).
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
    sums: Flags
    edge_layer: Ids
    edge_part: Ids
    crossing: Crossing

    @property
    def kept_here(self) -> Flags:
        """Which nodes are kept for what reads them in their own layer."""
        return self.kept & ~self.crossing.elsewhere

    @cached_property
    def content(self) -> str:
        """A digest of everything here."""
        per_node = [self.layer, self.part, self.arrival, self.stored, self.kept, self.apart, self.sums]
        arrays = [*per_node, self.edge_layer, self.edge_part]
        crossing = self.crossing
        return digest(self.sketch.content, self.layout, *(a.tobytes() for a in arrays), crossing.values)


def read_skeleton(sketch: Sketch, layout: Layout) -> Skeleton:
    """From the sketch of the whole program with two microbatches in flight."""
    nodes = sketch.nodes
    layer = np.array(_layers_of_nodes(sketch), dtype=np.int64)
    part = np.array(_parts_of_nodes(sketch, _groups(layout)), dtype=np.int64)
    kinds = [sketch.edge_kinds[k] for k in sketch.kinds.tolist()]
    once = np.array([k.function not in OFTEN for k in kinds], dtype=bool)
    reader = sketch.ends[:, 1]
    kept = np.zeros(len(nodes), dtype=bool)
    for spans in sketch.moments.spans:
        kept[spans.node[spans.kept > 0]] = True
    stored = np.zeros(len(nodes), dtype=bool)
    stored[sketch.moments.stored] = True
    apart = np.zeros(len(nodes), dtype=bool)
    apart[_held_for(sketch, sketch.ends[part[reader] == WEIGHT, 0])] = True
    apart &= (part != WEIGHT) & (part != UPDATE)
    arrival = np.array([_ARRIVALS.get(PARTS[p], UPDATE) for p in part.tolist()], dtype=np.int64)
    sums = np.array([n.source.slot.startswith("sum:") and n.function == "" for n in nodes], dtype=bool)
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
        sums,
        layer[reader],
        np.where(once, UPDATE, part[payer]),
        read_crossing(sketch, layout, layer, kept, np.isin(part, (BACKWARD, WEIGHT))),
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

    def mark(awaited: set[int]) -> None:
        for op in reversed(program.ops):
            if op.function == "microbatch":
                for source in op.operands:
                    if source.op >= 0 and (
                        op.number in awaited or group[program.ops[source.op].layer] != group[op.layer]
                    ):
                        awaited.add(source.op)

    awaited = with_whole_loops(mark, program.loops)
    found = []
    for node in sketch.nodes:
        if node.source.op < 0 or node.function not in OFTEN:
            found.append(UPDATE)
            continue
        phase = program.ops[node.source.op].phase or "forward"
        weight = phase == "backward" and node.source.op not in awaited
        found.append(PARTS.index("weight" if weight else phase))
    return found


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
