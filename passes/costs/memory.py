"""Bytes per device over a step: what is alive at each moment, as counts of copies per value.

    M1  stored values (state, constants, sums, stacks, the microbatch's batch arguments) are alive always
    M2  a value of @microbatch is alive from its op to its last use in program order
    M3  a forward value that a backward op uses is kept once per microbatch in flight, of the one at work from the start
        of the forward function to the end of the backward one; so is a batch argument that both passes read
    M4  a value that fusion computes where it is needed (rule T1) is never held; what it is computed from is alive
        as long as it would be. What the other pass needs is held, unless `alpa-split` repeats it there
    M5  a new state value takes over the buffer of the old one
    M6  a value that leaves the step is alive to the end of its function; what leaves a microbatch (its gradients, which
        are added to the sums afterwards) from the start of its phase: XLA gives results their buffers first
    M7  a value that several products share (rule C15) is alive for them in the sharding of that copy; a forward value
        whose copy is kept is not kept beside it
    M8  of values that arrive, state comes once a step and is kept once; all are there from the start to the end of the
        functions that read them

The moments that matter are those just before something dies with something born since the last death:
all others have a subset of their values alive (the maximal cliques of an interval graph). A value is alive
at a range of them, so bytes over all moments are running sums: born minus died. Nodes may be counted in
groups (of values that share one decision): then repeated layers leave few rows that no other row dominates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

Ids = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.float64]

BLOCK = 4096
"""Moments that are counted at once."""
AHEAD = 8
"""Columns in which rows are compared before all others."""
PARTS = 8
"""Parts of a function of whose moments each the fullest is found."""


@dataclass(frozen=True)
class Lifetime:
    """Copies of a value alive in [first, last] (op positions of one function); `kept` more for all its moments."""

    node: int
    function: str
    first: int
    last: int
    kept: int = 0


@dataclass(frozen=True, eq=False)
class Spans:
    """The lifetimes of one function: each node is alive at moments born … died-1 of `count`, plus `kept` copies."""

    node: Ids
    born: Ids
    died: Ids
    kept: Ids
    count: int

    @staticmethod
    def of(lifetimes: Sequence[Lifetime]) -> Spans:
        table = np.array([(t.node, t.first, t.last, t.kept) for t in lifetimes], dtype=np.int64)
        node, first, last, kept = table.T
        deaths = np.unique(last)
        births = np.searchsorted(np.sort(first), deaths, side="right")
        times = deaths[np.diff(births, prepend=0) > 0]
        born, died = np.searchsorted(times, first), np.searchsorted(times, last, side="right")
        return Spans(node, born, died, kept, len(times))

    def running(self, copies: Bytes) -> Bytes:
        """What is alive at each moment, of `copies` per lifetime (without what is kept)."""
        change = np.zeros(self.count + 1)
        np.add.at(change, self.born, copies)
        np.add.at(change, self.died, -copies)
        result: Bytes = np.cumsum(change)[:-1]
        return result


@dataclass(frozen=True, eq=False)
class Moments:
    """Which of `nodes` values are alive when: `stored` ones always, the others in spans of each function."""

    nodes: int
    stored: Ids
    spans: tuple[Spans, ...]

    @staticmethod
    def of(nodes: int, stored: Sequence[int], lifetimes: Sequence[Lifetime]) -> Moments:
        """From lifetimes (rules M1 to M3)."""
        by_function: dict[str, list[Lifetime]] = {}
        for lifetime in lifetimes:
            by_function.setdefault(lifetime.function, []).append(lifetime)
        spans = tuple(Spans.of(found) for found in by_function.values())
        return Moments(nodes, np.array(sorted(stored), dtype=np.int64), spans)

    def keeping(self, times: int) -> Moments:
        """The same lifetimes with `times` times as many copies kept."""
        return Moments(self.nodes, self.stored, tuple([replace(s, kept=times * s.kept) for s in self.spans]))

    def counted(self) -> set[int]:
        """The nodes that hold bytes at some moment."""
        return set(np.concatenate([self.stored, *(s.node for s in self.spans)]).tolist())

    def counted_at(self, moments: Sequence[int]) -> set[int]:
        """The nodes that hold bytes at some of the moments."""
        found = np.zeros(self.nodes, dtype=bool)
        for moment in moments:
            found |= self.copies(moment) > 0
        return set(np.flatnonzero(found).tolist())

    def signature(self) -> tuple[object, ...]:
        """Equal where the same nodes are alive at the same moments."""
        spans = tuple(a.tobytes() for s in self.spans for a in (s.node, s.born, s.died, s.kept))
        return self.nodes, self.stored.tobytes(), spans

    def usage(self, held: Bytes) -> Bytes:
        """Bytes alive at each moment, all functions in order, where node v holds `held[v]`; at least one moment."""
        base = float(held[self.stored].sum())
        found = [
            base + float((held[s.node] * s.kept).sum()) + np.maximum(s.running(held[s.node]), 0.0) for s in self.spans
        ]
        return np.concatenate(found) if found else np.array([base])

    def copies(self, moment: int) -> Bytes:
        """How many copies of each node's value are alive at one moment (in the order of `usage`)."""
        result = np.zeros(self.nodes)
        result[self.stored] = 1.0
        for spans in self.spans:
            if moment < spans.count:
                alive = (spans.born <= moment) & (moment < spans.died)
                np.add.at(result, spans.node, spans.kept + alive)
                break
            moment -= spans.count
        return result

    def rows(self) -> sparse.csr_matrix:
        """Rows [moments, nodes] of how many copies of each node's value are alive; at least one row."""
        base = np.zeros(self.nodes)
        base[self.stored] = 1.0
        blocks = [sparse.csr_matrix(base[None, :])] if not self.spans else []
        for spans in self.spans:
            always = base + np.bincount(spans.node, weights=spans.kept, minlength=self.nodes)
            length = spans.died - spans.born
            start = np.cumsum(length) - length
            moment = np.arange(int(length.sum())) - np.repeat(start - spans.born, length)
            constant = np.flatnonzero(always)
            row = np.concatenate([moment, np.repeat(np.arange(spans.count), len(constant))])
            column = np.concatenate([np.repeat(spans.node, length), np.tile(constant, spans.count)])
            value = np.concatenate([np.ones(len(moment)), np.tile(always[constant], spans.count)])
            blocks.append(sparse.coo_matrix((value, (row, column)), shape=(spans.count, self.nodes)).tocsr())
        return sparse.vstack(blocks).tocsr()

    def grouped_rows(self, groups: Ids, count: int) -> sparse.csr_matrix:
        """Rows [moments, count] of how many copies of each group's values are alive, without dominated rows."""
        base = np.bincount(groups[self.stored], minlength=count).astype(np.int32)
        kept = base[None, :] if not self.spans else np.zeros((0, count), dtype=np.int32)
        for block in self._group_blocks(groups, count, base):
            kept = undominated(np.concatenate([kept, block]))
        return sparse.csr_matrix(kept.astype(np.float64))

    def grouped_rows_at(self, moments: Sequence[int], groups: Ids, count: int) -> sparse.csr_matrix:
        """The rows [len(moments), count] of some moments only, as they are."""
        rows = np.zeros((len(moments), count))
        for row, moment in zip(rows, moments, strict=True):
            np.add.at(row, groups, self.copies(moment))
        return sparse.csr_matrix(rows)

    def fullest(self, usage: Bytes, limit: float = -np.inf) -> list[int]:
        """Of each part of each function the moment at which most bytes are in use, where that is more than `limit`.

        `usage`: the bytes in use at all moments.
        """
        found, first = list[int](), 0
        for size in [s.count for s in self.spans] or [1]:
            for part in np.array_split(np.arange(first, first + size), min(PARTS, size)):
                worst = int(part[usage[part].argmax()])
                if usage[worst] > limit:
                    found.append(worst)
            first += size
        return found

    def _group_blocks(self, groups: Ids, count: int, base: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int32]]:
        for spans in self.spans:
            group = groups[spans.node]
            alive = base + np.bincount(group, weights=spans.kept, minlength=count).astype(np.int32)
            for first in range(0, spans.count, BLOCK):
                size = min(BLOCK, spans.count - first)
                change = np.zeros((size, count), dtype=np.int32)
                for moment, sign in ((spans.born, 1), (spans.died, -1)):
                    here = (moment >= first) & (moment < first + size)
                    np.add.at(change, (moment[here] - first, group[here]), sign)
                block = np.cumsum(change, axis=0, dtype=np.int32) + alive
                alive = block[-1]
                yield block


