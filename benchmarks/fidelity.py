"""Fidelity: what plans predict against what is, on the CPU devices of this machine.

    python -m benchmarks.fidelity memory [MODEL …] [--plans data zero3 …] [--functions]
    python -m benchmarks.fidelity steps [MODEL …] [--devices 2] [--most 20] [--rounds 5]
    python -m benchmarks.fidelity paper [MODEL …] [--gpus 1 4]

*memory*: each model is planned in several ways; of each submesh the peak that the plan predicts stands beside the peak
with XLA's own figures: the same lists of instructions, but with what XLA's memory analysis says that each function
needs beside its arguments (temporaries, and results that take over no argument's buffer).  `--functions` shows them one
by one.  The aim is a prediction of 1.00 to 1.03 of XLA's: never under.

*steps*: about so many different plans of one model are predicted with a cluster calibrated here and run in this
process; the table has predicted and measured milliseconds of a step, and Spearman's rank correlation of the two.

*paper*: the plans that the Alpa paper measured on V100s, predicted against measured (`benchmarks/paper.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

DEVICES = 4
os.environ.setdefault("PJRT_NPROC", str(8 * DEVICES))
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES}")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jaxlib.mlir import ir  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from alpa_mlir.dialect.context import make_context, parse_module, print_module  # noqa: E402
from alpa_mlir.dialect.diagnostics import CompileError  # noqa: E402
from alpa_mlir.dialect.plan import read_plan  # noqa: E402
from alpa_mlir.dialect.staged import Fragment  # noqa: E402
from alpa_mlir.lowering import lower  # noqa: E402
from alpa_mlir.models import MODELS  # noqa: E402
from alpa_mlir.passes.costs.cluster import Cluster, Link, load_cluster  # noqa: E402
from alpa_mlir.passes.schedule_timeline import play_plan, read_costs  # noqa: E402
from alpa_mlir.planner import PlanOptions, plan  # noqa: E402
from alpa_mlir.runtime.executable import Compiler, jax_mesh  # noqa: E402
from alpa_mlir.runtime.execute import InProcess  # noqa: E402
from alpa_mlir.runtime.stage_function import extract  # noqa: E402
from alpa_mlir.tools.plan_summary import summarize  # noqa: E402
from benchmarks.paper import Speed, paper  # noqa: E402
from benchmarks.plan_quality import BATCH  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"layers": 6, "hidden": 256, "batch": 512},
    "gpt": {"layers": 2, "hidden": 128, "heads": 4, "sequence": 64, "batch": 16, "vocabulary": 512},
    "moe": {"layers": 2, "hidden": 64, "sequence": 64, "batch": 16, "group": 64},
    "bert": {"layers": 2, "hidden": 128, "sequence": 64, "batch": 16},
    "llama": {"layers": 2, "hidden": 128, "sequence": 64, "batch": 16},
    "wide_resnet": {"norm": "group", "batch": 16, "depth": 26},
}
SHAPES: dict[str, dict[str, object]] = {
    "1 device": {"mesh": "1", "microbatches": 1},
    "1 device, M 4": {"mesh": "1", "microbatches": 4},
    "2 stages": {"stages": 2, "microbatches": 4},
    "data": {"mesh": "4", "microbatches": 1, "constrain": "x=data"},
    "zero3": {"mesh": "4", "microbatches": 1, "constrain": "x=zero3"},
    "tensor": {"mesh": "4", "microbatches": 1, "constrain": "x=tensor"},
}


def planned(model: str, cluster: Cluster, most: int, **options: object) -> ir.Module:
    """A plan of a built-in model on the devices of its mesh, or on `most`."""
    built = MODELS[model].build(MODELS[model].config(**SIZES[model]))
    module = parse_module(print_module(lower(built)), make_context(), model)
    devices = int(np.prod([int(n) for n in str(options["mesh"]).split("x")])) if "mesh" in options else most
    base = PlanOptions(cluster.with_sizes(1, devices), remat="none", schedule="1f1b")
    return plan(module, replace(base, **options))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Held:
    """Bytes per device beside the arguments of a function, or at the peak of a submesh: predicted, and XLA's."""

    model: str
    shape: str
    what: str
    predicted: float
    xla: float

    @property
    def ratio(self) -> float:
        """Predicted over XLA's."""
        return self.predicted / self.xla if self.xla else 1.0


