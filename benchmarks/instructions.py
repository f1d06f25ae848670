"""What an instruction costs on the host: a plan in one process, every action of its steps timed by kind.

    alpa-mlir-export mlp -o mlp.mlir
    alpa-mlir-plan mlp.mlir --cluster cpu --devices-per-node 4 --stages 2 --microbatches 4 -o plan.mlir
    python -m benchmarks.instructions plan.mlir [--steps 50] [--platform cuda]

Columns: how often an action comes in a step; microseconds each (median over all); microseconds of that inside XLA: its
programs with jax's call path (for several CPU devices 0.1 to 0.3 ms), copies to devices and of boxes, joining arrays of
their parts and parting them (0.03 to 0.05 ms); what is left, waiting for values apart, is ours.  Medians over steps.
The last line is the whole step until its results are computed.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.runtime import layout, program


@dataclass(frozen=True)
class Row:
    """One kind of action: how many a step has, microseconds each, of which inside XLA, waiting, and ours."""

    kind: str
    count: int
    each: float
    inside: float
    waiting: float
    ours: float


class Clock:
    """Seconds spent inside something else, of which calls may be watched."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time added up."""

        now = time.perf_counter

        def run(*arguments: Any) -> Any:
            start = now()
            result = call(*arguments)
            self.seconds += now() - start
            return result

        return run


class Timed:
    """An action's calls: whole, inside XLA, and waiting."""

    def __init__(self, call: Callable[[], None], inside: Clock, waiting: Clock) -> None:
        self._call, self._clocks = call, (inside, waiting)
        self.samples: list[tuple[float, float, float]] = []

    def __call__(self) -> None:
        before = [c.seconds for c in self._clocks]
        start = time.perf_counter()
        self._call()
        whole = time.perf_counter() - start
        inside, waiting = (c.seconds - b for c, b in zip(self._clocks, before, strict=True))
        self.samples.append((whole, inside, waiting))


def open_worker(path: Path, store: Any = None, platform: str = "cpu") -> tuple[Any, program.Program]:
    """A plan at work in this process, its arguments drawn, and what it does."""
    from alpa_mlir.runtime.platform import choose

    module = parse_module(path.read_text(), make_context(), str(path))
    plan = program.read(module)
    arranged = layout.arrange(plan, 1, f"{path}:1:1")
    choice = choose(platform, "auto", 1)
    devices = layout.connect(arranged, None, choice)
    from alpa_mlir.runtime.carriers import transfers_for
    from alpa_mlir.runtime.devices import Submeshes
    from alpa_mlir.runtime.guard import Watchdog
    from alpa_mlir.runtime.inputs import Drawn
    from alpa_mlir.runtime.transfer_order import in_order
    from alpa_mlir.runtime.worker import Worker

    watchdog = Watchdog(0, 0)
    part = program.decode(module, plan, 0, arranged.rank_of)
    if choice.platform == "cuda":
        part = replace(part, actions=in_order(part.actions))
    submeshes = Submeshes(plan, 0, arranged.rank_of, devices)
    transfers = transfers_for(choice, part, submeshes, arranged.rank_of, watchdog)
    worker = Worker(part, submeshes, transfers, watchdog, None, store)
    drawn = Drawn(plan.main.arguments, 0)
    for number in sorted(worker.wanted):
        value = drawn.value(number, 0)
        assert value is not None
        worker.place(number, value)
    return worker, part


def measure(path: Path, steps: int, platform: str = "cpu") -> tuple[list[Row], int, float]:
    """The rows, how many actions a step has, and its microseconds."""
    from alpa_mlir.runtime import devices, executable, transfers
    from alpa_mlir.runtime.transport import memory

    inside, waiting = Clock(), Clock()
    transfers.wait_until = waiting.watched(transfers.wait_until)  # type: ignore[attr-defined]
    transfers.Transfers.until_computed = waiting.watched(transfers.Transfers.until_computed)  # type: ignore
    make = transfers.assembler  # type: ignore[attr-defined]
    transfers.assembler = devices.assembler = lambda *kind: inside.watched(make(*kind))  # type: ignore[attr-defined]
    transfers.parted, transfers.copied = inside.watched(transfers.parted), inside.watched(transfers.copied)  # type: ignore[attr-defined]
    copy = inside.watched(memory.HostMemory.copy)
    memory.HostMemory.copy = lambda self, *rest: copy(self, *rest)  # type: ignore
    obtain = executable.Compiler.obtain
    executable.Compiler.obtain = lambda self, *rest: inside.watched(obtain(self, *rest))  # type: ignore
    worker, part = open_worker(path, platform=platform)
    for _ in range(3):
        worker.step()
        worker.wait()
    timed = [Timed(call, inside, waiting) for call in worker._calls]
    worker._calls[:] = timed
    whole: list[float] = []
    for _ in range(steps):
        start = time.perf_counter()
        worker.step()
        worker.wait()
        whole.append(time.perf_counter() - start)
    by_kind: dict[str, list[Timed]] = defaultdict(list)
    for action, one in zip(part.actions, timed, strict=True):
        by_kind[type(action).__name__].append(one)
    rows = []
    for kind, ones in sorted(by_kind.items()):
        samples = [sample for one in ones for sample in one.samples]
        each, within, waited = (median(s[k] for s in samples) * 1e6 for k in range(3))
        rows.append(Row(kind, len(ones), each, within, waited, median(a - b - c for a, b, c in samples) * 1e6))
    return rows, len(part.actions), median(whole) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the instructions of a plan in one process.")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    rows, count, whole = measure(options.plan, options.steps, options.platform)
    print(f"{'action':10}{'per step':>10}{'µs each':>10}{'in XLA':>10}{'waiting':>10}{'ours':>10}")
    for row in rows:
        print(f"{row.kind:10}{row.count:10}{row.each:10.1f}{row.inside:10.1f}{row.waiting:10.1f}{row.ours:10.1f}")
    print(f"{'step':10}{count:10}{whole:10.0f}")


if __name__ == "__main__":
    main()
