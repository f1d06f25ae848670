"""A memory limit that no plan keeps: how much would do, what takes it, and which constraints to give up.

Every value takes least in one of its own strategies, whatever the others do, so the least a stage needs is
what its moments need with each value at its smallest; no search is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text
from alpa_mlir.passes.intra.constraints import Constraint
from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.program import OpRecord, Program

Least = Callable[[Sequence[Constraint]], float]
"""The least bytes per device that a stage needs under some constraints."""

LARGEST = 5
"""How many values at the peak are named."""
TRIED = 2
"""How many constraints are given up together at most, short of all."""


def least_bytes(graph: StageGraph) -> float:
    """The least bytes per device that a stage needs."""
    return float(graph.least_usage().max(initial=0.0))


def too_small(
    program: Program,
    graph: StageGraph,
    stage: int,
    limit: float,
    constraints: Sequence[Constraint],
    least: Least,
) -> CompileError:
    """The error for a memory limit below any plan's need."""
    usage = graph.least_usage()
    copies = graph.moments.copies(int(usage.argmax()))
    need = [(copies[v] * n.choices.least_held, v) for v, n in enumerate(graph.nodes) if copies[v]]
    largest = sorted(need, key=lambda n: (-n[0], n[1]))[:LARGEST]
    notes: list[str | Remark] = [
        f"alive at the peak: {_words(program, graph, v)}, {size / 1e6:.6g} MB" for size, v in largest
    ]
    mesh = "x".join(map(str, graph.enumerator.mesh.shape))
    return DoesNotFit(
        f"stage {stage} does not fit in {limit / 1e6:.6g} MB per device on mesh {mesh}: it needs at least "
        f"{least_bytes(graph) / 1e6:.6g} MB",
        _location(program, graph, [v for _, v in largest]),
        [*notes, *_relax(constraints, limit, least)],
    )


def _relax(constraints: Sequence[Constraint], limit: float, least: Least) -> list[Remark]:
    """Notes about the smallest set of constraints without which it would fit."""
    if not constraints:
        return []
    sizes = [n for n in range(1, TRIED + 1) if n < len(constraints)]
    for several in (c for n in [*sizes, len(constraints)] for c in combinations(constraints, n)):
        need = least([c for c in constraints if c not in several])
        if need <= limit:
            text = f"it would fit without {'this' if len(several) == 1 else 'these'} ({need / 1e6:.6g} MB): "
            return [Remark(text + c.text, c.where, "note") for c in several]
    return [Remark("it does not fit without any constraint either", constraints[0].where, "note")]


def _words(program: Program, graph: StageGraph, node: int) -> str:
    source = graph.nodes[node].source
    if source.slot:
        kind = program.slots[source.slot].type
        return f"{source.slot} {kind.dtype}{list(kind.shape)}"
    op: OpRecord = program.ops[source.op]
    kind = op.result_types[source.index]
    return f"result of {op.op.name}, {kind.dtype}{list(kind.shape)}"


def _location(program: Program, graph: StageGraph, nodes: list[int]) -> str:
    found = [graph.nodes[v].source.op for v in nodes if graph.nodes[v].source.op >= 0]
    first = program.ops[found[0]] if found else next(iter(program.ops), None)
    return location_text(first.op.location) if first is not None else "-"
