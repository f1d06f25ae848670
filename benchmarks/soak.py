"""A long run, and one that is killed again and again.

    python -m benchmarks.soak [--steps 1000] [--kills 5] [--json FILE]

*Memory*: a perceptron in three stages runs `steps` steps on three ranks; for each rank the resident memory after a
fifth of the steps and at the end, and its open files.  *Kills*: the same job writes a checkpoint after every step and
is killed (signal 9, a rank in turn) after random times, mostly while it writes; each time it goes on from what it left.
At the end its state must be that of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alpa_mlir.runtime.launch import ENVIRONMENT, find_mpirun
from benchmarks.faults import RANKS, make_plan, rank_process


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Watch the memory of a long run; kill and resume one.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the times at which ranks are killed")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder))
        memory = watch(plan, options.steps)
        print(f"{'rank':>4}{'MB early':>10}{'MB at the end':>15}{'files early':>13}{'files at the end':>18}")
        for rank, (early, late) in enumerate(memory):
            print(f"{rank:>4}{early[0]:>10.1f}{late[0]:>15.1f}{early[1]:>13}{late[1]:>18}")
        done, equal = kill_and_resume(plan, options.kills, random.Random(options.seed))
        print(f"killed {options.kills} times in {done} steps; state equal to an uninterrupted run's: {equal}")
    if options.json:
        told = {"memory": memory, "kills": options.kills, "steps": done, "equal": equal}
        Path(options.json).write_text(json.dumps(told, indent=2) + "\n")
    return 0 if equal else 1


def start(plan: Path, *options: object) -> subprocess.Popen[str]:
    """The command under mpirun."""
    mpirun = find_mpirun()
    if mpirun is None:
        raise SystemExit("there is no mpirun")
    command = [mpirun, "-n", RANKS, sys.executable, "-m", "alpa_mlir.tools.run", plan, *options]
    return subprocess.Popen(
        [str(c) for c in command],
        env={**ENVIRONMENT, **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def until(job: subprocess.Popen[str], step: int) -> None:
    """Return when the job has done a step."""
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith(f"step {step}:"):
            return


def watch(plan: Path, steps: int) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    """(MB, open files) of each rank after a fifth of the steps and at the end."""
    job = start(plan, "--steps", 10 * steps)
    seen = []
    for step in (steps // 5, steps):
        until(job, step)
        seen.append([_held(rank_process(plan, rank)) for rank in range(RANKS)])
    job.terminate()
    job.communicate()
    return list(zip(*seen, strict=True))


def _held(pid: int) -> tuple[float, int]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return resident / 1000, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def kill_and_resume(plan: Path, kills: int, rng: random.Random) -> tuple[int, bool]:
    """Steps done in spite of the kills, and whether the state is then that of a run without any."""
    saved, whole = plan.parent / "saved", plan.parent / "whole"
    options = ["--checkpoint", saved, "--checkpoint-every", 1, "--checkpoint-keep", 3]
    for number in range(kills):
        job = start(plan, "--steps", 1000000, *options, *(["--restore", saved] if number else []))
        assert job.stdout is not None
        for _ in range(3):
            job.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        os.kill(rank_process(plan, number % RANKS), signal.SIGKILL)
        job.communicate()
    last = start(plan, "--steps", 1, *options, "--restore", saved)
    last.communicate()
    done = max(int(p.name) for p in saved.iterdir() if p.name.isdigit())
    start(plan, "--steps", done, "--checkpoint", whole).communicate()
    return done, _files(saved / str(done) / "state") == _files(whole / str(done) / "state")


def _files(folder: Path) -> dict[str, bytes]:
    """The arrays of a checkpoint, byte for byte."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("arg*/**/*")) if p.is_file()}


if __name__ == "__main__":
    sys.exit(main())
