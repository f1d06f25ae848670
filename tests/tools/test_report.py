"""alpa-mlir-report: the page and the trace hold what the plan says, need no network, and come whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import alpa_mlir
from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.passes.schedule import plan_timeline
from alpa_mlir.tools import plan as plan_tool
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.report import NAME, main

MODEL = Path(__file__).parents[1] / "runtime" / "mlp_step.mlir"
SPLIT = Path(__file__).parents[2] / "lit_tests" / "split" / "mlp.mlir"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "mlp.mlir"
    alpa_mlir.plan(MODEL, devices_per_node=2, stages=2, microbatches=2, batch_args="0-1", schedule="1f1b").save(path)
    return path


def run(*words: str | Path) -> int:
    return guarded(NAME, main, [str(w) for w in words])


def test_the_page_holds_charts_tables_and_their_script(plan: Path, tmp_path: Path) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        assert run(plan, "-o", page) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    text = pages[0].read_text()
    assert "plotly.js" in text and not re.search(r"<(script|link)[^>]+(src|href)=", text)
    assert all(f"<h2>{h}" in text for h in ("Stages", "What happens", "Memory per", "Where a step", "What else"))
    charts = re.findall(r'Plotly\.newPlot\(\s*"chart-\d",\s*(\[.*?\]),\s*\{', text, re.DOTALL)
    assert len(charts) == 3
    boxes = {trace["name"]: len(trace["y"]) for trace in json.loads(charts[0])}
    assert boxes["forward"] == boxes["backward"] == 2 * 2 and boxes["transfer"] >= 2 * 2


def test_the_trace_is_the_simulated_step(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    assert run(plan, "--trace", out) == 0
    events = json.loads(out.read_text())["traceEvents"]
    timeline = plan_timeline(parse_module(plan.read_text(), make_context()))
    assert timeline is not None
    boxes = [e for e in events if e["ph"] == "X"]
    assert len(boxes) == len(timeline.spans) + len(timeline.moves)
    assert max(e["ts"] + e["dur"] for e in boxes) == pytest.approx(1e6 * timeline.makespan)
    counted = [e["args"]["bytes"] for e in events if e["ph"] == "C"]
    assert max(counted) == max(timeline.peak_bytes)


def test_the_planner_writes_the_same(plan: Path, tmp_path: Path) -> None:
    words = [MODEL, "--devices-per-node", 2, "--stages", 2, "--microbatches", 2, "--batch-args", "0-1"]
    files = ["-o", tmp_path / "mlp.mlir", "--schedule", "1f1b", "--trace", tmp_path / "planned.json"]
    assert guarded("alpa-mlir-plan", plan_tool.main, [str(w) for w in (*words, *files)]) == 0
    assert run(plan, "--trace", tmp_path / "reported.json") == 0
    assert (tmp_path / "planned.json").read_bytes() == (tmp_path / "reported.json").read_bytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (None, "cannot read the plan: No such file"),
        (lambda t: SPLIT.read_text(), "not a plan"),
        (lambda t: t.replace("microbatch = 1 : i64", "microbatch = 0 : i64", 1), "changed after it was made"),
        (lambda t: "module {", "expected"),
    ],
)
def test_what_is_no_plan_is_one_located_error(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], edit, message: str
) -> None:
    wrong, out = tmp_path / "wrong.mlir", tmp_path / "out.html"
    if edit is not None:
        wrong.write_text(edit(plan.read_text()))
    assert run(wrong, "-o", out) == 1
    err = capsys.readouterr().err
    assert re.match(rf"{wrong}:\d+:\d+: error: .*{message}", err) and err.count("error:") == 1
    assert not out.exists()


def test_nothing_to_write_is_wrong_usage(plan: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(plan)])
    assert stop.value.code == 2
