"""Traces: all ranks on one clock, predicted beside measured, and the table of both."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlp_plan
import pytest
import ranks

import alpa_mlir
from alpa_mlir.runtime.clocks import Reading, to_rank_0

SKEWED = """
import time
from alpa_mlir.runtime import clocks
from mpi4py import MPI

world = MPI.COMM_WORLD
skew, drift = 1000.0 * world.rank, 1e-2 * world.rank
clock = lambda: skew + (1 + drift) * time.perf_counter()
first = clocks.read(world, clock)
time.sleep(0.3)
gap = 1.0
while gap > 1e-4:  # nobody came between
    true, middle = time.perf_counter(), clock()
    gap = time.perf_counter() - true
time.sleep(0.3)
found = clocks.to_rank_0(first, clocks.read(world, clock))(middle)
errors = world.gather(found - true)
if errors is not None:
    print(*errors)
"""


def test_clocks_that_differ_and_drift_are_brought_to_one(tmp_path: Path) -> None:
    script = tmp_path / "skewed.py"
    script.write_text(SKEWED)
    found = ranks.finish(ranks.start([], mpirun=3, script=script))
    assert found.code == 0, found.err
    errors = [abs(float(line)) for line in found.out.split()]
    # One host, one clock: what is left is half an exchange.  Uncorrected it would be 1000 s and 3 ms.
    assert len(errors) == 3 and max(errors) < 2e-3


def test_a_rank_whose_clock_is_that_of_rank_0_keeps_its_time() -> None:
    assert to_rank_0(Reading(1.0, 0.0), Reading(1.0, 0.0))(5.0) == 5.0


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A priced plan of two stages on a device each, two microbatches."""
    path = tmp_path_factory.mktemp("trace") / "plan.mlir"
    model = Path(__file__).parent / "mlp_step.mlir"
    alpa_mlir.plan(model, devices_per_node=2, stages=2, microbatches=2, batch_args="0-1", schedule="1f1b").save(path)
    return path


@pytest.mark.parametrize("start", [["--local"], ["-n", 2]])
def test_a_trace_shows_every_run_of_every_rank(start: list[object], plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    found = ranks.run([*start, plan, "--steps", 3, "--trace", out, "--profile-stages"])
    assert (found.code, found.err) == (0, "")
    events = json.loads(out.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "predicted", 1: "measured"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {n for (pid, _), n in threads.items() if pid == 1} >= {"submesh 0", "submesh 1", "submesh 1 receives"}
    boxes = [e for e in events if e["ph"] == "X"]
    measured = {}
    for e in sorted((e for e in boxes if e["pid"] == 1), key=lambda e: e["ts"]):
        measured.setdefault((threads[(1, e["tid"])], e["name"]), []).append((e["ts"], e["ts"] + e["dur"]))
    for stage, part in ((0, "forward"), (0, "backward"), (1, "forward+backward")):
        for m in (0, 1):
            assert len(measured[(f"submesh {stage}", f"stage_{stage}_{part} {m}")]) == 3
    for m in (0, 1):  # what crosses from rank to rank was begun before it was used
        pairs = zip(
            measured[("submesh 0", f"stage_0_forward {m}")],
            measured[("submesh 1", f"stage_1_forward+backward {m}")],
            strict=True,
        )
        assert all(sent[0] < used[1] for sent, used in pairs)
    for thread in set(threads.values()):  # a submesh does one thing at a time
        lane = sorted(span for (name, _), spans in measured.items() if name == thread for span in spans)
        assert all(a[1] <= b[0] + 0.01 for a, b in pairwise(lane)) or "receives" in thread
    for stage, part in ((0, "backward"), (1, "forward+backward")) if "-n" in start else ():
        receives_overlap_with_the_run_before(measured, stage, part)
    predicted = [e for e in boxes if e["pid"] == 0]
    assert len(predicted) % 3 == 0 and {e["cat"] for e in predicted} >= {"forward", "backward"}
    table = [line.split() for line in found.out.splitlines()[3:]]
    assert table[0] == ["submesh", "function", "runs", "measured", "ms", "predicted", "ms", "ratio"]
    rows = {row[1]: row for row in table[1:-1] if row[1] != "busy"}
    assert rows["stage_0_forward"][2] == "2" and rows["stage_1_forward+backward"][2] == "2"
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for name, row in rows.items() if name.startswith("stage"))
    assert table[-1][0] == "step"


def receives_overlap_with_the_run_before(measured: dict[tuple[str, str], list[Any]], stage: int, part: str) -> None:
    """What a run of `part` needs was under way before the run before it on the rank began, in each of three steps."""
    each = 4 if stage == 0 else 2
    receives = sorted(measured[(f"submesh {stage} receives", "receive")])
    runs = sorted(
        (start, name, at)
        for (lane, name), spans in measured.items()
        for at, (start, _) in enumerate(spans)
        if lane == f"submesh {stage}" and name.startswith(f"stage_{stage}") and "update" not in name
    )
    assert len(receives) == 2 * 3 and len(runs) == each * 3
    for step in range(3):
        for m in (0, 1):
            consumer = [(name, at) for _, name, at in runs].index((f"stage_{stage}_{part} {m}", step))
            if consumer % each > 0:  # not the step's first
                assert receives[2 * step + m][0] <= runs[consumer - 1][0]


def test_a_plan_without_prices_is_traced_without_a_prediction(tmp_path: Path) -> None:
    path, out = tmp_path / "plan.mlir", tmp_path / "trace.json"
    path.write_text(mlp_plan.plan_text(2, ((0, 2), (1, 3))))  # both submeshes span both ranks
    found = ranks.run(["-n", 2, path, "--steps", 2, "--trace", out])
    assert (found.code, found.err) == (0, f"{path}:1:1: note: the plan does not say what it predicts\n")
    events = json.loads(out.read_text())["traceEvents"]
    assert {e["pid"] for e in events} == {1}
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"submesh 0 on rank 0", "submesh 0 on rank 1", "submesh 1 on rank 0", "submesh 1 on rank 1"} <= threads
