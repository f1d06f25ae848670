"""The runtime's figures, each beside its aim: what a run costs beyond the work itself.

    python -m benchmarks.runtime [instructions jit pipeline reshard start] [--json FILE]
    python -m benchmarks.runtime instructions jit --platform cuda

- *instructions*: the dearest action, XLA's programs and copies apart (see `benchmarks.instructions`).
- *jit*: a small GPT as a plan of one stage on one device against plain `jax.jit` of the same step; steps alternate; the
  median of three processes, for where a process's buffers happen to lie makes either side some percent quicker.
- *pipeline*: two ranks of one core, against the ideal (see `benchmarks.pipeline`).
- *reshard*: between submeshes on two ranks, against bare MPI between the same ranks, once with the same messages, once
  with one contiguous message for each box; and bytes across, against the least possible (see `benchmarks.reshard`).
- *start*: from mpirun to the first step's loss, small GPT on four ranks, with an empty folder of programs and again.

Where rounds alternate, the ratio is of the quickest quarters.  The exit status is 0 when every aim is met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from alpa_mlir.runtime import launch

PROCESSES = 3
"""In how many a plan is compared with `jax.jit`."""


@dataclass(frozen=True)
class Figure:
    """A measured number; `least`: the aim is a lower bound, else an upper one."""

    name: str
    value: float
    aim: float
    unit: str
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether the aim is reached."""
        return self.value >= self.aim if self.least else self.value <= self.aim


def tool(*words: object) -> str:
    """What a Python module of ours prints, run in a process of its own."""
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def planned(folder: Path, model: str, *options: object, size: Sequence[object] = ()) -> tuple[Path, Path]:
    """A built-in model and its plan."""
    source, plan = folder / f"{model}.mlir", folder / f"{model}.plan.mlir"
    tool("alpa_mlir.tools.export", model, *size, "-o", source)
    tool("alpa_mlir.tools.plan", source, "--cluster", "cpu", "--memory", "32GB", *options, "-o", plan)
    return source, plan


def instructions(folder: Path, platform: str) -> Iterator[Figure]:
    """The dearest action; stages of two CPU devices, or of one GPU, which they may share."""
    from benchmarks.instructions import measure

    devices = 4 if platform == "cpu" else 2
    _, plan = planned(folder, "mlp", "--devices-per-node", devices, "--stages", 2, "--microbatches", 4)
    rows, _, _ = measure(plan, 50, platform)
    dearest = max(rows, key=lambda row: row.ours)
    yield Figure(f"dearest instruction ({dearest.kind})", dearest.ours, 20, "µs")


def jit(folder: Path, platform: str) -> Iterator[Figure]:
    """A plan of one device against jax: a small GPT; on a GPU also one whose step fills it."""
    yield Figure("one device against jax.jit, small GPT", compared(folder, platform, {}), 1.02, "")
    if platform == "cuda":
        large = {"hidden": 2048, "heads": 16, "sequence": 1024, "vocabulary": 51200, "layers": 4, "batch": 8}
        yield Figure("one device against jax.jit, large GPT", compared(folder, platform, large), 1.02, "")


def compared(folder: Path, platform: str, size: dict[str, Any]) -> float:
    """The ratio of a GPT's steps in the middle one of PROCESSES processes."""
    words = [word for name, value in size.items() for word in (f"--{name}", value)]
    _, plan = planned(folder, "gpt", "--devices-per-node", 1, "--stages", 1, "--microbatches", 1, size=words)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        return median([pool.submit(against_jit, plan, platform, size).result() for _ in range(PROCESSES)])


def against_jit(plan: Path, platform: str, size: dict[str, Any], rounds: int = 24) -> float:
    """The ratio of a GPT's steps in this process."""
    import jax

    from alpa_mlir.models import MODELS
    from benchmarks.instructions import open_worker

    worker, _ = open_worker(plan, platform=platform)
    model = MODELS["gpt"]
    config = model.config(**size)
    step = model.build(config)
    states = [argument for argument, _ in step.updates]
    plain = jax.jit(step.function, donate_argnums=states)
    arguments = [jax.device_put(value) for value in model.initial_values(config, 0)]

    def ours() -> None:
        worker.step()
        worker.wait()

    def theirs() -> None:
        results = plain(*arguments)
        for argument, result in step.updates:
            arguments[argument] = results[result]
        jax.block_until_ready(results)

    for work in (ours, theirs) * 3:
        work()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    mine, other = quickest(a for a, _ in pairs), quickest(b for _, b in pairs)
    print(f"{1e3 * mine:.2f} ms a step, jax.jit {1e3 * other:.2f} ms", file=sys.stderr)
    return mine / other


