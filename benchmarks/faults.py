"""Kill tests: a rank of a training run is killed, raises, or is stopped; how the job ends.

    python -m benchmarks.faults [--heartbeat 5] [--runs 1] [--json FILE]

A perceptron in three stages trains on three ranks, with a checkpoint every five steps.  After some steps the rank of
the first, middle or last stage is killed (signal 9), raises an exception, or is stopped (SIGSTOP).  For each the table
says how long the whole job then lasted, its exit status, whether the first line on stderr names that rank, how many
processes were left, and whether the last checkpoint goes on.  The exit status of the command is 0 when all of it is as
it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alpa_mlir.runtime.launch import ENVIRONMENT, RANK_VARIABLES, find_mpirun

RANKS = 3
KINDS = {"kill -9": (137, "was killed by signal 9"), "exception": (1, "failed: "), "stopped": (124, "gave no sign")}
RAISING = "ALPA_BENCHMARK_RAISE"
"""In the environment: the rank that is to raise, and the file that tells when it did."""


@dataclass(frozen=True)
class Result:
    """How one job ended."""

    kind: str
    stage: int
    seconds: float
    status: int
    first: str
    named: bool
    left: int
    resumed: bool

    def fine(self, limit: float) -> bool:
        """Whether all is as it should be."""
        return (
            self.seconds <= limit and self.status == KINDS[self.kind][0] and self.named and not self.left
        ) and self.resumed


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Kill, break and stop ranks, and see how the job ends.")
    parser.add_argument("--heartbeat", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--runs", type=int, default=1, help="runs of each case; the longest counts")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder))
        print(f"{'what':<10}{'stage':>6}{'ended after s':>15}{'status':>8}{'named first':>13}{'left':>6}{'resumed':>9}")
        for kind in KINDS:
            for stage in range(RANKS):
                runs = [one(plan, kind, stage, options.heartbeat) for _ in range(options.runs)]
                worst = max(runs, key=lambda r: (not r.fine(5.0), r.seconds))
                results.append(worst)
                marks = f"{'yes' if worst.named else 'NO':>13}{worst.left:>6}{'yes' if worst.resumed else 'NO':>9}"
                print(f"{kind:<10}{stage:>6}{worst.seconds:>15.2f}{worst.status:>8}{marks}", flush=True)
                if not worst.named:
                    print(f"    {worst.first}")
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    return 0 if all(r.fine(max(5.0, options.heartbeat)) for r in results) else 1


def make_plan(folder: Path) -> Path:
    """A training step in three stages of one device."""
    model, plan = folder / "model.mlir", folder / "plan.mlir"
    tool = [sys.executable, "-m"]
    subprocess.run([*tool, "alpa_mlir.tools.export", "mlp", "-o", str(model)], check=True)
    sizes = ["--cluster", "cpu", "--devices-per-node", str(RANKS), "--stages", str(RANKS), "--microbatches", "4"]
    subprocess.run(
        [*tool, "alpa_mlir.tools.plan", str(model), *sizes, "-o", str(plan)], check=True, stdout=subprocess.DEVNULL
    )
    return plan


def one(plan: Path, kind: str, stage: int, heartbeat: float) -> Result:
    """One job and its end."""
    saved, told = plan.parent / f"saved-{time.monotonic_ns()}", plan.parent / "raised"
    told.unlink(missing_ok=True)
    job = start(plan, saved, heartbeat, f"{stage}:{told}" if kind == "exception" else "")
    assert job.stdout is not None and job.stderr is not None
    while not job.stdout.readline().startswith("step 12:"):
        if job.poll() is not None and not told.exists():
            raise RuntimeError(job.stderr.read())
        if told.exists():
            break
    begin = time.monotonic()
    if kind == "exception":
        while not told.exists():
            time.sleep(0.001)
        begin = float(told.read_text())
    else:
        os.kill(rank_process(saved, stage), signal.SIGKILL if kind == "kill -9" else signal.SIGSTOP)
    _, errors = job.communicate()
    seconds = time.monotonic() - begin
    first = next(iter(errors.splitlines()), "")
    named = first.startswith(f"[rank {stage} on {socket.gethostname()}] {KINDS[kind][1]}")
    left = len(processes(saved))
    return Result(kind, stage, seconds, job.returncode, first, named, left, resumes(plan, saved))


def start(plan: Path, saved: Path, heartbeat: float, raising: str) -> subprocess.Popen[str]:
    """The job, under mpirun."""
    mpirun = find_mpirun()
    if mpirun is None:
        raise SystemExit("there is no mpirun")
    options = ["--steps", "1000000", "--checkpoint", str(saved), "--checkpoint-every", "5", "--checkpoint-keep", "2"]
    options += ["--heartbeat", str(heartbeat)]
    return subprocess.Popen(
        [mpirun, "-n", str(RANKS), sys.executable, "-m", "benchmarks.faulty_rank", str(plan), *options],
        env={**ENVIRONMENT, **os.environ, RAISING: raising},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes(marker: Path) -> list[int]:
    """Those whose command line names the job's checkpoints."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(marker).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def rank_process(marker: Path, rank: int) -> int:
    """The process of a rank."""
    for pid in processes(marker):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if any(f"{name}={rank}".encode() in environment for name in RANK_VARIABLES):
            return pid
    raise RuntimeError(f"rank {rank} has no process")


def resumes(plan: Path, saved: Path) -> bool:
    """Whether a run in one process goes on from the last checkpoint."""
    command: list[Any] = [sys.executable, "-m", "alpa_mlir.tools.run", "--local", plan, "--restore", saved]
    found = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    return found.returncode == 0 and int(found.stdout.split()[1].rstrip(":")) % 5 == 0


if __name__ == "__main__":
    sys.exit(main())
