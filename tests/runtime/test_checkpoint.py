"""Checkpoints: a resumed run is the uninterrupted one, on this plan and on others; refused where they do not belong."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import mlp_plan
import numpy as np
import pytest
import ranks

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Plan, read_plan
from alpa_mlir.runtime import checkpoint

STEPS, CUT = 5, 3


def plan_of(microbatches: int = 2) -> Plan:
    return read_plan(parse_module(mlp_plan.plan_text(microbatches), make_context()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan, batches that change, the results of `STEPS` steps, and the checkpoints of a run of `CUT` steps."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "plan.mlir").write_text(mlp_plan.plan_text())
    first = mlp_plan.arguments()
    batches = {f"arg0@{k}": mlp_plan.arguments(k)[0] for k in range(STEPS)}
    np.savez(folder / "in.npz", **batches, arg1=first[1], arg2=first[2], arg3=first[3])
    run(folder, "-n", 2, "--steps", STEPS, "--outputs", folder / "whole.npz")
    said = run(folder, "-n", 2, "--steps", CUT, "--checkpoint", folder / "saved", "--checkpoint-every", 2)
    assert [line.partition(":")[0] for line in said.splitlines()] == [f"step {k}" for k in range(CUT)]
    assert sorted(p.name for p in (folder / "saved").iterdir()) == ["2", str(CUT)]
    return folder


def run(folder: Path, *options: object, plan: str = "plan.mlir") -> str:
    found = ranks.run([*options, folder / plan, "--inputs", folder / "in.npz"])
    assert found.code == 0, found.err
    return found.out


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    said = run(folder, "-n", 2, "--steps", STEPS - CUT, "--restore", folder / "saved", "--outputs", out)
    assert [line.partition(":")[0] for line in said.splitlines()] == ["step 3", "step 4"]
    whole, resumed = np.load(folder / "whole.npz"), np.load(out)
    for name in whole.files:
        assert whole[name].tobytes() == resumed[name].tobytes(), name


OTHERS = [
    ("--local", 1, ((0,), (1,)), "saved/2"),  # an earlier one
    ("-n3", 2, ((0, 1), (2, 3, 4, 5)), "saved"),  # a stage of four devices on two ranks
]


@pytest.mark.parametrize(("way", "microbatches", "stages", "source"), OTHERS)
def test_another_plan_goes_on_with_the_same_state(way, microbatches, stages, source, folder: Path, tmp_path) -> None:
    plan, out = tmp_path / "other.mlir", tmp_path / "out.npz"
    plan.write_text(mlp_plan.plan_text(microbatches, stages))
    steps = STEPS - (2 if source.endswith("2") else CUT)
    inputs = ["--inputs", folder / "in.npz", "--restore", folder / source]
    found = ranks.run([way, plan, *inputs, "--steps", steps, "--outputs", out, "--checkpoint", tmp_path / "on"])
    assert found.code == 0, found.err
    whole, resumed = np.load(folder / "whole.npz"), np.load(out)
    for name in ("out0", "out1", "out2", "out3"):
        np.testing.assert_allclose(resumed[name], whole[name], rtol=1e-5, atol=1e-7)
    # What it writes in turn is the whole state, once.
    where, at = checkpoint.find(str(tmp_path / "on"), plan_of().main)
    assert at == checkpoint.Position(STEPS, 0, True)
    assert (checkpoint.read(where, 2, ((0, 16), (0, 32))) == resumed["out0"]).all()
    assert (checkpoint.read(where, 3, ((0, 32), (0, 4))) == resumed["out1"]).all()


def test_the_reference_starts_from_the_checkpoint_too(folder: Path, tmp_path: Path) -> None:
    model = Path(__file__).parent / "mlp_step.mlir"
    said = run(folder, "--local", "--steps", 2, "--restore", folder / "saved", "--reference", model)
    assert said.splitlines()[-1].endswith("equal")


def test_any_orbax_program_reads_it(folder: Path) -> None:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder / "saved")
    assert list(manager.all_steps()) == [2, CUT]
    items = ocp.args.Composite(state=ocp.args.PyTreeRestore(), run=ocp.args.JsonRestore())
    found = manager.restore(CUT, args=items)
    assert {name: array.shape for name, array in found.state.items()} == {"arg2": (16, 32), "arg3": (32, 4)}
    where, at = checkpoint.find(str(folder / "saved"), plan_of().main)
    assert (found.state["arg3"] == checkpoint.read(where, 3, ((0, 32), (0, 4)))).all()
    assert (at.step, found.run["step"], found.run["inputs"]) == (CUT, CUT, True)


@pytest.mark.parametrize("start", [["--local"], ["-n", 2]])
def test_sigterm_writes_a_checkpoint_and_ends(start: list[object], tmp_path: Path) -> None:
    plan, saved = tmp_path / "plan.mlir", tmp_path / "saved"
    plan.write_text(mlp_plan.plan_text())
    job = ranks.start([*start, plan, "--steps", 1000000, "--checkpoint", saved, "--seed", 5])
    assert job.stdout is not None
    first = job.stdout.readline()
    assert first.startswith("step 0")
    os.kill(job.pid, signal.SIGTERM)
    found = ranks.finish(job, 60)
    steps = int([first, *found.out.splitlines()][-1].split()[1].rstrip(":")) + 1
    assert found.code == 143, found.err
    assert found.err.startswith(f"stopped by a signal: go on with --restore {saved}/{steps}\n")
    assert checkpoint.find(str(saved), plan_of().main)[1] == checkpoint.Position(steps, 5, False)
    assert ranks.living(str(tmp_path)) == []


def test_a_killed_write_leaves_what_was_there(folder: Path, tmp_path: Path) -> None:
    plan, saved = plan_of(), tmp_path / "saved"
    directory = checkpoint.Directory(str(saved), keep=2)

    def save(step: int) -> None:
        staging = directory.begin(plan, step)
        for number, (rows, columns) in ((2, (16, 32)), (3, (32, 4))):
            tile = np.full((rows, columns), step, np.float32)
            checkpoint.write(staging, number, ((0, rows), (0, columns)), tile).result()
        directory.commit(staging, plan, checkpoint.Position(step, 0, False))

    for step in (1, 2, 3, 3):
        save(step)
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3"]
    directory.begin(plan, 4)  # … and here it was killed, before the tiles; or while orbax was at work:
    (saved / "5.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    where, at = checkpoint.find(str(saved), plan.main)
    assert at.step == 3 and (checkpoint.read(where, 3, ((0, 32), (0, 4))) == 3).all()
    checkpoint.Directory(str(saved))
    assert not list(saved.glob(".writing*"))


def test_a_damaged_tile_is_not_taken_for_what_was_written(tmp_path: Path) -> None:
    """A tile of zeros is one that was written; one that is cut off, changed or gone is refused."""
    plan, saved, box = plan_of(), tmp_path / "saved", ((0, 32), (0, 4))
    directory = checkpoint.Directory(str(saved))
    staging = directory.begin(plan, 1)
    checkpoint.write(staging, 2, ((0, 16), (0, 32)), np.ones((16, 32), np.float32)).result()
    checkpoint.write(staging, 3, box, np.zeros((32, 4), np.float32)).result()
    where = directory.commit(staging, plan, checkpoint.Position(1, 0, False)) / checkpoint.STATE
    assert (checkpoint.read(where, 3, box) == 0).all()
    tile = next(p for p in (where / "arg3").rglob("*") if p.is_file() and p.name != "zarr.json")
    good = tile.read_bytes()
    for bad in (good[:100], b"\1" + good[1:], None):
        tile.unlink() if bad is None else tile.write_bytes(bad)
        with pytest.raises(CompileError, match="error: cannot read arg3 of the checkpoint: "):
            checkpoint.read(where, 3, box)


FULL = """
import resource, sys
from alpa_mlir.runtime.rank import Rank
from alpa_mlir.tools.run import main

