"""The program of one device that a plan's results are compared with.

That is the model itself, but for one case: a plan made with `allow-per-microbatch-statistics` takes batch
statistics (batch norm) over each microbatch, as every pipeline system does, and so computes something else than
the model on the full batch.  Its reference is the model with the statistics taken over microbatches
(level 2 of the IR, still one loop on one device), and the runner says so.
"""

from __future__ import annotations

import sys

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context
from alpa_mlir.dialect.resources import inline_resources
from alpa_mlir.dialect.staged_main import microbatches_of, read_main
from alpa_mlir.model_file import read_model
from alpa_mlir.passes.normalize import choose_main, inline_composites


def reference_program(model: str, planned: ir.Module, plan: str) -> ir.Module:
    """The module whose `@main` computes on one device what the plan `planned` of the file `plan` should.

    Raises `CompileError` where the model is unreadable.
    """
    module = read_model(model, make_context())
    choose_main(module)
    inline_resources(module)
    inline_composites(module)
    if alpa.get_string(planned.operation, alpa.STATISTICS) == "microbatch":
        count = microbatches_of(planned)
        print(
            f"{plan}:1:1: note: the plan takes batch statistics over each of {count} microbatches, "
            "and so does the reference",
            file=sys.stderr,
        )
        _take_statistics_per_microbatch(module, planned, count)
    return module


def _take_statistics_per_microbatch(module: ir.Module, planned: ir.Module, count: int) -> None:
    """Bring the model to level 2 with the plan's own roles and number of microbatches."""
    from alpa_mlir.passes.microbatch import Microbatch
    from alpa_mlir.passes.normalize import Normalize

    roles = [a.role for a in read_main(planned).arguments]
    numbers = {
        role: ",".join(str(i) for i, r in enumerate(roles) if r == role) or "none" for role in ("batch", "state")
    }
    Normalize(batch_args=numbers["batch"], state_args=numbers["state"]).apply(module, [])
    Microbatch(count=count, allow_per_microbatch_statistics=True).apply(module, [])
