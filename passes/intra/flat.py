"""A problem laid out in flat arrays, as compiled loops want it.

Labels of node v stand at start[v] … start[v+1]-1 of `cost` and `held`. An edge has two halves, one at either end;
those of node v stand at first[v] … first[v+1]-1, sorted by the node at the other end, the first `behind[v]` of them
lead to lower numbers. Half h at v with other end w has the table of the edge at table[h] of `entries`, laid out
[label of w, label of v], so that all costs of v's labels given one of w's lie together; `twin[h]` is the other half,
and message[h] the place of one number per label of v. Runs of memory rows (`spans.py`) of v stand at
run[v] … run[v+1]-1; `room` is what is left at each row after what does not depend on any label, `row` its number
among the rows of the problem.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.costs.memory import Ids
from alpa_mlir.passes.intra.compiled import compiled
from alpa_mlir.passes.intra.reductions import WorkingGraph
from alpa_mlir.passes.intra.spans import Spans

Array = npt.NDArray[np.float64]
WINDOW = 128
"""Rows at most so far apart are compared to see which is implied by the other."""


class Flat(NamedTuple):
    """See above. `messages` is the number of message entries, `big` what counts as forbidden."""

    start: Ids
    cost: Array
    held: Array
    first: Ids
    behind: Ids
    other: Ids
    twin: Ids
    message: Ids
    table: Ids
    entries: Array
    run: Ids
    run_first: Ids
    run_end: Ids
    run_copies: Array
    room: Array
    row: Ids
    messages: int
    big: float

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return len(self.start) - 1


def flatten(graph: WorkingGraph, spans: Spans, limit: float) -> tuple[list[int], Flat]:
    """(the nodes left of a working graph, all that is left in flat arrays)."""
    order = sorted(graph.costs)
    place = {v: i for i, v in enumerate(order)}
    sizes = np.array([len(graph.costs[v]) for v in order], dtype=np.int64)
    held = [graph.bytes[v][graph.labels[v]] if v in graph.bytes else np.zeros(len(graph.costs[v])) for v in order]
    others = [sorted(graph.around[v]) for v in order]
    first = offsets(np.array([len(o) for o in others], dtype=np.int64))
    own = np.repeat(np.arange(len(order)), np.diff(first))
    other = np.array([place[w] for o in others for w in o], dtype=np.int64)
    # Halves sorted by (own, other); the twins are the same halves sorted by (other, own).
    twin = np.lexsort((own, other))
    tables = [graph.around[w][v].ravel() for v, o in zip(order, others, strict=True) for w in o]
    message = offsets(sizes[own])
    rows, room, row = memory_rows(graph, spans, limit, order, held)
    return order, Flat(
        offsets(sizes),
        joined([graph.costs[v] for v in order]),
        joined(held),
        first,
        np.bincount(own[other < own], minlength=len(order)),
        other,
        twin,
        message[:-1],
        offsets(sizes[own] * sizes[other])[:-1],
        joined(tables),
        np.searchsorted(rows.node, np.arange(len(order) + 1)),
        rows.first,
        rows.end,
        rows.copies,
        room,
        row,
        int(message[-1]),
        graph.forbidden,
    )


def memory_rows(
    graph: WorkingGraph, spans: Spans, limit: float, order: list[int], held: list[Array]
) -> tuple[Spans, Array, Ids]:
    """The rows, over places in `order`, that some labelling may break, without implied ones; rooms and numbers."""
    fixed = np.zeros(spans.nodes)
    fixed[list(graph.fixed)] = list(graph.fixed.values())
    room = limit - spans.usage(fixed)
    least, most = np.zeros(spans.nodes), np.zeros(spans.nodes)
    least[order] = [h.min() for h in held]
    most[order] = [h.max() for h in held]
    counts = np.flatnonzero(most)
    place = np.full(spans.nodes, -1)
    place[order] = np.arange(len(order))
    matters = np.isin(spans.node, counts)
    left = Spans(len(order), spans.rows, place[spans.node[matters]], spans.first[matters], spans.end[matters],
                 spans.copies[matters])  # fmt: skip
    least, most = least[order], most[order]
    binding = left.usage(most) > room
    left, room = left.kept(binding), room[binding]
    implied = _implied(
        *_events(left.first, left.rows), *_events(left.end, left.rows + 1), left.first,
        least[left.node] * left.copies, most[left.node] * left.copies, room,
    )  # fmt: skip
    return left.kept(~implied), room[~implied], np.flatnonzero(binding)[~implied]


def _events(at: Ids, count: int) -> tuple[Ids, Ids]:
    """(runs sorted by an event's row, where each row's begin)."""
    order = np.argsort(at, kind="stable")
    return order, np.searchsorted(at[order], np.arange(count + 1))


@compiled
def _implied(
    births: Ids, birth: Ids, deaths: Ids, death: Ids, first: Ids, least: Array, most: Array, room: Array
) -> npt.NDArray[np.bool_]:
    """Rows r that another row q implies: usage of r − room of r ≤ usage of q − room of q whatever the labels."""
    rows = len(room)
    gone = np.zeros(rows, dtype=np.bool_)
    for r in range(rows):
        only_most = only_least = new_most = new_least = 0.0
        for q in range(r + 1, min(rows, r + WINDOW)):
            for k in range(death[q], death[q + 1]):
                if first[deaths[k]] <= r:
                    only_most += most[deaths[k]]
                    only_least += least[deaths[k]]
                else:
                    new_most -= most[deaths[k]]
                    new_least -= least[deaths[k]]
            for k in range(birth[q], birth[q + 1]):
                new_most += most[births[k]]
                new_least += least[births[k]]
            if gone[q] or gone[r]:
                continue
            if only_most - new_least <= room[r] - room[q]:
                gone[r] = True
            elif new_most - only_least <= room[q] - room[r]:
                gone[q] = True
        # A row that is gone is implied by one that stays: being implied is transitive.
    return gone


def offsets(sizes: Ids) -> Ids:
    """Where pieces of these sizes begin, one after the other, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def joined(parts: list[Array]) -> Array:
    """All parts, one after the other."""
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.float64) if parts else np.zeros(0)
