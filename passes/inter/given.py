"""Stages that a user gives, at their prices: what a step of them costs, and would with more microbatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxlib.mlir import ir

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.inter.listed import ListedStages
from alpa_mlir.passes.inter.partial_remat import layers_again
from alpa_mlir.passes.inter.search import FURTHER, SHORT
from alpa_mlir.passes.inter.tables import SLACK
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.stage_cost import Layers, StageCost, step_seconds
from alpa_mlir.passes.intra.stage_parts import StageParts
from alpa_mlir.passes.intra.words import needed_text


class GivenStage(NamedTuple):
    """Layers first … last on a mesh of equal devices, at most `limit` bytes of each, priced by `listed`."""

    layers: Layers
    mesh: Mesh
    limit: float
    listed: ListedStages


@dataclass(frozen=True)
class GivenStages:
    """A pipeline of given stages; `flying` says how many microbatches each has in flight, of so many in a step."""

    stages: Sequence[GivenStage]
    flying: Callable[[int], Sequence[int]]
    microbatches: int

    def floor(self) -> float:
        """Seconds of a step if memory were no object."""
        return step_seconds([s.listed.unlimited(s.layers, s.mesh) for s in self.stages], self.microbatches)

    def ahead(self) -> list[float]:
        """Where memory makes a step take SHORT longer: about its seconds with FURTHER times as many microbatches, up to
        the first number that fits."""
        found: list[float] = []
        for times in (1, *FURTHER):
            flying = self.flying(times * self.microbatches)
            costs = [
                s.listed.foreseen(s.layers, s.mesh, n, s.limit * (1 + SLACK), times)
                for s, n in zip(self.stages, flying, strict=True)
            ]
            seconds = step_seconds(costs, times * self.microbatches)
            if times > 1:
                found.append(seconds)
            if all(c.feasible for c in costs) and (times > 1 or seconds <= (1 + SHORT) * self.floor()):
                break
        return found

    def priced(self, location: ir.Location) -> list[tuple[StageCost, StageParts]]:
        """What each stage costs. DoesNotFit where one has too little memory, with what prices may be wrong by."""
        found = []
        for number, (s, asked) in enumerate(self._asked()):
            cost = s.listed.cost(*asked)
            if not cost.feasible:
                needed, there = needed_text(cost.memory_bytes), f"{s.limit / 1e6:.6g} MB per device"
                raise DoesNotFit(
                    f"stage {number} does not fit in {there}: it needs about {needed}", location, (), cost.memory_bytes
                )
            found.append((cost, s.listed.parts(*asked)))
        return found

    def layers_again(self) -> list[int]:
        """Of stages that fit, the layers that run again at these prices."""
        chosen = [(s, s.listed.chosen(*asked)) for s, asked in self._asked()]
        return [k for s, prices in chosen if prices is not None for k in layers_again(prices, *s.layers)]

    def _asked(self) -> Iterator[tuple[GivenStage, tuple[Layers, Mesh, int, float]]]:
        """Each stage, and for what it is priced: with what prices may be wrong by allowed for, unless it fits without
        as more layers run again."""
        for s, flying in zip(self.stages, self.flying(self.microbatches), strict=True):
            close, allowed = ((s.layers, s.mesh, flying, room * s.limit) for room in (1.0, 1 + SLACK))
            yield s, close if s.listed.kept is not None and s.listed.chosen(*close) is not None else allowed
