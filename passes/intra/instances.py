"""Public instances of the intra-operator problem (google/iopddl): from and to JSON.

An instance has nodes with a half-open lifetime [start, end), per strategy a cost and a usage (bytes), edges with
a cost per pair of strategies (row-major over the edge's nodes in the order given), and a limit that the usages of
the nodes alive must keep at every time. A solution is one strategy number per node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.intra.problem import Array, Problem, Solution
from alpa_mlir.passes.intra.spans import Spans

FORBIDDEN = 1e17
"""Costs from here on mean that a pair must not be chosen (the format has no infinity)."""


def parse_instance(document: Any, filename: str = "-") -> Problem:
    """The problem in a parsed JSON document; `CompileError` at `filename` for anything missing or wrong."""
    try:
        instance = document["problem"]
        nodes, edges = instance["nodes"], instance["edges"]
        costs = tuple(_costs(c) for c in nodes["costs"])
        usages = tuple(np.asarray(u, dtype=np.float64) for u in nodes["usages"])
        intervals = np.asarray(nodes["intervals"], dtype=np.int64).reshape(-1, 2)
        limit = float(instance.get("usage_limit", np.inf))
        pairs, tables = edges["nodes"], edges["costs"]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CompileError(f"not an instance of the intra-operator problem: {e!r}", f"{filename}:1:1") from None
    sizes = [len(c) for c in costs]
    if [len(u) for u in usages] != sizes or len(intervals) != len(sizes) or 0 in sizes:
        raise CompileError("every node needs an interval and as many usages as costs, at least one", f"{filename}:1:1")
    merged = _merge_edges(costs, pairs, tables, filename)
    return Problem(costs, merged, usages, limit=limit, spans=Spans.of_intervals(intervals))


def _costs(values: Any) -> Array:
    found = np.asarray(values, dtype=np.float64)
    return np.where(found >= FORBIDDEN, np.inf, found)


def _merge_edges(
    costs: Sequence[Array], pairs: Sequence[Sequence[int]], tables: Sequence[Any], filename: str
) -> dict[tuple[int, int], Array]:
    """Edges from the lower to the higher node, parallel ones added."""
    merged: dict[tuple[int, int], Array] = {}
    if len(pairs) != len(tables):
        raise CompileError(f"{len(pairs)} edges but {len(tables)} cost tables", f"{filename}:1:1")
    for number, (pair, table) in enumerate(zip(pairs, tables, strict=True)):
        u, v = pair
        if not (min(u, v) >= 0 and max(u, v) < len(costs)) or u == v:
            raise CompileError(f"edge {number} joins {pair}, there are {len(costs)} nodes", f"{filename}:1:1")
        flat = _costs(table)
        if flat.size != len(costs[u]) * len(costs[v]):
            raise CompileError(
                f"edge {number} has {flat.size} costs, its nodes {len(costs[u])} × {len(costs[v])} strategies",
                f"{filename}:1:1",
            )
        matrix = flat.reshape(len(costs[u]), len(costs[v]))
        key, matrix = ((u, v), matrix) if u < v else ((v, u), matrix.T)
        merged[key] = merged[key] + matrix if key in merged else matrix
    return dict(sorted(merged.items()))


def solution_document(name: str, found: Solution) -> Mapping[str, Any]:
    """A solution as a JSON document: the strategy of each node, what it costs, and what is proven about that."""
    return {
        "name": name,
        "cost": found.cost,
        "bound": found.bound,
        "gap": found.gap,
        "optimal": found.optimal,
        "solution": [int(x) for x in found.labels],
    }
