"""What a step will hold at most, known before its instructions are written down.

The peak of a pipeline that takes turns comes while it is full, and comes again with each further microbatch: so a
step of a few microbatches more than fill the pipeline, scheduled and played like the whole one, has it too. (Not so
with gpipe, which holds all microbatches at once.)
"""

from __future__ import annotations

from dataclasses import replace

from jaxlib.mlir import ir

from alpa_mlir.dialect.plan import read_pipeline
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.schedule import scheduled
from alpa_mlir.passes.schedule_timeline import play_plan, read_costs

ALL_AT_ONCE = "gpipe"


def expected_peaks(module: ir.Module, kind: str) -> tuple[float, ...]:
    """Bytes per device of each submesh of a priced module of level 6 under a schedule; empty where it is not priced.

    A lower bound of what `alpa-schedule` finds in the finished plan, and nearly always the same.
    """
    main, pipeline = read_main(module), read_pipeline(module)
    costs = read_costs(module, main)
    if costs is None:
        return ()
    lanes = len(set(pipeline))
    # A lane has at most two rounds of all its stages in flight, and interleaved stages take lanes at a time.
    enough = lanes * (2 * -(-len(pipeline) // lanes) + 2)
    if kind != ALL_AT_ONCE and enough < main.microbatches:
        main = replace(main, microbatches=enough, _by_id={}, _often=set())
    return play_plan(scheduled(module, main, kind), costs).peak_bytes
