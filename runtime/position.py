"""Where a run stands, which a checkpoint remembers; apart from `checkpoint`, because orbax is slow to load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` steps are done; batches were drawn from `seed`, or read (`inputs`)."""

    step: int
    seed: int
    inputs: bool
