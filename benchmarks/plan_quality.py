"""Plan quality: the planner's step against hand-written plans and ablations, priced by the same simulator.

    python -m benchmarks.plan_quality [--family gpt moe wide_resnet] [--gpus 1 4 8] [--rivals data …] [--jobs 2]
                                      [--json FILE] [--seconds 600] …

The pairs are the Alpa paper's: GPT, GShard MoE and Wide-ResNet of growing size on 1 to 64 V100s (p3.16xlarge).
For each pair the planner chooses everything; the rivals are fixed by stages, meshes and constraints in the same IR:

    grid       Megatron-LM: pipeline x data x tensor parallel, equal stages, 1F1B; the best point of the grid
    expert     DeepSpeed's MoE: experts split over all devices, the batch too, optimizer state where the solver puts it
    data       data parallel
    zero2/3    data parallel with optimizer state (and parameters) split over all devices
    inter      one device per stage
    intra      one stage on all devices

Rivals choose the number of microbatches and rematerialisation as the planner does.  The table shows predicted
milliseconds of a step and, for rivals, the ratio to the planner's: below 1 is a planner bug.  A rival that does not
fit in memory loses.  So does one whose step is foreseen to be NEAR times the planner's or longer: its shardings are not
solved, and its figures, at prices, are marked with `about`.  Planning uses the process's CPU seconds printed in the
last column.

Large pairs come first, and of a pair the planner, then the rivals that are likeliest to win.  `--seconds` ends it in
that time: what is planned then is left out, and, as outcomes are kept in `--json` as they come, is the next run's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from jaxlib.mlir import ir
from rich.console import Console
from rich.table import Table

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.joint import LEEWAY
from alpa_mlir.passes.manual import ManualStage, write_stages
from alpa_mlir.passes.settings import Considered
from alpa_mlir.planner import PlanOptions, foresee, plan
from alpa_mlir.tools.plan_summary import PlanSummary, summarize

PAIRS = {
    "gpt": (("350M", 1), ("1.3B", 4), ("2.6B", 8), ("6.7B", 16), ("15B", 32), ("39B", 64)),
    "moe": (("380M", 1), ("1.3B", 4), ("2.4B", 8), ("10B", 16), ("27B", 32), ("70B", 64)),
    "wide_resnet": (("250M", 1), ("1B", 4), ("2B", 8), ("4B", 16), ("6.8B", 32), ("13B", 64)),
}
BATCH = {"gpt": 1024, "moe": 1024, "wide_resnet": 1536}
RIVALS = ("grid", "expert", "data", "zero2", "zero3", "inter", "intra")
NAMED = ("expert", "intra", "zero3", "zero2", "data", "inter")
"""Rivals that are no points of a grid, the likeliest to win first."""
EXPERT_PARALLEL = "arg(batch*)=[{x},{}]; arg(*experts*)=[{x},{},{}]"
"""The batch and the experts' weights, with their optimizer state, on axis x (examples/plans/moe_expert.toml)."""
FITTING: dict[tuple[str, str], dict[str, Any]] = {
    ("gpt", "39B"): {"sums": "float16"},
    ("moe", "27B"): {"master": False, "moments": "bfloat16", "sums": "float16"},
    ("moe", "70B"): {"master": False, "moments": "bfloat16", "sums": "float16"},
}
"""Options of models whose state with f32 master copies, moments and sums is more than their GPUs hold."""
NEAR = 1.2
TIE = 1e-3
"""Ratios down to 1 - TIE are ties: the search ends at a proven gap."""


@dataclass(frozen=True)
class Outcome:
    """One plan of a pair: what it is, its predicted seconds, how it looks, or why it cannot be."""

    family: str
    size: str
    gpus: int
    name: str
    seconds: float | None
    looks: str
    cpu_seconds: float
    error: str = ""
    foreseen: bool = False
    """Whether the seconds are those at prices: the plan was not finished."""


class Pair(NamedTuple):
    """A model of a size and what it is planned for."""

    family: str
    size: str
    gpus: int
    batch: int