def run(rank, whole=Rank.run):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    return whole(rank)

Rank.run = run
sys.exit(main())
"""


@pytest.mark.parametrize(("option", "message"), [("checkpoint", "cannot write checkpoint 1: "), ("trace", "cannot ")])
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(option: str, message: str, tmp_path: Path) -> None:
    script, plan, target = tmp_path / "full.py", tmp_path / "plan.mlir", tmp_path / "target"
    script.write_text(FULL)
    plan.write_text(mlp_plan.plan_text())
    job = ranks.start([plan, "--no-cache", f"--{option}", target], mpirun=2, script=script)
    found = ranks.finish(job)
    assert found.code == 1 and f"{target}:1:1: error: {message}" in found.err
    assert "Traceback" not in found.err
    assert not target.exists() or not list(target.iterdir())
    assert {p.name for p in tmp_path.iterdir()} <= {"full.py", "plan.mlir", "target"}


def test_what_is_no_checkpoint_of_this_program_is_refused(folder: Path, tmp_path: Path) -> None:
    main = plan_of().main
    saved, empty, file = folder / "saved", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("")
    (tmp_path / "7" / "state").mkdir(parents=True)
    smaller = replace(main, arguments=main.arguments[:3])
    other = replace(main.arguments[3], type=replace(main.arguments[3].type, shape=(32, 5)))
    cases = [
        (tmp_path / "none", main, "there is no such folder of checkpoints"),
        (file, main, "there is no such folder of checkpoints"),
        (empty, main, "there is no checkpoint in this folder"),
        (tmp_path / "7", main, "this is no checkpoint that alpa-mlir-run has written"),
        (saved, smaller, "it has argument 3: tensor<32x4xf32> where the plan has nothing"),
        (
            saved,
            replace(main, arguments=(*main.arguments[:3], other)),
            "where the plan has argument 3: tensor<32x5xf32>",
        ),
    ]
    for path, program, message in cases:
        with pytest.raises(CompileError) as e:
            checkpoint.find(str(path), program)
        assert message in str(e.value) and str(e.value).startswith(f"{path}:1:1: error: ")
    with pytest.raises(CompileError, match="cannot write checkpoints: "):
        checkpoint.Directory(str(file))


def test_the_command_tells_once_what_is_wrong_with_a_checkpoint(tmp_path: Path) -> None:
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    found = ranks.run(["-n", 2, plan, "--restore", tmp_path / "none"])
    assert (found.code, found.out) == (1, "")
    assert found.err.count("error: there is no such folder of checkpoints") == 1
    assert "Traceback" not in found.err
    assert ranks.run(["--local", plan, "--checkpoint-every", 2]).code == 2
