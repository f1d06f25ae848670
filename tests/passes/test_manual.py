"""Plans by hand: read from TOML with located errors, written as attributes, priced and run like any other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from staged_steps import layered

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_pipeline, read_plan, stage_entries
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.manual import ManualStage, parse_manual, write_stages
from alpa_mlir.passes.pipeline import parse_pipeline, run_pipeline
from alpa_mlir.tools import plan as plan_tool
from alpa_mlir.tools.diagnostics import guarded

EXAMPLES = Path(__file__).parents[2] / "examples" / "plans"
MODEL = Path(__file__).parents[1] / "runtime" / "mlp_step.mlir"
EIGHT = load_cluster("a100").with_sizes(1, 8)
LISTED = """
microbatches = 4
remat = "0"

[[stage]]
layers = "0-1"
mesh = "2x2"

[[stage]]
layers = "2-3"
mesh = "4"
devices = "4-7"
"""


def test_equal_stages() -> None:
    plan = parse_manual('stages = 4\nmesh = "2"\nschedule = "gpipe"\nconstrain = ["x=data", "y=tensor"]\n', "p", EIGHT)
    assert plan.stages == tuple(ManualStage((2,), (2 * s, 2 * s + 1)) for s in range(4))
    assert (plan.schedule, plan.constrain, plan.microbatches) == ("gpipe", "x=data; y=tensor", 0)
    shared = parse_manual('stages = 4\nmesh = "4"\nchunks = 2\n', "p", EIGHT)
    assert [s.devices[0] for s in shared.stages] == [0, 4, 0, 4]


def test_listed_stages() -> None:
    plan = parse_manual(LISTED, "p", EIGHT)
    assert plan.stages == (ManualStage((2, 2), (0, 1, 2, 3), (0, 1)), ManualStage((4,), (4, 5, 6, 7), (2, 3)))
    assert (plan.microbatches, plan.remat) == (4, "0")


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("microbatches = 4", "microbatches = = 4", "2:16", "not a plan by hand"),
        ("microbatches = 4", "microbatches = -4", "2:1", "whole number up to 65536, got -4"),
        ("microbatches = 4", "batches = 4", "2:1", "unknown key batches: there are microbatches, schedule"),
        ('remat = "0"', 'schedule = "zigzag"', "3:1", "schedule must be one of 1f1b"),
        ('remat = "0"', 'remat = "some"', "3:1", "remat must be none, full or numbers"),
        ('remat = "0"', 'remat = "9-1"', "3:1", "remat must be none, full or numbers"),
        ('remat = "0"', "constrain = [1]", "3:1", "text or a list of texts"),
        ('remat = "0"', 'constrain = "x=fast"', "3:1", "data, zero1, zero2, zero3"),
        ('remat = "0"', "stages = 2", "3:1", r"stages = N and mesh, or lists each \[\[stage\]\]"),
        ('mesh = "4"', 'mesh = "4by"', "11:1", "a mesh is written as 2x4"),
        ('mesh = "4"', "", "9:1", "a mesh is written as 2x4"),
        ('"4-7"', '"4-6"', "12:1", "stage 1 needs 4 of the cluster's 8 devices, got 4-6"),
        ('"4-7"', '"5-8"', "12:1", "stage 1 needs 4 of the cluster's 8 devices, got 5-8"),
        ('"4-7"', '"3-6"', "9:3", "stage 1 shares device 3 with another stage"),
        ('"0-1"', '"first"', "6:1", "layers are numbers such as 0-3, got 'first'"),
        ('devices = "4-7"', "speed = 3", "12:1", "unknown key speed: there are layers, mesh, devices"),
    ],
)
def test_mistakes_are_told_at_their_line(old: str, new: str, where: str, message: str) -> None:
    assert old in LISTED
    with pytest.raises(CompileError, match=message) as caught:
        parse_manual(LISTED.replace(old, new), "p.toml", EIGHT)
    assert caught.value.location == f"p.toml:{where}"


@pytest.mark.parametrize("text", ['stages = 3\nmesh = "4"', 'stages = 3\nchunks = 2\nmesh = "2"', 'mesh = "2"'])
def test_stages_that_cannot_be(text: str) -> None:
    with pytest.raises(CompileError, match=r"p:\d:1: error"):
        parse_manual(text, "p", EIGHT)


def test_given_stages_are_kept() -> None:
    module, _ = layered("mlp", 4, 4, depth=6)
    write_stages(module, parse_manual(LISTED, "p", EIGHT).stages)
    run_pipeline(module, parse_pipeline("alpa-stages{cluster=a100 nodes=1 devices-per-node=8}"), [])
    assert read_pipeline(module) == ("stage_0", "stage_1")
    assert ["layers = array<i64: 0, 1>" in str(e) for e in stage_entries(module)] == [True, False]
    assert all("estimate" in e for e in stage_entries(module))
    alpa.verify(module)


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ((ManualStage((2,), (0, 1), (0, 1)),), "", "no stage holds layers 2 to 3"),
        ((ManualStage((2,), (0, 1), (0, 2)), ManualStage((2,), (2, 3), (2, 3))), "", "stage 1 has layers 2 to 3"),
        (tuple(ManualStage((1,), (d,)) for d in range(5)), "", "5 stages cannot be made of 4 layers"),
        ((ManualStage((2,), (8, 9)),), "", "a stage has device 9, the cluster has 8 devices"),
        ((ManualStage((2,), (0, 1)),), " stages=2", "give neither stages nor mesh"),
    ],
)
def test_stages_that_do_not_suit_the_program(stages: tuple[ManualStage, ...], options: str, message: str) -> None:
    module, _ = layered("mlp", 4, 4, depth=6)
    write_stages(module, stages)
    with pytest.raises(CompileError, match=message):
        run_pipeline(module, parse_pipeline(f"alpa-stages{{cluster=a100 nodes=1 devices-per-node=8{options}}}"), [])


def run(*words: str | Path) -> int:
    return guarded(plan_tool.NAME, plan_tool.main, [str(w) for w in words])


def test_the_command_plans_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_hand, out = tmp_path / "hand.toml", tmp_path / "plan.mlir"
    by_hand.write_text('microbatches = 2\nschedule = "gpipe"\nstages = 2\nmesh = "2"\n')
    words = [MODEL, "--devices-per-node", 4, "--batch-args", "0-1", "--plan", by_hand, "-o", out]
    assert run(*words) == 0
    plan = read_plan(parse_module(out.read_text(), make_context()))
    assert {s.kind for s in plan.schedules} == {"gpipe"} and plan.main.microbatches == 2
    assert [s.devices for s in plan.stages.values()] == [(0, 1), (2, 3)]
    assert run(*words, "--schedule", "1f1b") == 0  # the command line goes first
    assert '{kind = "1f1b"' in out.read_text()
    capsys.readouterr()
    assert run(*words, "--stages", 2) == 1
    assert re.match(rf"{by_hand}:1:1: error: this plan says the stages", capsys.readouterr().err)
    assert run(*words[:-3], tmp_path / "none.toml", "-o", out) == 1
    assert "none.toml:1:1: error: cannot read the plan by hand" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_examples_are_plans(path: Path) -> None:
    text = path.read_text()
    assert parse_manual(text, path.name, EIGHT).stages
    assert "alpa-mlir-plan" in text  # how to use it


def test_attributes_in_the_program_do_the_same(tmp_path: Path) -> None:
    """The same stages written into the model's own text."""
    from alpa_mlir.model_file import read_model

    module = read_model(str(MODEL), make_context())
    write_stages(module, (ManualStage((2,), (0, 1)), ManualStage((2,), (2, 3))))
    source, out, by_hand = tmp_path / "model.mlir", tmp_path / "plan.mlir", tmp_path / "hand.toml"
    source.write_text(print_module(module))
    by_hand.write_text('stages = 2\nmesh = "2"\n')
    options = ["--devices-per-node", 4, "--batch-args", "0-1", "--microbatches", 2, "-o", out]
    assert run(source, *options) == 0
    written = out.read_text()
    assert run(MODEL, *options, "--plan", by_hand) == 0
    assert out.read_text() == written
