"""What a step holds at most is known before its instructions are written down."""

from __future__ import annotations

import pytest
from jaxlib.mlir import ir
from staged_steps import layered, replicated

from alpa_mlir.dialect.context import clone_module
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.passes.price import Price
from alpa_mlir.passes.schedule import SchedulePass
from alpa_mlir.passes.schedule_peak import expected_peaks
from alpa_mlir.passes.split import Split


def finished_peaks(module: ir.Module, kind: str) -> tuple[int, ...]:
    """The peaks that the schedule pass writes, by submesh."""
    copy = clone_module(module)
    SchedulePass(kind=kind).apply(copy, [])
    found = {ir.StringAttr(e["mesh"]).value: int(ir.IntegerAttr(e["peak_bytes"]).value) for e in stage_entries(copy)}
    return tuple(found.values())


@pytest.mark.parametrize(
    ("kind", "microbatches", "stages", "lanes"),
    [
        ("1f1b", 32, 3, 3),
        ("eager-1f1b", 32, 3, 3),
        ("interleaved", 32, 4, 2),
        ("zero-bubble", 32, 3, 3),
        ("zero-bubble-h2", 32, 3, 3),
        ("gpipe", 32, 3, 3),
        ("1f1b", 2, 3, 3),
    ],
)
def test_what_is_expected_is_what_the_plan_needs(kind: str, microbatches: int, stages: int, lanes: int) -> None:
    module, _ = layered("mlp", microbatches, stages, depth=6, batch=32)
    module = replicated(module, stages, lanes)
    Split(weight_apart=kind.startswith("zero-bubble")).apply(module, [])
    assert expected_peaks(module, kind) == ()
    Price().apply(module, [])
    assert tuple(round(peak) for peak in expected_peaks(module, kind)) == finished_peaks(module, kind)
