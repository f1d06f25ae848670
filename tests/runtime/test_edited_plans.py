"""Plans that somebody has edited and sealed again: refused at the start, in a sentence, whatever the lists now say."""

from __future__ import annotations

from pathlib import Path

import mlp_plan
import pytest
import ranks

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_plan, seal
from alpa_mlir.tools import run

RECEIVE = '    "alpa.recv"() {id = 7 : i64, microbatch = 1 : i64} : () -> ()\n'
EDITS = [
    (RECEIVE, "", "receive 7 of microbatch 1 is missing"),
    ('"alpa.run"() {id = 8 : i64, microbatch = 1', '"alpa.run"() {id = 8 : i64, microbatch = 0', "run 8 of microbatch"),
    ('"alpa.send"() {id = 4 : i64, microbatch = 1', '"alpa.send"() {id = 4 : i64, microbatch = 7', "send 4 of micro"),
    ("1 : i64, values = array<i64: 0, 0, 2, 0, 3", "1 : i64, values = array<i64: 0, 0, 2, 0, 2", "is freed"),
    ("alpa.dim = 0 : i64, alpa.id = 0", "alpa.dim = 3 : i64, alpa.id = 0", "along dimension 3"),
    ("alpa.dim = 0 : i64, alpa.id = 0", "alpa.dim = 1 : i64, alpa.id = 0", "along dimension 1"),
    ('"alpa.index"() {', '"alpa.index"(%arg0, %arg0) {', "takes 0 and makes 1 values"),
]  # fmt: skip


def edited(old: str, new: str) -> str:
    """The plan with one change, sealed."""
    text = mlp_plan.plan_text()
    assert old in text
    text = text.replace(old, new, 1)
    if "alpa.index" in new:
        at = text.index("alpa.index")
        kind = (
            next(line for line in text.splitlines() if '"alpa.microbatch"(%arg0)' in line)
            .split(": (")[1]
            .split(") ->")[0]
        )
        text = text[:at] + text[at:].replace(": () ->", f": ({kind}, {kind}) ->", 1)
    module = parse_module(text, make_context())
    seal(module)
    return print_module(module)


@pytest.mark.parametrize(("old", "new", "message"), EDITS)
def test_the_front_door_refuses_lists_that_cannot_be_executed(old: str, new: str, message: str) -> None:
    module = parse_module(edited(old, new), make_context())
    with pytest.raises(CompileError, match=message):
        run._check(read_plan(module))


def test_what_runs_passes() -> None:
    """Its messages cross, which is fine where sends do not block."""
    run._check(read_plan(parse_module(mlp_plan.plan_text(), make_context())))


@pytest.mark.parametrize("start", [["--local"], ["-n", "2"]])
def test_the_command_says_it_once(start: list[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.mlir"
    path.write_text(edited(RECEIVE, ""))
    found = ranks.run([*start, path])
    assert found.code == 1
    assert found.err.count("error: schedule of stage_0: ") == 1
    assert found.err.startswith(f"{path}:1:1: error: ") and "Traceback" not in found.err
