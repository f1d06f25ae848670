"""Iterators advanced by forked processes: the same items as in order, errors raised here, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from alpa_mlir.forked import Forked, forked
from alpa_mlir.passes.memo import remembered, remembering_meanwhile
from alpa_mlir.passes.streams import InOrder, side_by_side, working

# Forking is safe for what these tests do: neither side uses jax.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")


def count(number: int, length: int) -> Iterator[tuple[int, int, np.ndarray]]:
    for k in range(length):
        yield number, k, np.full(1000 * number, float(k))


def failing(number: int) -> Iterator[int]:
    yield number
    raise ValueError(f"stream {number}")


def dying() -> Iterator[int]:
    os._exit(9)
    yield 0


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_items_are_those_in_order(processes: int) -> None:
    makers = [partial(count, n, 1 + n % 3) for n in range(5)]
    streams, expected = Forked(makers, processes), InOrder(makers)
    children = [process for process, _ in streams.workers]
    assert len(children) == processes
    for asked in ([0, 1, 2, 3, 4], [4, 2, 1], [1], [0, 2, 3], [2]):
        for a, b in zip(streams.advance(asked), expected.advance(asked), strict=True):
            assert (a is None) == (b is None)
            assert a is None or (a[:2] == b[:2] and np.array_equal(a[2], b[2]))
    streams.close()
    for process in children:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_an_error_is_raised_here() -> None:
    streams = Forked([partial(failing, n) for n in range(2)], 2)
    assert streams.advance([0, 1]) == [0, 1]
    with pytest.raises(ValueError, match="stream 1"):
        streams.advance([1])
    streams.close()


def test_what_a_process_remembers_is_remembered_here() -> None:
    made: list[int] = []

    def squares(number: int) -> Iterator[float]:
        def compute() -> dict[str, np.ndarray]:
            made.append(number)
            return {"square": np.array(float(number * number))}

        yield float(remembered(lambda: str(number), compute)["square"])

    makers = [partial(squares, n) for n in range(3)]
    with remembering_meanwhile():
        streams = Forked(makers, 2)
        assert streams.advance([0, 1, 2]) == [0.0, 1.0, 4.0]
        streams.close()
        assert made == [0]
        assert InOrder(makers).advance([0, 1, 2]) == [0.0, 1.0, 4.0]
        assert made == [0]


def test_a_process_that_dies_is_an_error() -> None:
    streams = Forked([partial(count, 0, 1), dying], 2)
    with pytest.raises(RuntimeError, match="ended early"):
        streams.advance([0, 1])
    streams.close()


def test_here_where_jax_is_loaded() -> None:
    assert "jax" in sys.modules or __import__("jax")
    assert isinstance(forked([partial(count, n, 1) for n in range(3)]), InOrder)


def test_side_by_side_closes() -> None:
    opened: list[Forked] = []

    def opening(makers: list) -> Forked:
        opened.append(Forked(makers, 2))
        return opened[-1]

    with working(opening), pytest.raises(KeyError), side_by_side([partial(count, n, 1) for n in range(2)]):
        raise KeyError
    assert opened[0].workers == []


def test_a_plan_does_not_depend_on_the_number_of_cores(tmp_path: Path) -> None:
    command = "from alpa_mlir.tools import start; start.{}()"

    def run(name: str, *words: str, cores: set[int]) -> None:
        subprocess.run(
            [sys.executable, "-c", command.format(name), *words],
            check=True, capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip

    cores = os.sched_getaffinity(0)
    model = str(tmp_path / "mlp.mlir")
    run("export", "mlp", "--size", "tiny", "-o", model, cores=cores)
    plans = []
    for number, used in enumerate((cores, {min(cores)})):
        plan = tmp_path / f"{number}.mlir"
        words = [model, "--cluster", "cpu", "--devices-per-node", "4", "--microbatches", "2", "--no-cache"]
        run("plan", *words, "-o", str(plan), cores=used)
        plans.append(plan.read_bytes())
    assert plans[0] == plans[1]
