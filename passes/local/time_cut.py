"""Where to add up: the cheapest set of partial values between the microbatches and the update.

A partial value may be added over the microbatches at once, or after further linear ops (`lr * g`, a transpose,
the sum of the two gradients of a tied embedding).  Which values to accumulate is a minimum cut: ops that
see examples belong to the microbatch (source), nonlinear uses to the update (sink), a linear op to either; a value
made on the source side and used on the other costs its bytes once.  Among equal cuts the one nearest to the
producers is taken, so that as little as possible is done M times.

Floats narrower than 32 bits are charged as four bytes and one more: adding M of them loses digits, and
where the program itself widens a gradient next, the wide one is the better sum.
Theory: Picard 1976, maximal closure of a graph; the nearest cut is what the source reaches in the residual graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.rounds import ENDS, find_rounds
from alpa_mlir.passes.local.time_analysis import TimeAnalysis, inputs
from alpa_mlir.passes.local.time_demand import BARRIER
from alpa_mlir.passes.local.time_fission import MustSplit, TwoLoops

Node = int
SOURCE, SINK = -1, -2


@dataclass
class _Uses:
    """Uses of one partial value: by free ops (their nodes), in the update, in ops of the microbatch."""

    node: Node | None
    free: list[Node] = field(default_factory=list)
    finished: bool = False
    late: list[ir.Operation] = field(default_factory=list)
    """The ops that need it finished."""
    local: bool = False
    whole: bool = False
    """Whether it cannot be added up: it is of one round of a loop."""


def accumulated(analysis: TimeAnalysis, results: Sequence[ir.Value], beforehand: dict[ir.Value, None]) -> set[ir.Value]:
    """The partial values that stay on the microbatch's side: those of them used in the update are its sums.

    `results` are the program's results, `beforehand` the values that the update has without a sum.
    Membership is all that may be asked of the returned set (its order means nothing).
    """
    graph = _collect(analysis, results, beforehand)
    tied = _keep_loops(analysis, graph, beforehand)
    side = _microbatch_side(graph, tied)
    return {v for v, uses in graph.items() if uses.node is None or uses.node in side}


def _collect(
    analysis: TimeAnalysis, results: Sequence[ir.Value], beforehand: dict[ir.Value, None]
) -> dict[ir.Value, _Uses]:
    graph: dict[ir.Value, _Uses] = {}
    nodes: dict[ir.Value, Node | None] = {}
    for number, op in enumerate(analysis.ops[:-1]):
        if op.name == BARRIER:
            for i, (value, result) in enumerate(zip(op.operands, op.results, strict=True)):
                made = [result] if analysis.state(result).is_partial else []
                _enter(analysis, graph, nodes, op, [value], made, number * 1024 + i)
        else:
            made = [r for r in op.results if analysis.state(r).is_partial]
            _enter(analysis, graph, nodes, op, inputs(op), made, number * 1024)
    for value in results:
        if value in graph:
            graph[value].finished = True
    for value in beforehand:
        if value in graph:
            graph[value].finished = False
    return graph


def _keep_loops(
    analysis: TimeAnalysis, graph: dict[ir.Value, _Uses], beforehand: dict[ir.Value, None]
) -> list[list[Node]]:
    """Let nothing be added up that is of one round of a loop (`dialect/rounds.py`): the loop stays on one side.

    The free ops of each loop, which belong together. MustSplit where loops need both sides.
    """
    ops = analysis.ops[:-1]
    tied = []
    both: list[TwoLoops] = []
    for loop in find_rounds(ops):
        nodes: list[Node] = []
        early: list[ir.Value] = []
        late: dict[int, ir.Operation] = {}
        local = False
        members = [ops[n] for n in loop.ops]
        for op in members:
            local |= op_id(op) in analysis.places or op_id(op) in analysis.entered
            for value in op.results:
                uses = graph.get(value)
                if value in beforehand and not analysis.stateful[value] and op.name not in ENDS:
                    early.append(value)
                if uses is None:
                    continue
                nodes += [uses.node] if uses.node is not None else []
                if op.name not in ENDS:
                    uses.whole = True
                    late.update((op_id(user), user) for user in uses.late)
                    local |= uses.local
        if early or (late and local):
            both.append(TwoLoops(members, early, list(late.values())))
        tied.append(nodes)
    if both:
        raise MustSplit(both)
    return tied


def _enter(
    analysis: TimeAnalysis,
    graph: dict[ir.Value, _Uses],
    nodes: dict[ir.Value, Node | None],
    op: ir.Operation,
    used: Sequence[ir.Value],
    made: Sequence[ir.Value],
    name: Node,
) -> None:
    pinned = op_id(op) in analysis.places or op_id(op) in analysis.entered
    statistic = any(r in analysis.statistics for r in op.results)
    for value in used:
        uses = graph.get(value)
        if uses is None:
            continue
        if pinned or statistic:
            uses.local = True
        elif made:
            uses.free.append(name)
        else:
            uses.finished = True
            uses.late.append(op)
    for value in made:
        graph[value] = _Uses(None if pinned or statistic else name)


def _microbatch_side(graph: dict[ir.Value, _Uses], tied: Sequence[Sequence[Node]]) -> set[Node]:
    """The free ops that stay with the microbatches: the smallest source side of all minimum cuts.

    Parts of the graph that only the ends join are cut one by one, equal ones (those of equal layers) once.
    """
    flow = _flow(graph)
    flow += [edge for nodes in tied for a, b in pairwise(nodes) for edge in ((a, b, None), (b, a, None))]
    known: dict[tuple[_Edge, ...], list[int]] = {}
    side: set[Node] = set()
    for part in _parts(flow):
        nodes = sorted({n for edge in part for n in edge[:2]} - {SOURCE, SINK})
        rank = {n: k for k, n in enumerate(nodes)} | {SOURCE: -1, SINK: -2}
        key = tuple((rank[u], rank[v], price) for u, v, price in part)
        if key not in known:
            known[key] = _cut(key)
        side.update(nodes[k] for k in known[key])
    return side


_Edge = tuple[Node, Node, int | None]
"""From, to, and the capacity (None: infinite)."""


def _flow(graph: dict[ir.Value, _Uses]) -> list[_Edge]:
    """The reversed graph, whose largest source side is the complement of the smallest; values follow ops as nodes."""
    first = 1 + max((node for uses in graph.values() for node in (uses.node or 0, *uses.free)), default=0)
    flow: list[_Edge] = []
    for i, (value, uses) in enumerate(graph.items()):
        if uses.node is None and not uses.free:
            continue
        maker, node = SOURCE if uses.node is None else uses.node, first + i
        flow.append((node, maker, None if uses.whole else _price(value)))
        if uses.finished:
            flow.append((SINK, node, None))
        if uses.local and maker != SOURCE:
            flow.append((maker, SOURCE, None))
        for user in uses.free:
            flow += [(user, node, None), (maker, user, None)]
    return flow


def _parts(flow: Sequence[_Edge]) -> list[list[_Edge]]:
    """The edges of each part that is connected without source and sink."""
    root: dict[Node, Node] = {}

    def find(n: Node) -> Node:
        while root.setdefault(n, n) != n:
            root[n] = n = root[root[n]]
        return n

    for u, v, _ in flow:
        if min(u, v) >= 0:
            root[find(u)] = find(v)
    parts: dict[Node, list[_Edge]] = {}
    for edge in flow:
        parts.setdefault(find(max(edge[:2])), []).append(edge)
    return list(parts.values())


def _cut(edges: Sequence[_Edge]) -> list[Node]:
    """The nodes on the source side of the minimum cut of a part."""
    # A quarter of a command's start, for those that cut.
    import networkx as nx

    piece: nx.DiGraph = nx.DiGraph()
    piece.add_nodes_from([SOURCE, SINK])
    for u, v, price in edges:
        piece.add_edge(u, v, **({} if price is None else {"capacity": price}))
    _, (_, kept) = nx.minimum_cut(piece, SINK, SOURCE)
    return sorted(n for n in kept if n >= 0)


def _price(value: ir.Value) -> int:
    element = ir.RankedTensorType(value.type).element_type
    size = prod(shape_of(value) or ())
    if isinstance(element, ir.FloatType):
        return size * int(element.width // 8 if element.width >= 32 else 5)
    if isinstance(element, ir.IntegerType):
        return size * max(1, int(element.width) // 8)
    return size * 8
