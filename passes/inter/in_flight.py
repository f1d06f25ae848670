"""What a pipeline schedule asks of its stages: how many microbatches each holds, and how long each takes.

Under 1F1B a stage waits for what it receives: transfers lengthen what it needs for a microbatch. Under eager 1F1B
transfers go on beside the work, and the slower of both paces the step; but a stage holds twice as many microbatches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alpa_mlir.passes.inter.layout import Table
from alpa_mlir.passes.inter.pricing import RangePrices
from alpa_mlir.passes.inter.schedules import EAGER, GPIPE
from alpa_mlir.passes.inter.skeleton import PARTS, UPDATE
from alpa_mlir.passes.intra.stage_parts import StageParts

ARRIVALS = PARTS.index("receive_forward")


@dataclass(frozen=True)
class InFlight:
    """How many microbatches a stage with s stages from itself to the end holds at once, and what paces the step."""

    schedule: str
    microbatches: int

    def depth(self, stages: int) -> int:
        """Rows that tables for at most `stages` stages need."""
        return min(stages, self.microbatches) if self.schedule in ("1f1b", EAGER) else 1

    def at(self, stages_left: int) -> int:
        """Microbatches in flight."""
        if self.schedule == GPIPE:
            return self.microbatches
        if self.schedule == EAGER:
            return min(2 * stages_left - 1, self.microbatches)
        return 1 if self.schedule == "inference" else min(stages_left, self.microbatches)

    def pace(self, prices: RangePrices, times: int = 1) -> Table:
        """Seconds that a stage needs for each further microbatch, `times` as small as those of these prices."""
        if self.schedule != EAGER:
            return prices.of_smaller(prices.repeated, times)
        work, arrivals = prices.seconds[:ARRIVALS].sum(axis=0), prices.seconds[ARRIVALS:UPDATE].max(axis=0)
        result: Table = np.maximum(prices.of_smaller(work, times), arrivals / times)
        return result

    def wait(self, prices: RangePrices, times: int = 1) -> Table:
        """Seconds by which a step takes longer where a stage is the slowest (the bottleneck of the dynamic program), of
        microbatches `times` as small as those of these prices."""
        waits = self.microbatches - 1
        # Ranges that cannot be take for ever, and none of that is not a number.
        result: Table = waits * self.pace(prices, times) + prices.once if waits else prices.once
        return result

    def exact_wait(self, seconds: float, once: float, parts: Callable[[], StageParts]) -> float:
        """The same of a stage that was solved and takes `seconds` for a microbatch, and `once` once per step."""
        if self.schedule == EAGER:
            stage = parts()
            work = stage.forward + stage.backward + stage.weight
            seconds = max(work, stage.receive_forward, stage.receive_backward)
        return (self.microbatches - 1) * seconds + once
