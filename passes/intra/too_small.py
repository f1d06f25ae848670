"""A memory limit that no plan keeps: how much would do, what takes it, and which constraints to give up.

Every value takes least in one of its own strategies, whatever the others do, so the least a stage needs is
what its moments need with each value at its smallest; no search is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from alpa_mlir.dialect.diagnostics import Remark, location_text
from alpa_mlir.passes.intra.constraints import Constraint
from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import DoesNotFit, StateDoesNotFit
from alpa_mlir.passes.intra.program import OpRecord, Program
from alpa_mlir.passes.intra.words import needed_text

Least = Callable[[Sequence[Constraint]], float]
"""The least bytes per device that a stage needs under some constraints."""

LARGEST = 5
"""How many values at the peak are named."""
TRIED = 2
"""How many constraints are given up together where all choices of so many are tried; else one after the other."""


def least_bytes(graph: StageGraph) -> float:
    """The least bytes per device that a stage needs."""
    return float(graph.least_usage().max(initial=0.0))


def _always(graph: StageGraph) -> float:
    """The least bytes per device of a stage's arguments."""
    held = (graph.nodes[node].choices.least_held for slot, node in graph.of_slot.items() if slot.startswith("arg:"))
    return sum(held, 0.0)


def too_small(
    program: Program,
    graph: StageGraph,
    stage: int,
    limit: float,
    constraints: Sequence[Constraint],
    least: Least,
) -> DoesNotFit:
    """The error for a memory limit below any plan's need; StateDoesNotFit where its arguments alone are above it."""
    notes = alive(program, graph)
    mesh = "x".join(map(str, graph.enumerator.mesh.shape))
    needed, always = least_bytes(graph), _always(graph)
    kind = StateDoesNotFit if always > limit else DoesNotFit
    of_it = f", {needed_text(always)} of it for arguments, which are always there" if always > limit else ""
    return kind(
        f"stage {stage} does not fit in {limit / 1e6:.6g} MB per device on mesh {mesh}: it needs at least "
        f"{needed_text(needed)}{of_it}",
        next((_location(program, graph, v) for _, v in _largest(graph) if graph.nodes[v].source.op >= 0), "-"),
        [*notes, *_relax(constraints, limit, least)],
        needed,
    )


def alive(program: Program, graph: StageGraph) -> list[Remark]:
    """Notes about the largest values alive when a stage that holds as little as it can holds most."""
    found = []
    for copies, v in _largest(graph):
        size = copies * graph.nodes[v].choices.least_held
        times = f" ({copies:.0f} times)" if copies > 1 else ""
        text = f"alive at the peak: {_words(program, graph, v)}, {size / 1e6:.6g} MB{times}"
        found.append(Remark(text, _location(program, graph, v), "note"))
    return found


def _largest(graph: StageGraph) -> list[tuple[float, int]]:
    """(copies, node) of the values that take most then."""
    copies = graph.moments.copies(int(graph.least_usage().argmax())).tolist()
    need = [(copies[v] * n.choices.least_held, v) for v, n in enumerate(graph.nodes) if copies[v]]
    return [(copies[v], v) for _, v in sorted(need, key=lambda n: (-n[0], n[1]))[:LARGEST]]


def _relax(constraints: Sequence[Constraint], limit: float, least: Least) -> list[Remark]:
    """Notes about the smallest set of constraints without which it would fit; those of one text go together."""
    if not constraints:
        return []
    every = {c.where: c for c in constraints}

    def without(gone: Sequence[str]) -> float:
        return least([c for c in constraints if c.where not in gone])

    if without(tuple(every)) > limit:
        text = f"it does not fit without any constraint either: it needs at least {needed_text(without(tuple(every)))}"
        return [Remark(text, constraints[0].where, "note")]
    several = _smallest(tuple(every), lambda gone: without(gone) <= limit)
    text = f"it would fit without {'this' if len(several) == 1 else 'these'} ({needed_text(without(several))}): "
    return [Remark(text + every[where].text, where, "note") for where in several]


def _smallest(every: Sequence[str], fits: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """A smallest set that must go; of more than `TRIED` one of which none can stay."""
    for count in range(1, TRIED + 1):
        for gone in combinations(every, count):
            if fits(gone):
                return gone
    gone = tuple(every)
    for one in every:
        fewer = tuple(g for g in gone if g != one)
        gone = fewer if fits(fewer) else gone
    return gone


def _words(program: Program, graph: StageGraph, node: int) -> str:
    source = graph.nodes[node].source
    if source.slot:
        kind = program.slots[source.slot].type
        return f"{source.slot} {kind.dtype}{list(kind.shape)}"
    op: OpRecord = program.ops[source.op]
    kind = op.result_types[source.index]
    return f"result of {op.op.name}, {kind.dtype}{list(kind.shape)}"


def _location(program: Program, graph: StageGraph, node: int) -> str:
    source = graph.nodes[node].source
    if source.op >= 0:
        return location_text(program.ops[source.op].op.location)
    argument = program.argument(source.slot)
    return location_text(argument.location) if argument is not None else "-"
