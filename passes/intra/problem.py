"""The optimisation problem by itself: choose one label per node at least cost, within memory.

    minimise  Σ_v c_v[x_v] + Σ_(u,v) E_uv[x_u, x_v]
    subject to  Σ_v A[r, v] · m_v[x_v] ≤ limit   for every memory row r

Nodes are numbers 0…n-1 (ops and stored values), labels their strategies; costs in seconds, memory in
bytes per device. A row is a moment of the program: A[r, v] says how many copies of node v's value are
alive then. Costs are not negative; an infinite entry forbids a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import sparse

from alpa_mlir.dialect.diagnostics import CompileError

Array = npt.NDArray[np.float64]


class DoesNotFit(CompileError):
    """No labelling keeps within memory: other stages may, so a search over stages goes on."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Costs per node, matrices per edge (u < v), bytes per node, and the memory rows with their limit."""

    costs: tuple[Array, ...]
    edges: dict[tuple[int, int], Array]
    bytes: tuple[Array, ...] = ()
    rows: sparse.csr_matrix = field(default_factory=lambda: sparse.csr_matrix((0, 0)))
    limit: float = float("inf")

    def cost(self, labels: Sequence[int]) -> float:
        """Seconds of a labelling."""
        nodes = sum(float(c[x]) for c, x in zip(self.costs, labels, strict=True))
        return nodes + sum(float(m[labels[u], labels[v]]) for (u, v), m in self.edges.items())

    def usage(self, labels: Sequence[int]) -> Array:
        """Bytes alive at each memory row under a labelling."""
        if not self.rows.shape[0]:
            return np.zeros(0)
        chosen = np.array([b[x] for b, x in zip(self.bytes, labels, strict=True)])
        result: Array = np.asarray(self.rows @ chosen)
        return result

    def least_usage(self) -> Array:
        """Bytes that each row needs at the very least (every node at its smallest strategy)."""
        if not self.rows.shape[0]:
            return np.zeros(0)
        result: Array = np.asarray(self.rows @ np.array([b.min() for b in self.bytes]))
        return result

    def fits(self, labels: Sequence[int]) -> bool:
        """Whether a labelling stays within the limit."""
        return bool((self.usage(labels) <= self.limit * (1 + 1e-9)).all())


@dataclass(frozen=True)
class Solution:
    """The label of every node and its cost in seconds."""

    labels: tuple[int, ...]
    cost: float
    steps: tuple[str, ...] = ()
    """One line per reduction and solver call: what it did and the sizes it left."""
