"""How much of a pipeline's ideal speed is reached: two ranks of one core each, eight microbatches, two like stages.

    python -m benchmarks.pipeline [--schedule eager-1f1b] [--steps 20] [--hidden 768] [--layers 16] [--microbatches 8]
                                  [--json FILE]

A perceptron trains in two stages.  The ideal step is played from the seconds that the same programs take on the same
ranks at the same time when nothing is sent or waited for: what m/(m + p - 1) says of equal stages, exact for unequal
ones.  Efficiency is ideal over measured; what is missing is instructions, messages and waiting.  Steps with messages
and steps without alternate; medians, and the quickest quarter of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from alpa_mlir.runtime import launch

RANKS = 2
Moment = tuple[str, float, int]
"""What a rank does, in order: ("run", seconds, -), ("give", -, transfer), ("take", -, transfer)."""


@dataclass(frozen=True)
class Result:
    """Milliseconds of a step, the ideal, their ratio, that of the quickest quarter, and m/(m + p - 1)."""

    step: float
    ideal: float
    efficiency: float
    quiet: float
    bubble: float


def ideal(ranks: Sequence[Sequence[Moment]]) -> float:
    """Seconds until all ranks are through, when messages and instructions take no time."""
    clocks, at, given = [0.0] * len(ranks), [0] * len(ranks), dict[int, float]()
    while any(at[r] < len(ranks[r]) for r in range(len(ranks))):
        before = list(at)
        for r, moments in enumerate(ranks):
            while at[r] < len(moments):
                kind, seconds, transfer = moments[at[r]]
                if kind == "take" and transfer not in given:
                    break
                if kind == "run":
                    clocks[r] += seconds
                elif kind == "give":
                    given[transfer] = clocks[r]
                else:
                    clocks[r] = max(clocks[r], given[transfer])
                at[r] += 1
        if at == before:
            raise ValueError("the ranks wait for one another")
    return max(clocks)


class Bench:
    """One rank of the pipeline."""

    def __init__(self, path: Path, world: Any) -> None:
        from alpa_mlir.dialect.context import make_context, parse_module
        from alpa_mlir.runtime import layout, program

        module = parse_module(path.read_text(), make_context(), str(path))
        plan = program.read(module)
        arranged = layout.arrange(plan, world.size, str(path))
        devices = layout.connect(arranged, world)
        from alpa_mlir.runtime.devices import Submeshes
        from alpa_mlir.runtime.guard import Watchdog
        from alpa_mlir.runtime.inputs import Drawn
        from alpa_mlir.runtime.transfers import Transfers
        from alpa_mlir.runtime.transport.mpi import MpiTransport
        from alpa_mlir.runtime.worker import Worker

        self.world, watchdog = world, Watchdog(0, 0)
        self.part = program.decode(module, plan, world.rank, arranged.rank_of)
        submeshes = Submeshes(plan, world.rank, arranged.rank_of, devices)
        peers = MpiTransport(world, threaded=False)
        transfers = Transfers.on_host(submeshes, arranged.rank_of, peers, self.part.routes, watchdog)
        self.worker = Worker(self.part, submeshes, transfers, watchdog)
        drawn = Drawn(plan.main.arguments, 0)
        for number in sorted(self.worker.wanted):
            value = drawn.value(number, 0)
            assert value is not None
            self.worker.place(number, value)
        self.calls = list(self.worker._calls)
        self.seconds: dict[int, float] = {}
        self.taken: dict[int, Any] = {}
        self.alone = [self._alone(i) for i in range(len(self.calls))]

    def _alone(self, number: int) -> Any:
        """The action without its messages; a program is waited for, and timed."""
        import jax
        import jax.numpy as jnp

        from alpa_mlir.runtime.actions import Add, Call, Expect, Give, Take

        action, call, slots = self.part.actions[number], self.calls[number], self.worker._slots

        def take(result: int) -> None:
            slots[result] = jax.block_until_ready(jnp.copy(self.taken[result]))

        def timed(results: Sequence[int]) -> None:
            start = time.perf_counter()
            call()
            jax.block_until_ready([slots[i] for i in results])
            self.seconds[number] = time.perf_counter() - start

        if isinstance(action, (Give, Expect)):
            return lambda: None
        if isinstance(action, Take):
            return partial(take, action.result)
        if isinstance(action, (Call, Add)):
            return partial(timed, action.results if isinstance(action, Call) else action.totals)
        return call

    def remember(self) -> None:
        """A step that keeps what it receives, for those without messages."""
        import jax.numpy as jnp

        from alpa_mlir.runtime.actions import Take

        def keeping(number: int) -> Any:
            action, call = self.part.actions[number], self.calls[number]

            def run(result: int) -> None:
                call()
                self.taken[result] = jnp.copy(self.worker._slots[result])

            return partial(run, action.result) if isinstance(action, Take) else call

        self.play([keeping(i) for i in range(len(self.calls))])

    def play(self, calls: list[Any]) -> float:
        """Seconds of a step, from the last rank's start to the last rank's end."""
        self.worker._calls[:] = calls
        self.world.Barrier()
        start = time.monotonic()
        self.worker.step()
        self.worker.wait()
        stamps = self.world.allgather((start, time.monotonic()))
        return float(max(b for _, b in stamps) - max(a for a, _ in stamps))

    def foretold(self) -> float:
        """The ideal step, by what the last step without messages took."""
        from alpa_mlir.runtime.actions import Give, Take

        moments: list[Moment] = []
        for number, action in enumerate(self.part.actions):
            if number in self.seconds:
                moments.append(("run", self.seconds[number], -1))
            elif isinstance(action, (Give, Take)):
                moments.append(("give" if isinstance(action, Give) else "take", 0.0, action.transfer))
        return ideal(self.world.allgather(moments))


def run_rank(path: Path, steps: int, microbatches: int) -> None:
    """One rank's part; rank 0 prints the result as JSON."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[world.rank % len(cores)]})
    bench = Bench(path, world)
    bench.play(bench.calls)
    bench.remember()
    pairs = []
    for _ in range(steps + 2):
        measured = bench.play(bench.calls)
        bench.play(bench.alone)
        pairs.append((measured, bench.foretold()))
    pairs = pairs[2:]
    step, best = median(a for a, _ in pairs), median(b for _, b in pairs)
    quick = max(1, steps // 4)
    quiet = median(sorted(b for _, b in pairs)[:quick]) / median(sorted(a for a, _ in pairs)[:quick])
    if world.rank == 0:
        bubble = microbatches / (microbatches + RANKS - 1)
        print(json.dumps(asdict(Result(step * 1e3, best * 1e3, best / step, quiet, bubble))), flush=True)
    world.Barrier()


def measure(schedule: str, steps: int, hidden: int, layers: int, microbatches: int) -> Result:
    """Make the plan, start the ranks, and return what rank 0 says."""
    with tempfile.TemporaryDirectory() as folder:
        model, plan, hand = (Path(folder) / name for name in ("model.mlir", "plan.mlir", "hand.toml"))
        hand.write_text(
            f'microbatches = {microbatches}\nschedule = "{schedule}"\nremat = "none"\nstages = 2\nmesh = "1"\n'
        )
        sizes = ["--layers", layers, "--hidden", hidden, "--batch", 64 * microbatches, "--optimizer", "sgd"]
        python = [sys.executable, "-m"]
        _run([*python, "alpa_mlir.tools.export", "mlp", *sizes, "-o", model])
        cluster = ["--cluster", "cpu", "--devices-per-node", RANKS]
        _run([*python, "alpa_mlir.tools.plan", model, *cluster, "--plan", hand, "-o", plan])
        mpirun = [launch.find_mpirun() or "mpirun", "-n", RANKS]
        rank = [*python, "benchmarks.pipeline", "--plan", plan, "--steps", steps, "--microbatches", microbatches]
        said = _run([*mpirun, *rank])
    return Result(**json.loads([line for line in said.splitlines() if line.startswith("{")][-1]))


def _run(command: Sequence[object]) -> str:
    # One thread computes: on its one core, more would only take turns.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    environment = {**launch.ENVIRONMENT, **os.environ, "XLA_FLAGS": flags}
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description="Measure the efficiency of a pipeline of two ranks.")
    parser.add_argument("--schedule", default="eager-1f1b", help="that of the plan")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan is not None:
        run_rank(options.plan, options.steps, options.microbatches)
        return
    found = measure(options.schedule, options.steps, options.hidden, options.layers, options.microbatches)
    print(f"step {found.step:.1f} ms, ideal {found.ideal:.1f} ms: efficiency {found.efficiency:.3f}", end="")
    print(f", in the quiet quarter {found.quiet:.3f}; m/(m+p-1) = {found.bubble:.3f}")
    if options.json:
        options.json.write_text(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
