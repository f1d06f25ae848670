"""A GPU against the planner's figures: what the card reaches, and how plans of one device do on it.

    python -m benchmarks.gpu ceilings
    python -m benchmarks.gpu steps [CASE …] [--cluster dgx-h100] [--prepare] [--profile] [--folder DIR]
    python -m benchmarks.gpu messages

*ceilings*: operations/s of large products in each type, as XLA runs them by default; bytes/s of a long read and write;
microseconds of a kernel in a chain of small ones.

*steps*: training steps, all but the first case large enough to fill the card (`CASES`), planned for one device of the
cluster and run here: predicted and measured milliseconds of a step (median of the quicker half), and gigabytes at the
peak.  Each case runs in a process of its own.  `--prepare` plans and compiles only, all cases at once, and keeps both
in the folder and in the cache of programs.  `--profile` adds where the time went: kernels that multiply, other
kernels, none.

*messages*: boxes moved within the GPU's memory by this runtime, and by NCCL from the GPU to itself, beside bare CuPy's
copies and NCCL calls of the same bytes.
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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jaxlib.mlir import ir

LANGUAGE = {"hidden": 2048, "heads": 16, "sequence": 1024, "vocabulary": 51200}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "small-gpt": ("gpt", {}, {}),
    "gpt-bf16": ("gpt", {**LANGUAGE, "layers": 6, "batch": 16, "dtype": "bfloat16"}, {}),
    "gpt-bf16-remat": (
        "gpt",
        {**LANGUAGE, "layers": 6, "batch": 32, "dtype": "bfloat16"},
        {"microbatches": 4, "remat": "full"},
    ),
    "gpt-f32": ("gpt", {**LANGUAGE, "layers": 4, "batch": 8}, {}),
    "llama-bf16": (
        "llama",
        {"hidden": 2048, "heads": 16, "kv_heads": 4, "inner": 5632, "layers": 6, "sequence": 1024, "batch": 16,
         "vocabulary": 32000, "dtype": "bfloat16"},
        {},
    ),
    "moe-bf16": (
        "moe",
        {"hidden": 1024, "heads": 16, "layers": 8, "sequence": 1024, "batch": 16, "vocabulary": 32000, "experts": 8,
         "group": 1024, "mlp_factor": 8, "dtype": "bfloat16"},
        {},
    ),
    "wide-resnet-f32": (
        "wide_resnet",
        {"depth": 50, "channels": 160, "width": 2, "image": 224, "classes": 1024, "batch": 32},
        {"allow_per_microbatch_statistics": True},
    ),
}  # fmt: skip
"""Model, its size, options of the plan."""
MULTIPLIES = ("gemm", "cutlass", "cublas", "nvjet", "xmma", "conv", "wgmma", "dot", "splitk", "sm90", "sm80", "cudnn")
"""In names of kernels that multiply."""


@dataclass(frozen=True)
class Step:
    """A case: seconds predicted and measured, bytes predicted and measured; seconds by kind, predicted and profiled;
    bytes that functions work in beside their arguments, predicted and XLA's."""

    case: str
    card: str
    predicted: float
    measured: float
    predicted_bytes: int
    measured_bytes: int
    predicted_parts: dict[str, float]
    profiled_parts: dict[str, float]
    working: dict[str, tuple[int, int]]


