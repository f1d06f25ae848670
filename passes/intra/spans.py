"""Which nodes hold bytes at which memory row, as runs: a value is alive at a range of moments.

A matrix of rows × nodes has one entry for every moment at which a value is alive, 50 million for a graph of 35
thousand nodes; as runs `copies` of `node` at rows first … end-1 it has as many as there are nodes, and the bytes
in use at all moments are running sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from alpa_mlir.passes.costs.memory import Ids

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spans:
    """Runs sorted by node: `copies` of `node` count in the rows first … end-1."""

    nodes: int
    rows: int
    node: Ids
    first: Ids
    end: Ids
    copies: Array

    @staticmethod
    def none(nodes: int) -> Spans:
        """No rows."""
        nothing = np.zeros(0, dtype=np.int64)
        return Spans(nodes, 0, nothing, nothing, nothing, np.zeros(0))

    @staticmethod
    def of_rows(rows: sparse.csr_matrix) -> Spans:
        """The runs of equal entries in the columns of a matrix rows × nodes."""
        table = sparse.csc_matrix(rows)
        table.sort_indices()
        node = np.repeat(np.arange(table.shape[1]), np.diff(table.indptr))
        keep = table.data != 0
        node, row, copies = node[keep], table.indices[keep].astype(np.int64), table.data[keep].astype(np.float64)
        starts = np.ones(len(row), dtype=bool)
        starts[1:] = (node[1:] != node[:-1]) | (row[1:] != row[:-1] + 1) | (copies[1:] != copies[:-1])
        at = np.flatnonzero(starts)
        last = np.append(at[1:], len(row))[: len(at)] - 1
        return Spans(table.shape[1], table.shape[0], node[at], row[at], row[last] + 1, copies[at])

    @staticmethod
    def of_intervals(intervals: Ids) -> Spans:
        """Nodes alive in [start, end): one row per maximal set of nodes alive together, in order of time."""
        alive = np.flatnonzero(intervals[:, 0] < intervals[:, 1])
        start, end = intervals[alive, 0], intervals[alive, 1]
        deaths = np.unique(end)
        births = np.searchsorted(np.sort(start), deaths, side="left")
        moments = deaths[np.diff(births, prepend=0) > 0]
        first = np.searchsorted(moments, start, side="right")
        last = np.searchsorted(moments, end, side="right")
        return Spans(len(intervals), len(moments), alive, first, last, np.ones(len(alive)))

    def usage(self, held: Array) -> Array:
        """Bytes at each row when node v holds held[v]."""
        change = np.zeros(self.rows + 1)
        amount = held[self.node] * self.copies
        np.add.at(change, self.first, amount)
        np.subtract.at(change, self.end, amount)
        result: Array = np.cumsum(change)[:-1]
        return result

    def kept(self, rows: npt.NDArray[np.bool_]) -> Spans:
        """Only some of the rows; runs that lie in none of them go."""
        place = np.concatenate([[0], np.cumsum(rows)])
        first, end = place[self.first], place[self.end]
        left = first < end
        return replace(
            self, rows=int(rows.sum()), node=self.node[left], first=first[left], end=end[left], copies=self.copies[left]
        )

    def matrix(self) -> sparse.csr_matrix:
        """The same as a matrix rows × nodes."""
        length = self.end - self.first
        offset = np.cumsum(length) - length
        row = np.arange(int(length.sum())) - np.repeat(offset - self.first, length)
        entries = (np.repeat(self.copies, length), (row, np.repeat(self.node, length)))
        return sparse.csr_matrix(entries, shape=(self.rows, self.nodes))