def held(model: str, shape: str) -> Iterator[Held]:
    """The submeshes of a plan, then its functions."""
    module = planned(model, load_cluster("cpu"), DEVICES, **SHAPES[shape])
    decoded = read_plan(module)
    costs = read_costs(module, decoded.main)
    assert costs is not None
    compiler, working = Compiler(), dict(costs.working)
    for call in (s for s in decoded.main.steps if isinstance(s, Fragment)):
        stage = decoded.stages[call.mesh]
        mesh = jax_mesh(stage.mesh, [jax.devices()[d] for d in stage.devices])
        found = compiler.compile(extract(module, call.function), mesh).memory_analysis()
        working[call.function] = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    mine, theirs = play_plan(decoded, costs), play_plan(decoded, replace(costs, working=working))
    for number, (predicted, xla) in enumerate(zip(mine.peak_bytes, theirs.peak_bytes, strict=True)):
        yield Held(model, shape, f"submesh {number}", predicted, xla)
    for name, predicted in costs.working.items():
        yield Held(model, shape, f"@{name}", predicted, working[name])


def memory(models: Sequence[str], shapes: Sequence[str], functions: bool) -> list[Held]:
    """The table of *memory*."""
    table = Table(title="bytes per device at the peak")
    for column in ("model", "plan", "", "predicted MB", "XLA MB", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "plan", "") else "right")
    found = []
    for model in models:
        for shape in shapes:
            try:
                rows = list(held(model, shape))
            except CompileError as e:
                print(f"{model}, {shape}: {e}", file=sys.stderr)
                continue
            for row in rows:
                if functions or not row.what.startswith("@"):
                    found.append(row)
                    megabytes = (f"{n / 1e6:.4g}" for n in (row.predicted, row.xla))
                    table.add_row(model, shape, row.what, *megabytes, f"{row.ratio:.3f}")
    Console(width=120).print(table)
    ratios = [row.ratio for row in found if not row.what.startswith("@")]
    if ratios:
        print(f"ratios from {min(ratios):.3f} to {max(ratios):.3f}, median {median(ratios):.3f}")
    return found


def quickest(run: object, times: int = 5) -> float:
    """Seconds of the quickest of a few runs of a jitted function."""
    jax.block_until_ready(run())  # type: ignore[operator]
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        jax.block_until_ready(run())  # type: ignore[operator]
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def calibrated(devices: int) -> Cluster:
    """The preset `cpu` with this machine's products, memory and all-reduces over its devices measured."""
    known = load_cluster("cpu").with_sizes(1, devices)
    n = 512
    a = jax.device_put(np.ones((n, n), np.float32), jax.devices()[0])
    product = jax.jit(lambda a: a @ a)
    flops = 2 * n**3 / quickest(lambda: product(a))
    big = jax.device_put(np.ones(1 << 20, np.float32), jax.devices()[0])
    add = jax.jit(lambda x: x + 1.0)
    bandwidth = 2 * big.nbytes / quickest(lambda: add(big))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("x",))
    spec = jax.sharding.PartitionSpec("x")
    reduce = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=spec, out_specs=spec))
    placed = jax.sharding.NamedSharding(mesh, spec)
    small, large = (jax.device_put(np.ones((devices, k), np.float32), placed) for k in (16, 1 << 20))
    start, whole = quickest(lambda: reduce(small)), quickest(lambda: reduce(large))
    rate = 2 * (devices - 1) / devices * large.nbytes / devices / max(whole - start, 1e-6)
    link = Link(rate, start / 2, start / 4 / (devices - 1))
    print(
        f"{devices} devices: {flops / 1e9:.3g} GFLOP/s, {bandwidth / 1e9:.3g} GB/s, all-reduce "
        f"{1e6 * start:.3g} us + {rate / 1e9:.3g} GB/s"
    )
    every = tuple((kind, flops) for kind, _ in known.flops)
    return replace(known, flops=every, efficiency=1.0, memory_bandwidth=bandwidth, device_link=link, node_link=link)