def timed(work: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def quickest(seconds: Iterator[float]) -> float:
    """The median of the quickest quarter."""
    found = sorted(seconds)
    return median(found[: max(1, len(found) // 4)])


def pipeline(folder: Path, platform: str) -> Iterator[Figure]:
    """Two ranks of one core; plain 1F1B, which waits for each message, beside the schedule that does not."""
    from benchmarks.pipeline import measure

    for schedule, aim in (("eager-1f1b", 0.95), ("1f1b", 0.9)):
        found = measure(schedule, 40, 768, 16, 8)
        name = f"pipeline, {schedule}, of the ideal (m/(m+p-1) = {found.bubble:.3f})"
        yield Figure(name, found.quiet, aim, "", least=True)


def reshard(folder: Path, platform: str) -> Iterator[Figure]:
    """Between submeshes on two ranks."""
    rows = folder / "reshard.json"
    tool("benchmarks.reshard", "--json", rows)
    found = json.loads(rows.read_text())
    for name, what in (("same", "with the same messages"), ("whole", "with whole boxes")):
        worst = min(found, key=lambda row: row[name])
        yield Figure(f"reshard {worst['case']}, of bare MPI {what}", worst[name], 0.8, "", least=True)
    yield Figure("bytes across, of the lower bound", max(r["across"] / r["bound"] for r in found), 1.0, "")


def start(folder: Path, platform: str) -> Iterator[Figure]:
    """From mpirun to the first step."""
    _, plan = planned(folder, "gpt", "--devices-per-node", 4, "--stages", 2, "--microbatches", 4)
    for name, aim in (("first start, 4 ranks, small GPT", 10.0), ("second start", 5.0)):
        yield Figure(name, first_step(plan, 4, folder / "cache"), aim, "s")


def first_step(plan: Path, ranks: int, cache: Path) -> float:
    """Seconds from mpirun's start to the first step's loss."""
    mpirun = launch.find_mpirun() or "mpirun"
    command = [mpirun, "-n", str(ranks), sys.executable, "-m", "alpa_mlir.tools.run", str(plan)]
    environment = {**launch.ENVIRONMENT, **os.environ, "ALPA_MLIR_CACHE_DIR": str(cache)}
    begin = time.monotonic()
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        line = job.stdout.readline()
        seconds = time.monotonic() - begin
    if not line.startswith("step 0:") or job.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds


PARTS: dict[str, Callable[[Path, str], Iterator[Figure]]] = {
    "instructions": instructions, "jit": jit, "pipeline": pipeline, "reshard": reshard, "start": start,
}  # fmt: skip


def measured(parts: Sequence[str], platform: str) -> Iterator[Figure]:
    """The figures of these parts, each part in a process of its own: jax starts once in a process."""
    for part in parts:
        if len(parts) == 1:
            with tempfile.TemporaryDirectory() as folder:
                yield from PARTS[part](Path(folder), platform)
        else:
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                command = [sys.executable, "-m", "benchmarks.runtime", part, "--json", file.name, "--quiet"]
                command += ["--platform", platform]
                subprocess.run(command, check=False)
                yield from (Figure(**row) for row in json.load(file))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the runtime against its aims.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu", help="cuda: for instructions and jit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {' or '.join(sorted(unknown))}")
    found = []
    for figure in measured(options.parts, options.platform):
        found.append(figure)
        if not options.quiet:
            bound = "≥" if figure.least else "≤"
            verdict = "met" if figure.met else "MISSED"
            aim = f"{bound} {figure.aim:g} {figure.unit}"
            print(f"{figure.name:70}{figure.value:10.3f} {figure.unit:4}{aim:>10}  {verdict}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(f) for f in found], indent=1) + "\n")
    return 0 if all(f.met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
