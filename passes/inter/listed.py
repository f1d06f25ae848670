"""Stages at their prices: what `StageProfiler` says exactly, read off the prices of all ranges of layers.

A stage costs what it does under the cheapest labelling of the whole program that fits (`pricing.py`); labellings that
hold less are asked for where none fits. Where layers may run again, as few of each stage do as memory allows
(`partial_remat.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.inter.partial_remat import mixtures
from alpa_mlir.passes.inter.pricing import Pricer, RangePrices
from alpa_mlir.passes.intra.stage_cost import Layers, StageCost
from alpa_mlir.passes.intra.stage_parts import StageParts


@dataclass
class ListedStages:
    """The stages of a module on equal submeshes of a cluster, at their prices.

    `kept`, where all layers of the module run again: the stages of the same layers none of which do.
    """

    pricer: Pricer
    cluster: Cluster
    kept: ListedStages | None = None
    _made: dict[tuple[int, ...], list[RangePrices]] = field(default_factory=dict)
    _more: dict[tuple[int, ...], Iterator[RangePrices]] = field(default_factory=dict)
    _mixed: dict[tuple[tuple[int, ...], int], tuple[tuple[int, ...], list[RangePrices]]] = field(default_factory=dict)
    """`_offers` by mesh and number of layers, with of how many prices they are."""

    def cost(self, layers: Layers, mesh: Mesh, in_flight: int = 1, memory_limit: float = 0.0) -> StageCost:
        """What layers first … last (inclusive) cost, as of `StageProfiler.cost`."""
        found = self.chosen(layers, mesh, in_flight, memory_limit)
        if found is None:
            least = min(float(p.memory(in_flight)[layers]) for p in self._offers(layers, mesh))
            return StageCost(float("inf"), float("inf"), least, False)
        held = float(found.memory(in_flight)[layers])
        return StageCost(float(found.repeated[layers]), float(found.once[layers]), held, True)

    def parts(self, layers: Layers, mesh: Mesh, in_flight: int = 1, memory_limit: float = 0.0) -> StageParts:
        """The feasible stage of `cost` taken apart."""
        found = self.chosen(layers, mesh, in_flight, memory_limit)
        assert found is not None
        return found.parts(*layers)

    def unlimited(self, layers: Layers, mesh: Mesh) -> StageCost:
        """What they cost if memory were no object."""
        prices = next((self.kept or self)._labellings(mesh))
        return StageCost(float(prices.repeated[layers]), float(prices.once[layers]), float(prices.stored[layers]), True)

    def foreseen(self, layers: Layers, mesh: Mesh, in_flight: int, memory_limit: float, times: int) -> StageCost:
        """About what they cost with so many times as many microbatches, at the prices known, which are those of
        microbatches that much larger; `in_flight` of the smaller ones are."""
        found = []
        for prices in self._offers(layers, mesh):
            held = float(prices.memory(in_flight, times)[layers])
            if held <= memory_limit:
                seconds = prices.of_smaller(prices.repeated, times)
                found.append(StageCost(float(seconds[layers]), float(prices.once[layers]), held, True))
        microbatches = times * self.pricer.program.microbatches
        worst = StageCost(float("inf"), float("inf"), float("inf"), False)
        return min(found, key=lambda c: c.microbatch_seconds * microbatches + c.step_seconds, default=worst)

    def chosen(self, layers: Layers, mesh: Mesh, in_flight: int = 1, memory_limit: float = 0.0) -> RangePrices | None:
        """The prices under which the stage fits and costs least; None where it does not fit."""
        limit = memory_limit or float(self.cluster.memory)
        microbatches = self.pricer.program.microbatches
        for listed in filter(None, (self, self.kept)):
            listed._ask(layers, mesh, in_flight, limit)
        fitting = [p for p in self._offers(layers, mesh) if p.memory(in_flight)[layers] <= limit]
        return min(fitting, key=lambda p: float(p.repeated[layers] * microbatches + p.once[layers]), default=None)

    def _ask(self, layers: Layers, mesh: Mesh, in_flight: int, limit: float) -> None:
        """Ask for labellings until the stage fits under one."""
        next((p for p in self._labellings(mesh) if p.memory(in_flight)[layers] <= limit), None)

    def _offers(self, layers: Layers, mesh: Mesh) -> list[RangePrices]:
        """All prices on a mesh that are known, one at least, with those of which only some layers run again, as far as
        they are of ranges of so many layers."""
        next(self._labellings(mesh))
        own = self._made[mesh.shape]
        if self.kept is None:
            return own
        kept, longest = self.kept._offers(layers, mesh), layers[1] - layers[0] + 1
        key, known = (mesh.shape, longest), (len(own), len(kept))
        if self._mixed.get(key, ((), []))[0] != known:
            self._mixed[key] = known, [*own, *mixtures(kept, own, longest)]
        return self._mixed[key][1]

    def _labellings(self, mesh: Mesh) -> Iterator[RangePrices]:
        """The prices on a mesh, those that were made before first."""
        if mesh.shape not in self._made:
            lanes = self.cluster.device_count // mesh.device_count
            flying = min(2 * lanes, self.pricer.program.microbatches)
            self._made[mesh.shape] = []
            self._more[mesh.shape] = self.pricer.prices(mesh, flying, 1 / lanes, self.cluster)
        yield from list(self._made[mesh.shape])
        for prices in self._more[mesh.shape]:
            self._made[mesh.shape].append(prices)
            yield prices
