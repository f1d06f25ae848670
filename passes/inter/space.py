"""What the search for stages knows of itself: submesh options, ranges of layers, what was solved (`search.py`)."""

from __future__ import annotations

from typing import Protocol

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.inter.dp import Partition, StageChoice
from alpa_mlir.passes.inter.in_flight import InFlight
from alpa_mlir.passes.inter.pricing import Pricer
from alpa_mlir.passes.intra.stage_cost import StageCost

Entry = tuple[int, int, int, int]
"""(q-1, first layer, last layer, option)."""


class SearchSpace(Protocol):
    """What is searched: submesh options for ranges of layers; `memory` in bytes per device, 0: the cluster's."""

    cluster: Cluster
    in_flight: InFlight
    memory: float
    rough: bool
    pricer: Pricer
    options: list[int]
    """The submesh options that are searched."""
    groups: tuple[Cluster, ...]
    """The equal devices that each option is of."""
    evaluated: dict[Entry, StageCost]
    """Exact costs, as far as known."""

    @property
    def layers(self) -> int:
        """Number of layers that can be cut between."""

    def mesh(self, option: int, name: str = "stage") -> Mesh:
        """The logical mesh of an option."""

    def limit(self, option: int) -> float:
        """Bytes per device of an option."""

    def exact_wait(self, choice: StageChoice) -> float:
        """`InFlight.wait` of a stage that was solved."""

    def place(self, found: Partition) -> list[tuple[int, ...]] | None:
        """The devices of each stage; None where the submeshes cannot be packed into the nodes."""