def quickest(run: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the quickest of a few calls, each until its results are computed."""
    import jax

    jax.block_until_ready(run())
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - begin)
    return min(found)


def ceilings() -> None:
    """The table of *ceilings*."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}")
    n = 8192
    for dtype in ("float8_e4m3fn", "float16", "bfloat16", "float32", "float64"):
        size = n // 4 if dtype == "float64" else n
        result = jnp.bfloat16 if dtype.startswith("float8") else dtype
        with jax.enable_x64(dtype == "float64"):
            a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.float32).astype(dtype) for i in (0, 1))
            product = jax.jit(lambda a, b, to=result: jnp.dot(a, b, preferred_element_type=to))
            rate = 2 * size**3 / quickest(partial(product, a, b), 10)
        print(f"product {size}³ {dtype:14} {rate / 1e12:8.1f} TFLOP/s", flush=True)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.float32)
    exact = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
    print(f"product {n}³ float32, highest {2 * n**3 / quickest(lambda: exact(a)) / 1e12:5.1f} TFLOP/s", flush=True)
    for dtype in ("bfloat16", "float32"):
        big = jnp.ones(1 << 30, dtype)
        add = jax.jit(lambda x: x + 1)
        print(f"read and write {dtype:12} {2 * big.nbytes / quickest(partial(add, big), 10) / 1e12:8.2f} TB/s")
    del big
    small, count = jnp.ones((128, 128), jnp.bfloat16) / 128, 256

    def chain(x: Any, links: int) -> Any:
        for _ in range(links):
            x = x @ small
        return x

    long, short = (jax.jit(lambda x, k=k: chain(x, k)) for k in (count, count // 2))
    each = (quickest(lambda: long(small), 20) - quickest(lambda: short(small), 20)) / (count - count // 2)
    print(f"kernel in a chain       {1e6 * each:8.2f} µs")
    nothing = jax.jit(lambda x: x + 1)
    print(f"program of one kernel   {1e6 * quickest(lambda: nothing(small), 50):8.2f} µs", flush=True)


def planned(case: str, cluster: str, folder: Path) -> ir.Module:
    """The plan of a case, kept in the folder."""
    from alpa_mlir.dialect.context import make_context, parse_module, print_module
    from alpa_mlir.lowering import lower
    from alpa_mlir.models import MODELS
    from alpa_mlir.passes.costs.cluster import load_cluster
    from alpa_mlir.planner import PlanOptions, plan

    path = folder / f"{case}-{cluster}.mlir"
    if path.exists():
        return parse_module(path.read_text(), make_context(), str(path))
    model, size, options = CASES[case]
    built = MODELS[model].build(MODELS[model].config(**size))
    module = parse_module(print_module(lower(built)), make_context(), model)
    base = PlanOptions(load_cluster(cluster).with_sizes(1, 1), mesh="1", microbatches=1, remat="none", schedule="1f1b")
    made = plan(module, replace(base, **options))
    path.write_text(print_module(made))
    return made


def predicted(case: str, cluster: str, folder: Path) -> Step:
    """What the plan says of a case."""
    from alpa_mlir.tools.plan_summary import summarize

    found = summarize(planned(case, cluster, folder))
    peak = max(s.peak_bytes or s.memory_bytes or 0 for s in found.stages)
    parts: dict[str, float] = {}
    for stage in found.stages:
        for kind, seconds in stage.costs.items():
            parts[kind] = parts.get(kind, 0.0) + seconds
    return Step(case, "", found.step_seconds or 0.0, 0.0, peak, 0, parts, {}, {})


def measured(case: str, cluster: str, folder: Path, platform: str, prepare: bool, profile: bool) -> Step:
    """One case in this process."""
    from alpa_mlir.cache import Store, cache_directory
    from alpa_mlir.runtime import layout

    layout.prepare_environment(1, (0,) if platform == "cuda" else None)
    told = predicted(case, cluster, folder)
    import jax

    from alpa_mlir.dialect.staged_main import read_main
    from alpa_mlir.runtime.executable import dtype_of
    from alpa_mlir.runtime.execute import InProcess

    begin, module = time.perf_counter(), planned(case, cluster, folder)
    running = InProcess(module, platform, Store(cache_directory() / "programs"))
    print(f"{case}: compiled or loaded in {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    device = jax.devices()[0]
    if prepare:
        return told
    types = [argument.type for argument in read_main(module).arguments]
    running.place(list(values([(t.shape, dtype_of(t.element)) for t in types])))
    seconds = []
    for _ in range(12):
        begin = time.perf_counter()
        jax.block_until_ready(running.step())
        seconds.append(time.perf_counter() - begin)
    known = device.memory_stats() or {}
    parts = profiled(running) if profile else {}
    quick = median(sorted(seconds[2:])[:5])
    peak = int(known.get("peak_bytes_in_use", 0))
    known = {"card": device.device_kind, "measured": quick, "measured_bytes": peak, "profiled_parts": parts}
    return replace(told, **known, working=working(module, running))


def working(module: ir.Module, running: Any) -> dict[str, tuple[int, int]]:
    """By function what the plan and what XLA say that it holds beside its arguments."""
    from alpa_mlir.dialect.staged_main import read_main
    from alpa_mlir.passes.schedule_timeline import read_costs

    costs, found = read_costs(module, read_main(module)), {}
    for name, (_, compiled) in running._worker._programs.items():
        sizes = compiled.memory_analysis()
        told = int(costs.working[name]) if costs is not None else 0
        found[name] = (told, sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
    return found


def values(arguments: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> Iterator[np.ndarray]:
    """Plausible arguments: small normal floats, small integers."""
    rng = np.random.default_rng(0)
    normal = 0.02 * rng.standard_normal(1 << 20).astype(np.float32)
    for shape, dtype in arguments:
        if np.issubdtype(dtype, np.integer):
            yield rng.integers(0, 8, shape).astype(dtype)
        else:
            yield np.resize(np.abs(normal).astype(dtype), shape)


def profiled(running: Any) -> dict[str, float]:
    """Seconds of one step in kernels that multiply, in others, and in none; and how many kernels."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(running.step())
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        events = [
            (e.start_ns, e.duration_ns, e.name)
            for plane in data.planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for e in line.events
        ]
    if os.environ.get("ALPA_MLIR_KERNELS"):
        _write_kernels(Path(os.environ["ALPA_MLIR_KERNELS"]), events)
    multiply = sum(d for _, d, name in events if any(m in name.lower() for m in MULTIPLIES))
    busy = sum(d for _, d, _ in events)
    span = max((s + d for s, d, _ in events), default=0) - min((s for s, _, _ in events), default=0)
    named = {"product": multiply, "other": busy - multiply, "none": max(0, span - busy)}
    return {**{k: 1e-9 * v for k, v in named.items()}, "kernels": len(events)}


def _write_kernels(path: Path, events: Sequence[tuple[float, float, str]]) -> None:
    """A table of kernels by name: calls, milliseconds."""
    total: dict[str, list[float]] = {}
    for _, duration, name in events:
        entry = total.setdefault(name, [0, 0.0])
        entry[0] += 1
        entry[1] += 1e-6 * duration
    rows = sorted(total.items(), key=lambda item: -item[1][1])
    with path.open("a") as file:
        file.writelines(f"{calls:6.0f} {ms:10.4f} ms  {name}\n" for name, (calls, ms) in rows)
        file.write("\n")


def steps(cases: Sequence[str], options: argparse.Namespace) -> list[Step]:
    """The table of *steps*: each case in a process of its own, all at once to prepare."""
    options.folder.mkdir(parents=True, exist_ok=True)
    found: list[Step] = []
    jobs = []
    for case in cases:
        command = [sys.executable, "-m", "benchmarks.gpu", "steps", case, "--alone", "--cluster", options.cluster]
        command += ["--folder", str(options.folder), "--platform", options.platform]
        command += ["--prepare"] * options.prepare + ["--profile"] * options.profile
        # Side by side they must not each take the whole memory.
        apart = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if options.prepare else {}
        job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **apart})
        jobs.append((case, job))
        if not options.prepare:
            found += _result(case, job)
    if options.prepare:
        for case, job in jobs:
            _result(case, job)
        return found
    print(f"{'':24}{'step ms':>20}{'':8}{'peak GB':>20}")
    print(f"{'':24}{'predicted':>10}{'measured':>10}{'ratio':>8}{'predicted':>10}{'measured':>10}{'ratio':>8}")
    for s in found:
        time_ratio, memory_ratio = s.predicted / s.measured, s.predicted_bytes / max(1, s.measured_bytes)
        print(
            f"{s.case:24}{1e3 * s.predicted:10.2f}{1e3 * s.measured:10.2f}{time_ratio:8.2f}"
            f"{s.predicted_bytes / 1e9:10.2f}{s.measured_bytes / 1e9:10.2f}{memory_ratio:8.2f}"
        )
        for name, parts in (("predicted", s.predicted_parts), ("profiled", s.profiled_parts)):
            told = ", ".join(f"{k} {1e3 * v:.2f}" if k != "kernels" else f"{v:.0f} kernels" for k, v in parts.items())
            print(f"    {name} ms: {told}" if parts else "", end="\n" if parts else "")
        for name, (told_bytes, xla) in s.working.items():
            print(f"    @{name} works in GB: predicted {told_bytes / 1e9:.2f}, XLA {xla / 1e9:.2f}")
    return found


def _result(case: str, job: subprocess.Popen[str]) -> list[Step]:
    out, _ = job.communicate()
    if job.returncode:
        print(f"{case}: failed with status {job.returncode}", file=sys.stderr, flush=True)
        return []
    return [Step(**json.loads(out.splitlines()[-1]))]


def messages() -> None:
    """The table of *messages*."""
    from alpa_mlir.runtime import layout
    from alpa_mlir.runtime.platform import nccl_modules

    layout.prepare_environment(1, (0,))
    import jax
    import jax.numpy as jnp

    from alpa_mlir.runtime.transport.base import Message
    from alpa_mlir.runtime.transport.gpu import DeviceMemory, Gpu
    from alpa_mlir.runtime.transport.nccl import Line, NcclTransport

    cupy, nccl = nccl_modules()
    gpu = Gpu(cupy, nccl, {0: jax.devices()[0]})
    edge = ("a", "b")
    memory, peers = DeviceMemory(gpu), NcclTransport(gpu, [Line(edge, (0,), ((0, 0),))], [0], lambda mine: mine)
    end, shape = peers._ends[edge, 0], (256, 256, 256)
    source, bare = jnp.ones(shape, jnp.float32), cupy.ones(shape, np.uint32)
    kept = [cupy.empty(shape, np.uint32) for _ in range(2)]
    print(f"{'':34}{'GB/s':>8}{'bare':>8}{'ratio':>7}{'host µs':>9}{'bare':>8}")
    for name, window in (("all", ()), ("rows", (slice(0, 128),)), ("columns", (slice(None), slice(64, 192)))):

        def copy(window: Any = window) -> Any:
            target = memory.take(shape, np.dtype(np.float32), 0)
            test = memory.copy(target[window], source, window, ())
            assert test is not None
            return memory.shards([target], [[test]], False)

        def copy_bare(window: Any = window) -> None:
            with end.stream:
                kept[0].fill(0)
                cupy.copyto(kept[0][window], bare[window])

        def send(window: Any = window) -> Any:
            target = memory.take(shape, np.dtype(np.float32), 0)
            with peers.together(edge, hold=True):
                peers.post_send(source, window, Message(0, 0, 0))
            with peers.together(edge):
                test = peers.post_receive(target[window], Message(0, 0, 0))
            peers.progress()
            return memory.shards([target], [[test]], False)

        def send_bare(window: Any = window) -> None:
            box = bare[window]
            count = box.nbytes
            with end.stream:
                kept[0].fill(0)
                packed = box if box.flags.c_contiguous else cupy.ascontiguousarray(box)
                with gpu.group():
                    gpu.send(end, packed.data.ptr, count, 0)
                    gpu.receive(end, kept[1].data.ptr, count, 0)
                if packed is not box:
                    cupy.copyto(kept[0][window], kept[1].ravel()[: box.size].reshape(box.shape))

        size = bare[window].nbytes
        for what, ours, theirs in (("copy", copy, copy_bare), ("NCCL to itself", send, send_bare)):
            mine = _loop(ours, jax.block_until_ready)
            other = _loop(theirs, lambda _: end.stream.synchronize())
            rates, hosts = [size / whole / 1e9 for whole, _ in (mine, other)], [1e6 * host for _, host in (mine, other)]
            print(
                f"{what + ', ' + name:34}{rates[0]:8.0f}{rates[1]:8.0f}{rates[0] / rates[1]:7.2f}"
                f"{hosts[0]:9.1f}{hosts[1]:8.1f}",
                flush=True,
            )


def _loop(work: Callable[[], Any], wait: Callable[[Any], Any], times: int = 40) -> tuple[float, float]:
    """Seconds of a call until all is done, and on the host alone: the least of five rounds."""
    wait(work())
    rounds = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(times):
            last = work()
        host = time.perf_counter() - begin
        wait(last)
        rounds.append(((time.perf_counter() - begin) / times, host / times))
    return min(whole for whole, _ in rounds), min(host for _, host in rounds)


def main() -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ceilings", "steps", "messages"))
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"steps: of {', '.join(CASES)}")
    parser.add_argument("--cluster", default="dgx-h100", help="steps: the cluster planned for")
    parser.add_argument("--prepare", action="store_true", help="steps: plan and compile only")
    parser.add_argument("--profile", action="store_true", help="steps: where the time went")
    parser.add_argument("--predict", action="store_true", help="steps: print what is predicted, run nothing")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"), help="steps: where plans are kept")
    parser.add_argument("--platform", choices=("cuda", "cpu"), default="cuda", help="steps: where to run")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    if unknown := [c for c in options.cases if c not in CASES]:
        parser.error(f"there is no case {unknown[0]}")
    cases = options.cases or list(CASES)
    if options.what == "ceilings":
        ceilings()
    elif options.what == "messages":
        messages()
    elif options.predict:
        options.folder.mkdir(parents=True, exist_ok=True)
        for case in cases:
            print(json.dumps(asdict(predicted(case, options.cluster, options.folder))), flush=True)
    elif options.alone:
        o = options
        print(json.dumps(asdict(measured(cases[0], o.cluster, o.folder, o.platform, o.prepare, o.profile))))
    else:
        found = steps(cases, options)
        if options.json:
            options.json.write_text(json.dumps([asdict(f) for f in found], indent=2) + "\n")
        return 0 if options.prepare or len(found) == len(cases) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
