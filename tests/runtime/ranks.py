"""Start `alpa-mlir-run` in a process group of its own, with a time limit that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpa_mlir.runtime.launch import ENVIRONMENT, find_mpirun

LIMIT = 180.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `seconds` is its wall time."""

    code: int
    out: str
    err: str
    seconds: float


def environment() -> dict[str, str]:
    """That of a plain shell: without what the tests set for jax in their own process."""
    hidden = ("XLA_FLAGS", "PJRT_NPROC", "JAX_PLATFORMS")
    return {**ENVIRONMENT, **{k: v for k, v in os.environ.items() if k not in hidden}}


def run(arguments: Sequence[object], *, mpirun: int = 0) -> Outcome:
    """The command with these arguments, under `mpirun -n` if asked; killed with all its processes at the limit."""
    return finish(start(arguments, mpirun=mpirun))


def start(arguments: Sequence[object], *, mpirun: int = 0, script: Path | None = None) -> subprocess.Popen[str]:
    """The same, started; `script` replaces the command."""
    program = [str(script)] if script else ["-m", "alpa_mlir.tools.run"]
    command = [sys.executable, *program, *map(str, arguments)]
    if mpirun:
        found = find_mpirun()
        assert found is not None
        command = [found, "-n", str(mpirun), *command]
    return subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str], limit: float = LIMIT) -> Outcome:
    """Wait for a started job; end its whole group at the limit, and fail."""
    begin = time.monotonic()
    try:
        out, err = job.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        job.terminate()
        try:
            out, err = job.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            out, err = job.communicate()
        raise AssertionError(f"still running after {limit:g} s\n{out}\n{err}") from None
    return Outcome(job.returncode, out, err, time.monotonic() - begin)


def living(marker: str) -> list[int]:
    """Processes whose command line contains `marker` (a test's own temporary path)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # the process ended while we looked
            continue
    return found


def pid_of(marker: str, rank: int) -> int:
    """The process of one rank of the job that `marker` names."""
    for pid in living(marker):
        if f"OMPI_COMM_WORLD_RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"no process of rank {rank}")
