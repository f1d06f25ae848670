"""Who is a rank, of how many, and on which cores: mpirun, srun, and what they leave to us."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import mlp_plan
import pytest
import ranks

from alpa_mlir.runtime import launch
from alpa_mlir.runtime.binding import share
from alpa_mlir.runtime.layout import await_listener
from alpa_mlir.tools import run
from alpa_mlir.tools.diagnostics import guarded

SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
CORES = [*range(8)]


def place(core: int) -> tuple[int, ...]:
    """Two packages of two cores with two threads, numbered as Linux often does: 0 and 4 are one core."""
    return (core % 4 // 2, core % 4, core)


@pytest.mark.parametrize(
    ("ranks_here", "how", "devices", "expected"),
    [
        (2, "auto", 1, [(0, 1, 4, 5), (2, 3, 6, 7)]),  # a package each
        (4, "auto", 1, [(0, 4), (1, 5), (2, 6), (3, 7)]),  # a physical core each
        (8, "auto", 1, None),
        (8, "yes", 1, [(0,), (4,), (1,), (5,), (2,), (6,), (3,), (7,)]),
        (2, "auto", 5, None),
        (1, "yes", 1, None),
        (9, "yes", 1, None),
    ],
)
def test_ranks_of_a_host_share_its_cores(ranks_here: int, how: str, devices: int, expected: object) -> None:
    found = [share([CORES] * ranks_here, r, how, devices, place) for r in range(ranks_here)]
    assert found == (expected if expected is not None else [None] * ranks_here)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"PMIX_SECURITY_MODE": "munge,native"}, "native"),
        ({"PMIX_SECURITY_MODE": "munge"}, None),
        ({"PMIX_SECURITY_MODE": "munge,native", "PMIX_MCA_psec": "munge"}, "munge"),
        ({}, None),
    ],
)
def test_the_security_that_every_pmix_has_is_taken_where_it_is_offered(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    launch.choose_pmix_security()
    assert os.environ.get("PMIX_MCA_psec") == expected  # noqa: SIM112


def test_what_the_launcher_has_bound_stays_bound() -> None:
    assert share([[0, 1], [2, 3]], 0, "yes", 1, place) is None


BIND = """
import os
from mpi4py import MPI
from alpa_mlir.runtime.binding import bind_cores
world = MPI.COMM_WORLD
given = bind_cores("yes", world, 1)
told = world.gather((given, tuple(sorted(os.sched_getaffinity(0)))))
if told is not None:
    print(told)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_ranks_are_bound_apart(tmp_path: Path) -> None:
    script = tmp_path / "bind.py"
    script.write_text(BIND)
    found = ranks.finish(ranks.start([], mpirun=2, script=script))
    assert found.code == 0, found.err
    (first, has), (second, holds) = eval(found.out)
    assert first == has and second == holds and not set(has) & set(holds)


def test_srun_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch.RANK_VARIABLES, *launch.SIZE_VARIABLES, *SRUN):
        monkeypatch.delenv(name, raising=False)
    assert (launch.under_mpirun(), launch.started_ranks(), launch.srun_without_mpi()) == (False, 1, False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script: no rank of anything yet
    assert (launch.under_mpirun(), launch.started_ranks(), launch.srun_without_mpi()) == (False, 1, False)
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    assert (launch.under_mpirun(), launch.srun_without_mpi()) == (False, True)
    monkeypatch.setenv("PMIX_RANK", "1")  # srun --mpi=pmix
    assert (launch.under_mpirun(), launch.started_ranks(), launch.srun_without_mpi()) == (True, 4, False)


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        ({}, 2, "srun started several tasks without MPI: give it --mpi=pmix"),
        ({"PMI_RANK": "1"}, 1, "the launcher started 4 ranks, but MPI knows of this one alone"),
    ],
)
def test_a_task_that_is_alone_by_mistake_says_so(
    extra: dict[str, str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of running the whole plan by itself, four times."""
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    for name, value in {**SRUN, **extra}.items():
        monkeypatch.setenv(name, value)
    found = ranks.run([plan])
    assert found.code == code and message in found.err, found.err
    assert "Traceback" not in found.err


def test_whoever_joins_waits_until_somebody_listens() -> None:
    """A client of jax that comes too early looks again after a second only."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        opened: list[float] = []

        def listen() -> None:
            time.sleep(0.2)
            opened.append(time.monotonic())
            server.listen()

        thread = threading.Thread(target=listen)
        thread.start()
        await_listener(f"127.0.0.1:{server.getsockname()[1]}")
        came = time.monotonic()
        thread.join()
    assert opened and 0 <= came - opened[0] < 0.15


def test_nobody_is_waited_for_beyond_the_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        begin = time.monotonic()
        await_listener(f"127.0.0.1:{silent.getsockname()[1]}", longest=0.1)
        assert 0.1 <= time.monotonic() - begin < 2


def test_no_thousand_ranks_are_started_for_a_plan_of_four_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would bring the machine down before one of them could refuse the plan."""
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    monkeypatch.setattr(run, "start_mpirun", lambda *_, **__: pytest.fail("started"))
    assert guarded("alpa-mlir-run", run.main, ["-n", "1000", str(plan)]) == 1
    assert "which 1000 ranks cannot share evenly: start 1 or 2 or 4" in capsys.readouterr().err


def test_a_wait_for_ever_is_one_that_the_system_can_measure() -> None:
    options = run.make_parser().parse_args(["--heartbeat", "inf", "--timeout", "1e300", "plan"])
    assert options.heartbeat == options.timeout == run.LONGEST
    assert run.LONGEST < threading.TIMEOUT_MAX
