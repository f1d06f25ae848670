"""The public instances of the intra-operator problem: cost, bound, gap, seconds and memory of `alpa-mlir-solve`.

    python -m benchmarks.solve FOLDER [--instances B G V …] [--engine auto] [--json FILE]

FOLDER holds NAME.json.gz in the format of google/iopddl. Each instance is solved by the command in a process of its
own, so that seconds and peak memory are all of it: start, reading, compiling, solving. The best known costs are those
published with the contest; the last line is the geometric mean of the ratios to them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

BEST_KNOWN = {"A": 6_548_641_531, "B": 532_843, "G": 217_039, "S": 1_511_377_982, "V": 1_617_084}


@dataclass(frozen=True)
class Run:
    """One solved instance; `error` where there is no solution."""

    instance: str
    cost: float
    bound: float
    gap: float
    optimal: bool
    seconds: float
    cpu_seconds: float
    gigabytes: float
    error: str = ""

    @property
    def ratio(self) -> float:
        """Cost to best known cost."""
        return self.cost / BEST_KNOWN[self.instance] if self.instance in BEST_KNOWN else math.nan


def solve(path: Path, arguments: Sequence[str]) -> Run:
    """Run the command on one instance."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "solution.json"
        command = [sys.executable, "-m", "alpa_mlir.tools.solve", str(path), "-o", str(out), *arguments]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            errors = process.stderr.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        found = json.loads(out.read_text()) if process.returncode == 0 else {}
    return Run(
        path.name.split(".")[0], found.get("cost", math.inf), found.get("bound", -math.inf), found.get("gap", math.inf),
        found.get("optimal", False), seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20,
        "" if found else errors.strip().splitlines()[-1],
    )  # fmt: skip


def table(runs: Sequence[Run]) -> Table:
    """The runs as a table."""
    made = Table("instance", "cost", "bound", "gap %", "ratio", "seconds", "CPU s", "GB")
    for run in runs:
        gap = "optimal" if run.optimal else f"{100 * run.gap:.2f}"
        made.add_row(
            run.instance, run.error or f"{run.cost:.0f}", f"{run.bound:.0f}", gap, f"{run.ratio:.4f}",
            f"{run.seconds:.1f}", f"{run.cpu_seconds:.1f}", f"{run.gigabytes:.2f}",
        )  # fmt: skip
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.solve", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instances", nargs="+", metavar="NAME", help="default: all in the folder")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    paths = sorted(options.folder.glob("*.json.gz"))
    chosen = [p for p in paths if not options.instances or p.name.split(".")[0] in options.instances]
    runs = [solve(path, ["--engine", options.engine]) for path in chosen]
    console = Console()
    console.print(table(runs))
    ratios = [run.ratio for run in runs if math.isfinite(run.ratio)]
    if ratios:
        console.print(f"geometric mean of the ratios: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.4f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 1 if any(run.error for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
