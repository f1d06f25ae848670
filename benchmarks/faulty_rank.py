"""`alpa-mlir-run` with a rank that may raise in its 13th step: what `benchmarks.faults` starts under mpirun."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from alpa_mlir.runtime.launch import RANK_VARIABLES
from alpa_mlir.tools import run
from alpa_mlir.tools.diagnostics import guarded
from benchmarks.faults import RAISING

STEPS = 13


def break_worker(told: Path) -> None:
    """Let this process's worker raise, and write down when."""
    from alpa_mlir.runtime import worker

    step, done = worker.Worker.step, iter(range(STEPS))

    def raising(self: worker.Worker) -> None:
        if next(done) == STEPS - 1:
            told.with_suffix(".part").write_text(str(time.monotonic()))
            told.with_suffix(".part").rename(told)
            raise RuntimeError("broken by the benchmark")
        step(self)

    worker.Worker.step = raising  # type: ignore[method-assign]


if __name__ == "__main__":
    culprit, _, told = os.environ[RAISING].partition(":")
    rank = next(os.environ[name] for name in RANK_VARIABLES if name in os.environ)
    if rank == culprit:
        break_worker(Path(told))
    sys.exit(guarded(run.NAME, run.main))
