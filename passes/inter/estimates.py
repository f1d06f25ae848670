"""The parts of stages as `alpa.stages` says them before a step is split, and what the simulator makes of them.

`alpa-stages` and `alpa-shard` write the entry `estimate` of each stage; `alpa-price` replaces it by exact figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.passes.inter.simulate import StageCosts
from alpa_mlir.passes.intra.stage_parts import StageParts

ESTIMATE = "estimate"


def read_estimates(module: ir.Module) -> list[StageCosts]:
    """What the simulator wants to know of each stage; empty where not all say it."""
    entries = stage_entries(module)
    if not all(ESTIMATE in e for e in entries):
        return []
    return pipeline_costs([StageParts.read(e[ESTIMATE]) for e in entries])


def pipeline_costs(stages: Sequence[StageParts]) -> list[StageCosts]:
    """What the simulator wants to know of each stage; a transfer belongs to the stage that sends."""
    costs = []
    for s, parts in enumerate(stages):
        costs.append(
            StageCosts(
                parts.forward,
                parts.backward,
                parts.update,
                stages[s + 1].receive_forward if s + 1 < len(stages) else 0.0,
                stages[s - 1].receive_backward if s else 0.0,
                parts.kept_bytes,
                parts.stored_bytes,
                parts.weight,
                parts.weight_bytes,
                parts.working_bytes,
            )
        )
    return costs
