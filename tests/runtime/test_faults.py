"""A rank that fails, is killed or hangs ends the whole job within seconds, with its message; nothing stays."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import mlp_plan
import numpy as np
import pytest
import ranks

PROGRAM = """
import os, signal, sys, time
from alpa_mlir.runtime import heartbeat
from alpa_mlir.runtime.guard import Watchdog, die_with_parent, guarded, terminated
from mpi4py import MPI

die_with_parent()
world = MPI.COMM_WORLD
culprit = int(sys.argv[1])

def body():
    signal.signal(signal.SIGTERM, lambda *_: terminated(world.rank))
    watchdog = Watchdog(world.rank, 2.0)
    heartbeat.connect(world, 2.0, watchdog)
    world.Barrier()
    with watchdog.watching():
        watchdog.beat("the fault")
        if world.rank == culprit:
            FAULT
        while True:
            watchdog.wait(f"a message of rank {culprit}")
            time.sleep(0.1)

guarded(world.rank, body)
"""
KILL, STOP = "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSTOP)"
FAULTS = {
    "raise ValueError('broken on purpose')": (1, "failed: ValueError: broken on purpose"),
    "sys.exit(3)": (3, "left early with code 3"),
    "sys.exit(0)": (1, "left early with code 0"),
    "time.sleep(1000)": (124, "no progress for 2 s in: the fault"),
    "os.kill(os.getpid(), signal.SIGTERM)": (143, "ended by signal 15 (SIGTERM)"),
    "os.kill(os.getpid(), signal.SIGSEGV)": (139, "crashed; last heard in: "),
    "os._exit(7)": (7, ""),
    KILL: (137, "was killed by signal 9 (SIGKILL); last heard in: "),
    STOP: (124, "gave no sign of life for "),
}
PLACES = [(fault, 1) for fault in FAULTS] + [(fault, rank) for fault in (KILL, STOP) for rank in (0, 2)]


@pytest.mark.parametrize(("fault", "culprit"), PLACES)
def test_one_rank_ends_the_job(fault: str, culprit: int, tmp_path: Path) -> None:
    """At once, with the culprit first, and alone; where it cannot speak, others say which one it was."""
    script = tmp_path / "faulty.py"
    script.write_text(PROGRAM.replace("FAULT", fault))
    job = ranks.start([culprit], mpirun=3, script=script)
    found = ranks.finish(job, 60)
    code, message = FAULTS[fault]
    assert found.code == code, found.err
    first, *_ = found.err.splitlines()
    assert first.startswith(f"[rank {culprit} on {socket.gethostname()}] {message}")
    assert "Traceback" not in found.err or fault.startswith("raise")
    assert ranks.living(str(tmp_path)) == []


def test_ranks_with_different_plans_are_refused_before_any_work(tmp_path: Path) -> None:
    plan, other = tmp_path / "plan.mlir", tmp_path / "other.mlir"
    plan.write_text(mlp_plan.plan_text())
    other.write_text(mlp_plan.plan_text(4))
    second = [":", "-n", 1, sys.executable, "-m", "alpa_mlir.tools.run", other]
    found = ranks.run([plan, *second], mpirun=1)
    assert (found.code, found.out) == (1, "")
    host = socket.gethostname()
    assert found.err.startswith(f"{plan}:1:1: error: [rank 1 on {host}] differs from rank 0 on {host} in the plan: ")
    assert "Traceback" not in found.err


def test_everything_that_decides_what_a_rank_does_is_compared(tmp_path: Path) -> None:
    from alpa_mlir.runtime.agreement import disagreement, identity
    from alpa_mlir.runtime.job import Job

    job = Job(str(tmp_path / "plan.mlir"))
    mine = identity(job.plan, job.options())
    assert disagreement([mine, mine]) is None
    assert disagreement([mine, {**mine, "host": "b", "the plan": "123"}]) is None  # rank 0 does not see the file
    for name in ("alpa_mlir", "jax", "jaxlib", "the source of alpa_mlir", "the option steps", "the option inputs"):
        said = disagreement([mine, mine, {**mine, "host": "b", name: "other"}])
        assert said == f"[rank 2 on b] differs from rank 0 on {mine['host']} in {name}: other, not {mine[name]}"


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


def test_a_killed_rank_that_shares_a_stage_is_told_before_jax_complains(tmp_path: Path) -> None:
    job = long_job(tmp_path, ["-n", 4])
    os.kill(ranks.pid_of(str(tmp_path), 2), signal.SIGKILL)
    found = ranks.finish(job, 60)
    assert found.code == 137
    assert found.err.startswith(f"[rank 2 on {socket.gethostname()}] was killed by signal 9 (SIGKILL)")
    assert "coordination" not in found.err
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


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_stopped_while_it_starts_ends_the_job(culprit: int, tmp_path: Path) -> None:
    """Before the ranks know of one another; the others wait in MPI_Init."""
    script = tmp_path / "start.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from alpa_mlir.runtime.sentry import Sentry\n"
        "sentry = Sentry(2.0)\n"
        "if os.environ['OMPI_COMM_WORLD_RANK'] == sys.argv[1]:\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "from mpi4py import MPI\n"
        "sentry.end()\n"
    )
    found = ranks.finish(ranks.start([culprit], mpirun=3, script=script), 60)
    assert found.code == 137, found.err
    host = socket.gethostname()
    told = [line for line in found.err.splitlines() if "while it started" in line]
    assert len(told) == 1
    assert told[0].startswith(f"[rank {culprit} on {host}] was stopped for ")
    assert ranks.living(str(tmp_path)) == []
    found = ranks.finish(ranks.start([-1], mpirun=3, script=script), 60)
    assert (found.code, found.err) == (0, "")


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_stopped_while_it_ends_ends_the_job(culprit: int, tmp_path: Path) -> None:
    """After the last step, when nobody listens for signs of life any more; the others wait in MPI_Finalize."""
    script, plan = tmp_path / "end.py", tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    script.write_text(
        "import os, signal, sys\n"
        "from alpa_mlir.runtime import layout\n"
        "from alpa_mlir.tools import run\n"
        f"if os.environ['OMPI_COMM_WORLD_RANK'] == '{culprit}':\n"
        "    layout.disconnect = lambda: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "sys.exit(run.guarded(run.NAME, run.main))\n"
    )
    found = ranks.finish(ranks.start([plan, "--heartbeat", "2"], mpirun=2, script=script), 60)
    assert found.code == 137, found.err
    assert found.out.startswith("step 0: ")
    assert found.err.startswith(f"[rank {culprit} on {socket.gethostname()}] was stopped for ")
    assert "while it ended: ended" in found.err
    assert ranks.living(str(tmp_path)) == []