@dataclass(frozen=True)
class Timed:
    """A plan's predicted and measured seconds of a step."""

    plan: str
    predicted: float
    measured: float


def settings(devices: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Plans that differ in devices, microbatches, stages, schedule, rematerialisation and shardings."""
    for m in (1, 4, 16):
        for remat in ("none", "full"):
            yield f"1 device, M {m}, remat {remat}", {"mesh": "1", "microbatches": m, "remat": remat}
    for m in (1, 4):
        for use in ("data", "zero2", "zero3", "tensor"):
            options = {"mesh": str(devices), "microbatches": m, "constrain": f"x={use}"}
            yield f"{devices} devices, M {m}, {use}", options
    for m in (2, 4, 8):
        for schedule in ("1f1b", "gpipe"):
            yield f"{devices} stages, M {m}, {schedule}", {"stages": devices, "microbatches": m, "schedule": schedule}


def steps(model: str, devices: int, most: int, rounds: int) -> list[Timed]:
    """The table of *steps*: plans take turns, round by round; each counts with its quickest step."""
    cluster = calibrated(devices)
    values = [
        np.asarray(v) for v in jax.tree.leaves(MODELS[model].initial_values(MODELS[model].config(**SIZES[model]), 0))
    ]
    running: list[tuple[str, float, InProcess]] = []
    for name, options in list(settings(devices))[:most]:
        module = planned(model, cluster, devices, **options)
        step = InProcess(module)
        step.place(values)
        step.step()
        step.results()
        running.append((name, summarize(module).step_seconds or 0.0, step))
    best = dict.fromkeys((name for name, _, _ in running), float("inf"))
    for _ in range(rounds):
        for name, _, step in running:
            begin = time.perf_counter()
            jax.block_until_ready(step.step())
            best[name] = min(best[name], time.perf_counter() - begin)
    found = [Timed(name, predicted, best[name]) for name, predicted, _ in running]
    table = Table(title=f"seconds of a step, {model}")
    for column in ("plan", "predicted ms", "measured ms", "predicted / measured"):
        table.add_column(column, justify="left" if column == "plan" else "right")
    for t in sorted(found, key=lambda t: t.predicted):
        table.add_row(t.plan, f"{1e3 * t.predicted:.4g}", f"{1e3 * t.measured:.4g}", f"{t.predicted / t.measured:.2f}")
    Console(width=120).print(table)
    print(f"rank correlation over {len(found)} plans: {rank_correlation(found):.3f}")
    return found


def rank_correlation(found: Sequence[Timed]) -> float:
    """Spearman's."""
    return float(spearmanr([t.predicted for t in found], [t.measured for t in found]).statistic)


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "steps", "paper"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(SIZES)} (steps: gpt alone)")
    parser.add_argument("--plans", nargs="+", choices=tuple(SHAPES), default=list(SHAPES), help="memory: which plans")
    parser.add_argument("--functions", action="store_true", help="memory: functions one by one")
    parser.add_argument("--devices", type=int, default=2, help="steps: devices, as many as there are cores")
    parser.add_argument("--most", type=int, default=20, help="steps: how many plans")
    parser.add_argument("--rounds", type=int, default=5, help="steps: how often each plan runs")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 4], help="paper: plans on so many GPUs")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found: list[Held] | list[Timed] | list[Speed]
    if options.what == "memory":
        found = memory(options.models or list(SIZES), options.plans, options.functions)
    elif options.what == "paper":
        found = paper(options.models or list(BATCH), options.gpus)
    else:
        found = [t for m in options.models or ["gpt"] for t in steps(m, options.devices, options.most, options.rounds)]
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(f) for f in found], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
