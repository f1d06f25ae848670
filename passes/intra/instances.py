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
    """The problem in a parsed JSON document; `CompileError` at `filename`, with the entry, for what is wrong there."""
    try:
        return _problem(document)
    except _Wrong as e:
        raise CompileError(f"not an instance of the intra-operator problem: {e}", f"{filename}:1:1") from None


class _Wrong(Exception):
    """What is wrong with an instance, and where in it."""


def _problem(document: Any) -> Problem:
    instance = _member(document, "problem", "the document")
    nodes, edges = (_member(instance, name, "problem") for name in ("nodes", "edges"))
    costs, usages, intervals = (_list(_member(nodes, n, "nodes"), n) for n in ("costs", "usages", "intervals"))
    if not len(costs) == len(usages) == len(intervals):
        raise _Wrong(f"{len(costs)} nodes have costs, {len(usages)} usages, {len(intervals)} an interval")
    tables = tuple([_costs(c, f"nodes.costs[{v}]") for v, c in enumerate(costs)])
    bytes_ = tuple([_numbers(u, f"nodes.usages[{v}]") for v, u in enumerate(usages)])
    for v, (c, u) in enumerate(zip(tables, bytes_, strict=True)):
        if len(c) == 0 or len(c) != len(u):
            raise _Wrong(f"node {v} has {len(c)} costs and {len(u)} usages: as many of both, at least one, are needed")
        if not np.isfinite(u).all():
            raise _Wrong(f"nodes.usages[{v}] is not finite")
    times = [_whole(i, 2, f"nodes.intervals[{v}]") for v, i in enumerate(intervals)]
    limit = _numbers([instance.get("usage_limit", float("inf"))], "usage_limit")[0]
    spans = Spans.of_intervals(np.array(times, dtype=np.int64).reshape(-1, 2))
    merged = _merge_edges(tables, *(_list(_member(edges, n, "edges"), f"edges.{n}") for n in ("nodes", "costs")))
    return Problem(tables, merged, bytes_, limit=float(limit), spans=spans)


def _member(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise _Wrong(f"{where} has no {name!r}")
    return value[name]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(f"{where} is no list")
    return value


def _numbers(values: Any, where: str) -> Array:
    """Numbers that are not negative."""
    try:
        found = np.asarray(_list(values, where))
        if found.dtype.kind not in "iuf":
            found = np.array([float(v) for v in values if _is_number(v, where)])
    except (ValueError, OverflowError):  # lists of unlike lengths inside; whole numbers beyond all floats
        raise _Wrong(f"{where} holds something else than numbers") from None
    if found.ndim != 1:
        raise _Wrong(f"{where} is no flat list of numbers")
    result: Array = found.astype(np.float64)
    if not (result >= 0).all():
        raise _Wrong(f"{where} holds a negative number, or none")
    return result


def _is_number(value: Any, where: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong(f"{where} holds {value!r}: numbers are needed")
    return True


def _costs(values: Any, where: str) -> Array:
    found = _numbers(values, where)
    return np.where(found >= FORBIDDEN, np.inf, found)


def _whole(values: Any, count: int, where: str) -> list[int]:
    """That many whole numbers of 62 bits."""
    fits = len(_list(values, where)) == count and all(type(v) is int and abs(v) < 2**62 for v in values)
    if not fits:
        raise _Wrong(f"{where} is {values!r}: {count} whole numbers are needed")
    return list(values)


def _merge_edges(costs: Sequence[Array], pairs: list[Any], tables: list[Any]) -> dict[tuple[int, int], Array]:
    """Edges from the lower to the higher node, parallel ones added."""
    merged: dict[tuple[int, int], Array] = {}
    if len(pairs) != len(tables):
        raise _Wrong(f"{len(pairs)} edges but {len(tables)} cost tables")
    for number, (pair, table) in enumerate(zip(pairs, tables, strict=True)):
        u, v = _whole(pair, 2, f"edges.nodes[{number}]")
        if not (min(u, v) >= 0 and max(u, v) < len(costs)) or u == v:
            raise _Wrong(f"edge {number} joins {pair}, there are {len(costs)} nodes")
        flat = _costs(table, f"edges.costs[{number}]")
        if flat.size != len(costs[u]) * len(costs[v]):
            raise _Wrong(f"edge {number} has {flat.size} costs, its nodes {len(costs[u])} × {len(costs[v])} strategies")
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
