"""A rank that fails, is killed or hangs ends the whole job within seconds, with its message; nothing stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import mlp_plan
import numpy as np
import pytest
import ranks

PROGRAM = """
import os, sys, time
from alpa_mlir.runtime.guard import Watchdog, guarded
from mpi4py import MPI
from alpa_mlir.runtime.guard import die_with_parent

die_with_parent()
world = MPI.COMM_WORLD

def body():
    watchdog = Watchdog(world.rank, 2.0)
    world.Barrier()
    with watchdog.watching():
        if world.rank == 1:
            FAULT
        while True:
            watchdog.beat("waiting for rank 1")
            time.sleep(0.1)

guarded(world.rank, body)
"""
FAULTS = {
    "raise ValueError('broken on purpose')": (1, "[rank 1] failed: ValueError: broken on purpose"),
    "sys.exit(3)": (3, "[rank 1] left early with code 3"),
    "sys.exit(0)": (1, "[rank 1] left early with code 0"),
    "time.sleep(1000)": (124, "[rank 1] no progress for 2 s in: starting"),
    "os.kill(os.getpid(), 9)": (137, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_rank_ends_the_job(fault: str, tmp_path: Path) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(PROGRAM.replace("FAULT", fault))
    job = ranks.start([], mpirun=2, script=script)
    found = ranks.finish(job, 60)
    code, message = FAULTS[fault]
    assert found.code == code, found.err
    assert message in found.err
    ours = [line for line in found.err.splitlines() if line.startswith("[rank")]
    assert not ours or ours[0].startswith("[rank 1]")
    assert ranks.living(str(tmp_path)) == []


def long_job(tmp_path: Path, start: list[object]):
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    job = ranks.start([*start, plan, "--steps", 1000000])
    assert job.stdout is not None
    assert job.stdout.readline().startswith("step 0")
    return job


@pytest.mark.parametrize("start", [["--local"], ["-n", 2]])
def test_ctrl_c_exits_130(start: list[object], tmp_path: Path) -> None:
    job = long_job(tmp_path, start)
    os.kill(job.pid, signal.SIGINT)
    assert ranks.finish(job, 60).code == 130
    assert ranks.living(str(tmp_path)) == []


def test_a_killed_rank_and_a_killed_launcher_leave_nothing(tmp_path: Path) -> None:
    job = long_job(tmp_path, ["-n", 2])
    rank = max(ranks.living(str(tmp_path)))
    os.kill(rank, signal.SIGKILL)
    assert ranks.finish(job, 60).code != 0
    job = long_job(tmp_path, ["-n", 2])
    os.kill(job.pid, signal.SIGKILL)
    limit = time.monotonic() + 30
    while ranks.living(str(tmp_path)) and time.monotonic() < limit:
        time.sleep(0.2)
    assert ranks.living(str(tmp_path)) == []
    job.communicate()


def test_ranks_that_share_a_stage_with_a_killed_one_let_mpirun_speak(tmp_path: Path) -> None:
    job = long_job(tmp_path, ["-n", 4])
    os.kill(max(ranks.living(str(tmp_path))), signal.SIGKILL)
    found = ranks.finish(job, 60)
    assert found.code == 137 and found.seconds < 5
    assert "exited on\nsignal 9" in found.err and "[rank" not in found.err
    assert ranks.living(str(tmp_path)) == []


def test_a_plan_that_differs_from_its_reference_exits_1(tmp_path: Path) -> None:
    plan, model = tmp_path / "plan.mlir", tmp_path / "model.mlir"
    plan.write_text(mlp_plan.plan_text())
    source = Path(__file__).parent.joinpath("mlp_step.mlir").read_text()
    for factor, code, word in (("1.0e-01", 0, "equal"), ("1.1e-01", 1, "DIFFERENT")):
        model.write_text(source.replace("1.0e-01", factor))
        found = ranks.run(["-n", 2, plan, "--steps", 2, "--reference", model, "--tolerance", 1e-5])
        assert found.code == code, found.err
        assert found.out.splitlines()[-1].endswith(word)
    model.write_text("module { func.func public @main(%a: tensor<f32>) -> tensor<f32> { return %a : tensor<f32> } }")
    found = ranks.run(["-n", 2, plan, "--reference", model])
    assert found.code == 1
    assert found.err.count(f"{model}:1:1: error: the reference has 1 arguments, the plan 4") == 1


def test_nan_equals_nan_but_not_a_number() -> None:
    from alpa_mlir.runtime.reference import compare

    nan = np.asarray([np.nan, 1.0])
    assert compare(nan, nan).relative == 0 and compare(nan, nan).strange == 1
    assert compare(np.asarray([0.0, 1.0]), nan).relative == float("inf")
    assert compare(np.asarray([1.5]), np.asarray([1.0])).absolute == 0.5
    assert compare(np.zeros(0), np.zeros(0)).relative == 0
