"""What becomes of an attempt under the schedules that suit it, by simulation."""

from __future__ import annotations

from alpa_mlir.dialect.plan import read_pipeline
from alpa_mlir.passes.costs.limits import fullest, memory_limits
from alpa_mlir.passes.inter.estimates import read_estimates
from alpa_mlir.passes.inter.simulate import measure, training_kinds
from alpa_mlir.passes.settings import AUTO, FORWARD_ONLY, INTERLEAVED, SIMPLE, Attempt, Considered, Wishes, too_large
from alpa_mlir.passes.stages import has_backward


def played(attempt: Attempt, wishes: Wishes, slack: float) -> list[Considered]:
    """The stages of an attempt under every schedule that suits them, or why it failed.

    Plans that need up to the part `slack` more than the memory are possible.
    """
    setting, asked = attempt.setting, wishes.schedule
    if attempt.error is not None:
        usual = INTERLEAVED if setting.interleaved else SIMPLE
        return [Considered(setting, usual if asked == AUTO else asked, error=attempt.error)]
    costs, pipeline = read_estimates(attempt.module), read_pipeline(attempt.module)
    lanes = len(set(pipeline))
    suiting = training_kinds(len(pipeline), lanes, bool(costs)) if has_backward(attempt.module) else (FORWARD_ONLY,)
    kinds = suiting if asked == AUTO else (asked,)
    if not costs:
        return [Considered(setting, kinds[0])]
    limits, rows = memory_limits(attempt.module, wishes.memory), []
    for kind in kinds:
        step = measure(kind, costs, setting.microbatches, lanes)
        needed, there = fullest(step.peak_bytes, limits)
        error = None if needed <= there * (1 + slack) else too_large(needed, there)
        rows.append(Considered(setting, kind, step.makespan, max(step.peak_bytes), step.bubble, error))
    return rows
