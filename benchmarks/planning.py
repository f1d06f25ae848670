"""How long planning takes: commands from a StableHLO file to a plan, each in a process of its own.

    python -m benchmarks.planning [--case gpt24-2x4 gpt39b-64 depth …] [--folder build/planning] [--json FILE]

Cases named `…-2x4` run the intra-operator program alone (`alpa-mlir-opt`, one stage on that mesh), the others the
whole planner (`alpa-mlir-plan`). A name may stand for several cases: `intra`, `large`, `depth`, `llama405b`, `all`.
Programs are exported into the folder where they are not there yet; that is not counted. Printed for each case: seconds
that passed and seconds of CPU, peak memory of the process, the predicted step and, for the intra-operator program, the
proven gap; below it the phases. `start` is what no phase covers: Python, imports, reading the cluster. Nothing comes
from the cache of stage costs. On GPUs of 16 GB gradients are added up in 16 bits: at 22 bytes a parameter (state, f32
sums and gradients) GPT-39B fills 64 of them but for what a microbatch needs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alpa_mlir.tools.clock import LINE


@dataclass(frozen=True)
class Case:
    """A program (words for alpa-mlir-export), a cluster preset and its nodes, more words; `mesh`: one stage on it."""

    name: str
    program: str
    cluster: str
    nodes: int
    aim: float
    """Seconds that planning should take at most."""
    mesh: str = ""
    words: str = ""

    @property
    def devices(self) -> int:
        """Devices of the cluster: all presets used have eight a node."""
        return 8 * self.nodes


@dataclass(frozen=True)
class Phase:
    """A phase of a command, in seconds."""

    text: str
    wall: float
    cpu: float


@dataclass(frozen=True)
class Figures:
    """What a case took: seconds, peak bytes, the predicted seconds of a step, the gap in parts of it."""

    case: str
    devices: int
    aim: float
    wall: float
    cpu: float
    peak_bytes: int
    step_seconds: float | None
    gap: float | None = None
    phases: list[Phase] = field(default_factory=list)
    error: str = ""


GPT24 = "gpt --size 350M --batch"
DEPTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
HALF = "--no-master --moments bfloat16 --sums float16"
"""With f32 master copies and moments 70B parameters and their gradients need 24 GB on each of 64 devices of 16 GB."""
INTRA = (
    Case("gpt24-2x4", f"{GPT24} 64", "dgx-h100", 1, 5, "2x4"),
    Case("gpt24-4x8", f"{GPT24} 256", "dgx-h100", 4, 5, "4x8"),
    Case("llama8b-8x8", "llama --size 8B --batch 64 --sequence 2048", "dgx-h100", 8, 15, "8x8"),
)
LARGE = (
    Case("gpt39b-64", "gpt --size 39B --sums float16", "p3.16xlarge", 8, 60),
    Case("moe70b-64", f"moe --size 70B --batch 1024 {HALF}", "p3.16xlarge", 8, 90, words="--layers 16"),
    Case(
        "wrn13b-64",
        "wide_resnet --size 13B --batch 1536",
        "p3.16xlarge",
        8,
        90,
        words="--layers 16 --allow-per-microbatch-statistics",
    ),
    Case("gpt15b-32", "gpt --size 15B --sums float16", "p3.16xlarge", 4, 90, words="--layers 16"),
)
DEPTH = tuple(
    Case(f"depth-{n}", f"gpt --size 350M --layers {n} --batch 1024 --scan", "dgx-h100", 1, 60) for n in DEPTHS
)
LLAMA = tuple(Case(f"llama405b-{n}", "llama --size 405B", "dgx-h100", n // 8, 300) for n in (512, 4096, 16384))
GROUPS = {"intra": INTRA, "large": LARGE, "depth": DEPTH, "llama405b": LLAMA}
CASES = {case.name: case for group in GROUPS.values() for case in group}


def export(case: Case, folder: Path) -> Path:
    """The program of a case as bytecode."""
    path = folder / (re.sub("[^a-z0-9]+", "_", case.program.lower()) + ".mlirbc")
    if not path.exists():
        words = [*_command("export"), *case.program.split(), "--bytecode", "-o", str(path)]
        subprocess.run(words, check=True)
    return path


def _command(name: str) -> list[str]:
    """A command of this installation, as its console script starts it."""
    return [sys.executable, "-c", f"from alpa_mlir.tools import start; start.{name}()"]


def _words(case: Case, program: Path, folder: Path) -> list[str]:
    output = str(folder / f"{case.name}.mlir")
    if case.mesh:
        shard = f"mesh={case.mesh} cluster={case.cluster} statistics"
        return [
            *_command("opt"),
            str(program),
            "--alpa-normalize",
            f"--alpa-shard={shard}",
            "--mlir-timing",
            "-o",
            output,
        ]
    words = [
        "--cluster",
        case.cluster,
        "--nodes",
        str(case.nodes),
        *case.words.split(),
        "--timing",
        "--no-cache",
        "-o",
        output,
    ]
    return [*_command("plan"), str(program), *words, "--json", str(folder / f"{case.name}.json")]


def measure(case: Case, folder: Path) -> Figures:
    """Run one case."""
    words = _words(case, export(case, folder), folder)
    log = folder / f"{case.name}.log"
    with log.open("w") as stderr:
        start = time.perf_counter()
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    lines = log.read_text().splitlines()
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    phases = [Phase(m["text"], float(m["wall"]), float(m["cpu"])) for m in map(LINE.fullmatch, lines) if m]
    rest = Phase("start", wall - sum(p.wall for p in phases), cpu - sum(p.cpu for p in phases))
    figures = (case.name, case.devices, case.aim, wall, cpu, peak)
    if child.returncode:
        error = next((line for line in lines if "error: " in line), f"exit status {child.returncode}")
        return Figures(*figures, None, None, [rest, *phases], error.partition("error: ")[2] or error)
    return Figures(*figures, _step_seconds(case, folder), _gap(lines), [rest, *phases])


def _step_seconds(case: Case, folder: Path) -> float:
    """The predicted seconds of a step, from what the command wrote."""
    if not case.mesh:
        return float(json.loads((folder / f"{case.name}.json").read_text())["step_seconds"])
    with (folder / f"{case.name}.mlir").open() as file:
        found = re.search(r"alpa\.cost = ([0-9.eE+-]+)", file.read(1 << 20))
    return float(found[1]) if found else float("nan")


def _gap(lines: Sequence[str]) -> float | None:
    """The worst gap that the solver remarks, in parts of the cost."""
    gaps = [float(m[1]) / 100 for m in (re.search(r"gap ([0-9.eE+-]+) %", line) for line in lines) if m]
    return max(gaps, default=None)


def table(found: Sequence[Figures]) -> Table:
    """A row per case, and one per phase that took long enough to matter."""
    shown = Table(title="from a StableHLO file to a plan")
    for column in ("case", "devices", "s", "CPU s", "aim s", "MB", "predicted step", "gap"):
        shown.add_column(column, justify="left" if column == "case" else "right")
    for f in found:
        step = f"{1e3 * f.step_seconds:.6g} ms" if f.step_seconds is not None else f.error[:60]
        gap = "" if f.gap is None else f"{100 * f.gap:.2g} %"
        peak = f"{f.peak_bytes / 1e6:.0f}"
        shown.add_row(f.case, str(f.devices), f"{f.wall:.1f}", f"{f.cpu:.1f}", f"{f.aim:.0f}", peak, step, gap)
        for text, wall, cpu in summed(f.phases):
            if cpu >= 0.02 * f.cpu:
                shown.add_row(f"  {text}", "", f"{wall:.1f}", f"{cpu:.1f}", "", "", "", "")
        shown.add_section()
    return shown


def summed(phases: Sequence[Phase]) -> list[tuple[str, float, float]]:
    """(pass, seconds, CPU seconds): a pass that ran several times, with other options, once."""
    total: dict[str, tuple[int, float, float]] = {}
    for phase in phases:
        name = phase.text.partition("{")[0]
        times, wall, cpu = total.get(name, (0, 0.0, 0.0))
        total[name] = (times + 1, wall + phase.wall, cpu + phase.cpu)
    return [(f"{n} × {times}" if times > 1 else n, wall, cpu) for n, (times, wall, cpu) in total.items()]


def main() -> int:
    """Print the table; exit 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*GROUPS, *CASES, "all"]
    parser.add_argument("--case", nargs="+", choices=names, default=["all"], metavar="NAME", help=", ".join(names))
    parser.add_argument("--folder", type=Path, default=Path("build/planning"), help="programs, plans and logs")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    chosen = [c for n in options.case for c in GROUPS.get(n, CASES.values() if n == "all" else (CASES.get(n),)) if c]
    options.folder.mkdir(parents=True, exist_ok=True)
    found: list[Figures] = []
    for case in dict.fromkeys(chosen):
        found.append(measure(case, options.folder))
        print(f"{case.name}: {found[-1].wall:.1f} s, {found[-1].cpu:.1f} CPU s {found[-1].error}", file=sys.stderr)
        if options.json:
            Path(options.json).write_text(json.dumps([asdict(f) for f in found], indent=2) + "\n")
    Console(width=120).print(table(found))
    return 1 if any(f.error for f in found) else 0


if __name__ == "__main__":
    sys.exit(main())
