"""One solved stage taken apart: seconds of its forward, backward and weight parts, and bytes per microbatch in flight.

The stage search needs two figures of a stage; what a schedule makes of it depends on more (`inter/simulate.py`).
Everything is read off the labelling that the solver found.  The *weight* part is the backward work that no op
outside the stage depends on, as `alpa-split{weight-apart}` cuts it (values that only end in sums do not count).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.rounds import with_whole_loops
from alpa_mlir.passes.costs.compute import adding_seconds
from alpa_mlir.passes.intra.graph import Node, StageGraph
from alpa_mlir.passes.intra.program import OpRecord, Program


@dataclass(frozen=True)
class StageParts:
    """Seconds of one run of each part, of the values that arrive for it, and once per step; bytes per device.

    `stored_bytes` are held always, `kept_bytes` for each microbatch in flight, `working_bytes` besides at the peak;
    `weight_bytes` are what the weight part reads: held from the backward part to it, where they are apart.
    """

    forward: float
    backward: float
    weight: float
    receive_forward: float
    receive_backward: float
    update: float
    stored_bytes: float
    kept_bytes: float
    working_bytes: float
    weight_bytes: float

    def attribute(self, context: ir.Context) -> ir.Attribute:
        """As a dictionary."""
        with ir.Location.unknown(context):
            f64 = ir.F64Type.get(context)
            entries = {f.name: ir.FloatAttr.get(f64, getattr(self, f.name)) for f in fields(self)}
        return ir.DictAttr.get(entries, context)

    @staticmethod
    def read(attribute: ir.Attribute) -> StageParts:
        """The inverse of `attribute`."""
        entry = ir.DictAttr(attribute)
        return StageParts(*(float(ir.FloatAttr(entry[f.name]).value) for f in fields(StageParts)))


def stage_parts(
    graph: StageGraph, kept: StageGraph, labels: Sequence[int], program: Program, inside: Callable[[OpRecord], bool]
) -> StageParts:
    """The parts of a solved stage.

    `graph` is the stage with one microbatch in flight, `kept` the same with two; `inside` says which ops are its own.
    """
    awaited = _awaited(program, inside)
    seconds = dict.fromkeys(("forward", "backward", "weight", "receive_forward", "receive_backward", "update"), 0.0)
    for node, cost, x in zip(graph.nodes, graph.costs, labels, strict=True):
        seconds[_part_of_node(node, program, awaited)] += float(cost[x])
    chosen = np.asarray(labels)[graph.ends].reshape(-1, 2)
    for (u, v), kind, (a, b) in zip(graph.ends.tolist(), graph.kinds.tolist(), chosen.tolist(), strict=True):
        reader = graph.nodes[v] if graph.nodes[v].source.op >= 0 else graph.nodes[u]
        function = graph.enumerator.edge_kinds[kind].function
        part = "update" if function not in ("microbatch", "main") else _part_of_node(reader, program, awaited)
        seconds[part.removeprefix("receive_")] += float(graph.enumerator.edge_seconds(kind)[a, b])
    often = {name: total / program.microbatches for name, total in seconds.items() if name != "update"}
    held = np.array([h[x] for h, x in zip(graph.held, labels, strict=True)])
    often["weight"] += adding(graph, labels, program)
    stored = float(held[graph.moments.stored].sum())
    activations = sum(float((held[s.node] * s.kept).sum()) for s in kept.moments.spans)
    peak = float(graph.usage(labels).max(initial=0.0))
    working = max(0.0, peak - stored - activations)
    return StageParts(
        **often,
        update=seconds["update"],
        stored_bytes=stored,
        kept_bytes=activations,
        working_bytes=working,
        weight_bytes=float(held[_read_by_weights(graph, program, awaited)].sum()),
    )


def _read_by_weights(graph: StageGraph, program: Program, awaited: set[int]) -> list[int]:
    """Nodes of a microbatch that are made before its weight part and read by it."""
    parts = [_part_of_node(node, program, awaited) for node in graph.nodes]
    maker = dict(graph.ends[:, ::-1].tolist())
    held = graph.moments.counted()
    found = {u for u, v in graph.ends.tolist() if parts[v] == "weight" and parts[u] not in ("weight", "update")}
    # What is copied for some products only is held as what it is copied from.
    return sorted({u if u in held else maker.get(u, u) for u in found})


def adding(graph: StageGraph, labels: Sequence[int], program: Program) -> float:
    """Seconds of one microbatch, on an average, to add it to the sums: the first is not added to anything."""
    sums = sum(float(graph.held[node][labels[node]]) for name, node in graph.of_slot.items() if name.startswith("sum:"))
    return adding_seconds(sums, graph.enumerator.cluster) * (1 - 1 / program.microbatches)


def _part_of_node(node: Node, program: Program, awaited: set[int]) -> str:
    if node.function not in ("microbatch", "main") or node.source.op < 0:
        return "update"
    op = program.ops[node.source.op]
    phase = op.phase or "forward"
    if node.incoming:
        return f"receive_{phase}"
    return "weight" if phase == "backward" and op.number not in awaited else phase


def _awaited(program: Program, inside: Callable[[OpRecord], bool]) -> set[int]:
    """Backward ops of the stage that ops of other stages depend on."""
    own = [op.number for op in program.ops if inside(op)]
    numbers = set(own)

    def mark(found: set[int]) -> None:
        for number in reversed(own):
            readers = [r for r in program.users[number] if program.ops[r].function == "microbatch"]
            if any(r in found or r not in numbers for r in readers):
                found.add(number)

    return with_whole_loops(mark, [loop & numbers for loop in program.loops])