@dataclass(frozen=True)
class Rival:
    """A plan to compare with: options, and stages where they are fixed."""

    name: str
    options: PlanOptions
    stages: tuple[ManualStage, ...] = ()


class Task(NamedTuple):
    """A rival, or the planner itself, on a pair."""

    pair: Pair
    rival: Rival

    @property
    def turn(self) -> tuple[float, int, int]:
        """What sorts tasks into the order in which they are worth planning."""
        name, gpus = self.rival.name, self.pair.gpus
        if name == "planner":
            return -1, -gpus, 0
        if not name.startswith("grid "):
            return 0, -gpus, NAMED.index(name)
        # Within a node the links are quick: few points without tensor parallelism are good where there is any.
        tensor = int(name.split("x")[-1])
        return (0.5 if self.pair.family == "wide_resnet" else 1 / tensor), -gpus, 0


def cluster_of(gpus: int) -> Cluster:
    """So many V100s, eight a node."""
    return load_cluster("p3.16xlarge").with_sizes(max(1, gpus // 8), min(gpus, 8))


def program(pair: Pair, folder: Path) -> ir.Module:
    """The training step of a pair's model, abstract; kept in the folder as it is before planning."""
    family, size, _, batch = pair
    kept = folder / f"{family}-{size}-{batch}.mlir"
    if not kept.exists():
        model = MODELS[family]
        settings = FITTING.get((family, size), {})
        built = model.build(replace(model.presets[size], batch=batch, **settings))
        write(kept, print_module(lower(built), locations=True))
    return parse_module(kept.read_text(), make_context(), family)


def write(path: Path, text: str) -> None:
    """A file that appears whole or not at all, whenever this process is ended."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def rivals(family: str, gpus: int, base: PlanOptions) -> Iterator[Rival]:
    """The rivals that make sense for a pair; the grid yields one per point."""
    if gpus == 1:
        return
    whole = str(gpus)
    yield from _grid(family, gpus, base)
    if family == "moe":
        yield Rival("expert", replace(base, mesh=whole, constrain=EXPERT_PARALLEL))
    yield Rival("data", replace(base, mesh=whole, constrain="x=data"))
    yield Rival("zero2", replace(base, mesh=whole, constrain="x=zero2"))
    yield Rival("zero3", replace(base, mesh=whole, constrain="x=zero3"))
    yield Rival("inter", replace(base, stages=gpus))
    yield Rival("intra", replace(base, stages=1))


def _grid(family: str, gpus: int, base: PlanOptions) -> Iterator[Rival]:
    """Pipeline x data x tensor: tensor parallel within a node, not for convolutions."""
    powers = [2**k for k in range(gpus.bit_length()) if gpus % 2**k == 0]
    for pipeline in powers:
        for tensor in [t for t in powers if t <= 8 and pipeline * t <= gpus and (t == 1 or family != "wide_resnet")]:
            data = gpus // pipeline // tensor
            if (pipeline, tensor) == (1, 1):
                continue
            axes = [(data, "data"), (tensor, "tensor")]
            kept = [(n, use) for n, use in axes if n > 1]
            constrain = "; ".join(f"{axis}={use}" for axis, (_, use) in zip("xy", kept, strict=False))
            shape = tuple(n for n, _ in kept) or (1,)
            size = data * tensor
            stages = tuple(ManualStage(shape, tuple(range(s * size, (s + 1) * size))) for s in range(pipeline))
            options = replace(base, schedule="1f1b", constrain=constrain)
            yield Rival(f"grid {pipeline}x{data}x{tensor}", options, stages)


def run(task: Task, folder: Path, most: float) -> Outcome:
    """Plan one rival; it is not finished where it is foreseen to take `most` seconds or more."""
    pair, rival = task
    module = program(pair, folder)
    begin = time.process_time()
    if rival.stages:
        write_stages(module, rival.stages)
    try:
        first = _first_look(module, rival.options) if most < inf else None
        if first is not None and first.seconds is not None and first.seconds >= most:
            looks = f"{first.setting.told}, {first.schedule}"
            return Outcome(*pair[:3], rival.name, first.seconds, looks, time.process_time() - begin, foreseen=True)
        summary = summarize(plan(module, rival.options))
        return Outcome(*pair[:3], rival.name, summary.step_seconds, _looks(summary), time.process_time() - begin)
    except CompileError as e:
        return Outcome(*pair[:3], rival.name, None, "", time.process_time() - begin, e.message)


def _first_look(module: ir.Module, options: PlanOptions) -> Considered | None:
    """What is foreseen of a plan; None where that finds none, but not for want of much memory."""
    try:
        return foresee(module, options)
    except DoesNotFit as e:
        # The one that needs least was solved.
        if isfinite(e.least) and e.least > (1 + LEEWAY) * options.cluster.memory:
            raise
        return None
    except CompileError:
        return None


def _looks(summary: PlanSummary) -> str:
    meshes = ["x".join(map(str, s.mesh)) for s in summary.stages]
    same = f"{len(meshes)} of {meshes[0]}" if len(set(meshes)) == 1 else ", ".join(meshes)
    remat = ", remat" if summary.remat else ""
    return f"{same}, M {summary.microbatches}, {summary.schedule}{remat}"


def tasks(pairs: Sequence[Pair], wanted: Sequence[str], layers: int) -> Iterator[Task]:
    """The planner and its rivals for each pair."""
    for pair in pairs:
        statistics = pair.family == "wide_resnet"
        base = PlanOptions(cluster_of(pair.gpus), layers=layers, allow_per_microbatch_statistics=statistics)
        yield Task(pair, Rival("planner", base))
        for rival in rivals(pair.family, pair.gpus, base):
            if rival.name.split()[0] in wanted:
                yield Task(pair, rival)


def outcomes_of(
    todo: Sequence[Task], planners: dict[Pair, float], near: float, jobs: int, end: float
) -> Iterator[Outcome]:
    """What becomes of tasks, as they end, in so many processes, until the clock shows `end`.

    A rival waits for its pair's planner, and is not finished where it is foreseen to take `near` times as long as that.
    `planners` has the seconds of planners that are known.
    """
    waiting, seconds = sorted(todo, key=lambda task: task.turn), dict(planners)
    awaited = {task.pair for task in todo if task.rival.name == "planner"}
    running: dict[Future[Outcome], Task] = {}
    with TemporaryDirectory() as folder, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while waiting or running:
            ready = [task for task in waiting if task.rival.name == "planner" or task.pair not in awaited]
            for task in ready[: jobs - len(running)]:
                waiting.remove(task)
                most = inf if task.rival.name == "planner" else near * seconds.get(task.pair, inf)
                running[pool.submit(run, task, Path(folder), most)] = task
            ended = wait(running, min(max(0.0, end - time.monotonic()), 1e6), FIRST_COMPLETED).done
            if not ended:
                for process in active_children():
                    process.terminate()
                return
            for future in ended:
                task, outcome = running.pop(future), future.result()
                if task.rival.name == "planner":
                    awaited.remove(task.pair)
                    seconds[task.pair] = outcome.seconds or inf
                yield outcome


def _tell(o: Outcome) -> None:
    where = f"{o.family} {o.size} on {o.gpus}, {o.name}"
    print(
        f"{where}: {'about ' * o.foreseen}{o.seconds} s, {o.looks}{o.error} ({o.cpu_seconds:.0f} CPU s)",
        file=sys.stderr,
        flush=True,
    )


def best_points(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes pair by pair, the planner first, and of the grid its best point with the seconds of all."""
    found: list[Outcome] = []
    for pair in dict.fromkeys((o.family, o.size, o.gpus) for o in outcomes):
        here = [o for o in outcomes if (o.family, o.size, o.gpus) == pair]
        points = [o for o in here if o.name.startswith("grid ")]
        rest = [o for o in here if o not in points]
        fitting = [p for p in points if p.seconds is not None] or points[:1]
        best = sorted(fitting, key=lambda p: p.seconds or 0.0)[:1]
        found += sorted([*rest, *(replace(b, cpu_seconds=sum(p.cpu_seconds for p in points)) for b in best)], key=_rank)
    return found


def _rank(outcome: Outcome) -> int:
    return ("planner", *RIVALS).index(outcome.name.split()[0])


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per plan."""
    shown = Table(title="predicted step of hand-written plans and ablations against the planner's")
    for column in ("model", "GPUs", "plan", "ms", "ratio", "stages, microbatches, schedule", "CPU s"):
        shown.add_column(column, justify="left" if column in ("model", "plan") else "right")
    planner = {(o.family, o.size, o.gpus): o.seconds for o in outcomes if o.name == "planner"}
    for o in outcomes:
        ours = planner.get((o.family, o.size, o.gpus))
        ratio = f"{o.seconds / ours:.3f}" if o.seconds and ours else "does not fit" if o.error else ""
        milliseconds = f"{'about ' * o.foreseen}{1e3 * o.seconds:.5g}" if o.seconds else ""
        words = o.looks or o.error[:70]
        shown.add_row(f"{o.family} {o.size}", str(o.gpus), o.name, milliseconds, ratio, words, f"{o.cpu_seconds:.0f}")
    return shown


def losses(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Rivals that beat the planner."""
    planner = {(o.family, o.size, o.gpus): o.seconds for o in outcomes if o.name == "planner"}
    beaten = []
    for o in outcomes:
        if (o.family, o.size, o.gpus) not in planner:
            continue
        ours = planner[o.family, o.size, o.gpus]
        if o.seconds is not None and (ours is None or o.seconds < (1 - TIE) * ours):
            beaten.append(o)
    return beaten


def main() -> int:
    """Print the table; exit 1 where a rival wins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--layers", type=int, default=0, help="layers to cut stages from (default: the planner's)")
    parser.add_argument("--batch", type=int, default=0, help="global batch (default: the paper's)")
    parser.add_argument("--size", help="a preset of the model instead of the paper's for the number of GPUs")
    parser.add_argument(
        "--near",
        type=float,
        default=NEAR,
        help="rivals foreseen to take so many times the planner's step stay as they are",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that plan at the same time")
    parser.add_argument("--seconds", type=float, default=inf, help="end by then with what is planned (default: all)")
    parser.add_argument(
        "--json", metavar="FILE", help="keep all outcomes here; those that FILE has are not planned again"
    )
    options = parser.parse_args()
    pairs = [
        Pair(family, options.size or size, gpus, options.batch or BATCH[family])
        for family in options.family
        for size, gpus in PAIRS[family]
        if gpus in options.gpus
    ]
    outcomes = _read(options.json)
    known = {(o.family, o.size, o.gpus, o.name): o.seconds for o in outcomes}
    planners = {pair: known.get((*pair[:3], "planner")) or inf for pair in pairs}
    todo = [t for t in tasks(pairs, options.rivals, options.layers) if (*t.pair[:3], t.rival.name) not in known]
    for outcome in outcomes_of(todo, planners, options.near, options.jobs, time.monotonic() + options.seconds):
        _tell(outcome)
        outcomes.append(outcome)
        if options.json:
            write(Path(options.json), json.dumps([asdict(o) for o in outcomes], indent=2) + "\n")
    shown = best_points(outcomes)
    Console(width=150).print(table(shown))
    beaten = losses(shown)
    for o in beaten:
        print(f"{o.name} beats the planner on {o.family} {o.size}, {o.gpus} GPUs: a planner bug")
    return 1 if beaten else 0


def _read(file: str | None) -> list[Outcome]:
    if file is None or not Path(file).exists():
        return []
    return [Outcome(**o) for o in json.loads(Path(file).read_text())]


if __name__ == "__main__":
    sys.exit(main())