def undominated(rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Rows without those that another row counts at least as much of everything (the first of equals stays).

    Rows are compared where they differ at all, and where they differ most first: few of them have to be further.
    """
    order = np.argsort(-rows.sum(axis=1, dtype=np.int64), kind="stable")
    spread = rows.max(axis=0) - rows.min(axis=0)
    columns = np.argsort(-spread, kind="stable")[: np.count_nonzero(spread)]
    compared = np.ascontiguousarray(rows[:, columns])
    ahead, behind = np.zeros_like(compared[:, :AHEAD]), np.zeros_like(compared[:, AHEAD:])
    seen: set[bytes] = set()
    found: list[int] = []
    for r in order.tolist():
        row, known = compared[r], len(seen)
        seen.add(row.tobytes())
        if len(seen) == known:
            continue
        n = len(found)
        above = np.flatnonzero((ahead[:n] >= row[:AHEAD]).all(axis=1))
        if not above.size or not (behind[above] >= row[AHEAD:]).all(axis=1).any():
            ahead[n], behind[n] = row[:AHEAD], row[AHEAD:]
            found.append(r)
    return rows[np.sort(np.array(found, dtype=np.int64))]


def live_rows(nodes: int, stored: Sequence[int], lifetimes: Sequence[Lifetime]) -> sparse.csr_matrix:
    """`Moments.of(…).rows()`."""
    return Moments.of(nodes, stored, lifetimes).rows()
