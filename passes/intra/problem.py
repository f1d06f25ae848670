"""The optimisation problem by itself: choose one label per node at least cost, within memory.

    minimise  Σ_v c_v[x_v] + Σ_(u,v) E_uv[x_u, x_v]
    subject to  Σ_v A[r, v] · m_v[x_v] ≤ limit   for every memory row r

Nodes are numbers 0…n-1 (ops and stored values), labels their strategies; costs in seconds, memory in
bytes per device. A row is a moment of the program: A[r, v] says how many copies of node v's value are
alive then. Costs are not negative; an infinite entry forbids a pair. The rows are given as a matrix or, where
values are alive at ranges of many moments, as runs (`spans.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from jaxlib.mlir import ir
from scipy import sparse

from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.passes.intra.spans import Spans

Array = npt.NDArray[np.float64]


TOLERANCE = 1e-12
"""What sums of bytes may exceed the limit by, in parts of it: rounding, where bytes are no whole numbers."""


OPTIMAL = 1e-6
"""Gaps up to this count as none: about what solvers of linear programs promise."""


class DoesNotFit(CompileError):
    """No labelling keeps within memory: other stages may, so a search over stages goes on.

    `least`: bytes per device that would do; infinite where that is not known.
    """

    def __init__(
        self,
        message: str,
        location: ir.Location | str | None = None,
        notes: Sequence[str | Remark] = (),
        least: float = float("inf"),
    ) -> None:
        super().__init__(message, location, notes)
        self.least = least


class StateDoesNotFit(DoesNotFit):
    """What is always held does not fit: no other setting helps (of one stage: none on the same devices)."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Costs per node, matrices per edge (u < v), bytes per node, and the memory rows with their limit."""

    costs: tuple[Array, ...]
    edges: dict[tuple[int, int], Array]
    bytes: tuple[Array, ...] = ()
    rows: sparse.csr_matrix = field(default_factory=lambda: sparse.csr_matrix((0, 0)))
    limit: float = float("inf")
    spans: Spans | None = None
    """The rows as runs, instead of `rows`."""
    base: Array = field(default_factory=lambda: np.zeros(0))
    """Bytes at each row besides those of the nodes (none: zero)."""

    @cached_property
    def runs(self) -> Spans:
        """The memory rows as runs."""
        if self.spans is not None:
            return self.spans
        return Spans.of_rows(self.rows) if self.rows.shape[0] else Spans.none(len(self.costs))

    def with_matrix(self) -> Problem:
        """The same with the memory rows as a matrix."""
        return self if self.spans is None else replace(self, rows=self.spans.matrix(), spans=None)

    def cost(self, labels: Sequence[int]) -> float:
        """Seconds of a labelling."""
        nodes = sum(float(c[x]) for c, x in zip(self.costs, labels, strict=True))
        return nodes + sum(float(m[labels[u], labels[v]]) for (u, v), m in self.edges.items())

    def usage(self, labels: Sequence[int]) -> Array:
        """Bytes alive at each memory row under a labelling."""
        return self._at_rows(lambda: [b[x] for b, x in zip(self.bytes, labels, strict=True)])

    def least_usage(self) -> Array:
        """Bytes that each row needs at the very least (every node at its smallest strategy)."""
        return self._at_rows(lambda: [b.min() for b in self.bytes])

    def largest_usage(self) -> Array:
        """Bytes that each row needs at the most."""
        return self._at_rows(lambda: [b.max() for b in self.bytes])

    def _at_rows(self, held: Callable[[], list[float]]) -> Array:
        if self.spans is not None:
            return self.spans.usage(np.array(held()))
        if not self.rows.shape[0]:
            return np.zeros(0)
        base = self.base if len(self.base) else 0.0
        result: Array = np.asarray(self.rows @ np.array(held())) + base
        return result

    def fits(self, labels: Sequence[int]) -> bool:
        """Whether a labelling stays within the limit."""
        return bool((self.usage(labels) <= self.limit * (1 + TOLERANCE)).all())


Progress = Callable[[str], None]
Stop = Callable[[], bool]
Remaining = Callable[[], float]
"""Seconds until a solver has to end."""


def quiet(_: str) -> None:
    """No progress is shown."""


def never() -> bool:
    """The search runs to its end."""
    return False


def endless() -> float:
    """A solver may take as long as it takes."""
    return float("inf")


@dataclass(frozen=True)
class Solution:
    """The label of every node and its cost in seconds."""

    labels: tuple[int, ...]
    cost: float
    steps: tuple[str, ...] = ()
    """One line per reduction and solver call: what it did and the sizes it left."""
    bound: float = -np.inf
    """No labelling that fits costs less."""

    @property
    def gap(self) -> float:
        """What may be left to gain, in parts of the cost."""
        return max(0.0, self.cost - self.bound) / abs(self.cost) if self.cost > self.bound else 0.0

    @property
    def optimal(self) -> bool:
        """Whether nothing is left to gain, up to what solvers and sums round."""
        return self.gap <= OPTIMAL
