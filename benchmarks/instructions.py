"""What an instruction costs on the host: a plan in one process, every action of its steps timed by kind.

    alpa-mlir-export mlp -o mlp.mlir
    alpa-mlir-plan mlp.mlir --cluster cpu --devices-per-node 4 --stages 2 --microbatches 4 -o plan.mlir
    python -m benchmarks.instructions plan.mlir [--steps 50]

Stage functions are dispatched without waiting, so `Call` is jax's call path; `Take` may wait for the value that it
moves.  The last line is the whole step until its results are computed.  Medians over steps, in microseconds.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.runtime import layout, program


def timed(call: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    """The same call, which also notes how long it took."""

    def run() -> None:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the instructions of a plan in one process.")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    module = parse_module(options.plan.read_text(), make_context(), str(options.plan))
    plan = program.read(module)
    arranged = layout.arrange(plan, 1, f"{options.plan}:1:1")
    devices = layout.connect(arranged, None)
    from alpa_mlir.runtime.devices import Submeshes
    from alpa_mlir.runtime.guard import Watchdog
    from alpa_mlir.runtime.inputs import Drawn
    from alpa_mlir.runtime.transfers import Transfers
    from alpa_mlir.runtime.worker import Worker

    watchdog = Watchdog(0, 0)
    part = program.decode(module, plan, 0, arranged.rank_of)
    submeshes = Submeshes(plan, 0, arranged.rank_of, devices)
    worker = Worker(
        part, submeshes, Transfers.on_host(submeshes, arranged.rank_of, None, part.routes, watchdog), watchdog
    )
    drawn = Drawn(plan.main.arguments, 0)
    for number in sorted(worker.wanted):
        value = drawn.value(number, 0)
        assert value is not None
        worker.place(number, value)
    for _ in range(3):
        worker.step()
        worker.wait()
    found: dict[str, list[list[float]]] = defaultdict(list)
    for i, action in enumerate(part.actions):
        seconds: list[float] = []
        found[type(action).__name__].append(seconds)
        worker._calls[i] = timed(worker._calls[i], seconds)
    whole: list[float] = []
    for _ in range(options.steps):
        start = time.perf_counter()
        worker.step()
        worker.wait()
        whole.append(time.perf_counter() - start)
    print(f"{'action':10}{'per step':>10}{'µs each':>10}{'µs a step':>12}")
    for kind, lists in sorted(found.items()):
        each = median(s for one in lists for s in one)
        step = median(sum(one[k] for one in lists) for k in range(options.steps))
        print(f"{kind:10}{len(lists):10}{each * 1e6:10.1f}{step * 1e6:12.0f}")
    print(f"{'step':10}{len(part.actions):10}{'':10}{median(whole) * 1e6:12.0f}")


if __name__ == "__main__":
    main()
