"""What is foreseen of numbers of microbatches that were not tried."""

from __future__ import annotations

from math import inf

import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.passes.floors import floor
from alpa_mlir.passes.forecasts import Forecasts, Seen, within_memory
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.settings import Attempt, Considered, Setting, Wishes


@pytest.mark.parametrize(
    ("count", "floors", "expected"),
    [
        (8, {}, 0.0),
        (8, {8: 5.0}, 5.0),
        (16, {8: 10.0, 64: 9.0}, 9.0),  # between two
        (32, {8: 10.0}, 10.0 * 0.97**2),  # little is known
        (32, {8: 10.0, 64: 9.0, 128: 9.5}, 9.0),
        (512, {64: 9.0, 128: 9.5}, 10.5),  # they rise
        (512, {64: 10.0, 128: 9.0}, 9.0 - 0.75),  # they fall, by less and less
        (256, {8: 9.0, 128: 9.5}, 9.5 * 0.97),  # far apart
        (4, {8: 9.0, 16: 10.0}, 8.5),
        (4, {8: 10.0, 16: 9.0}, 11.0),
    ],
)
def test_floors(count: int, floors: dict[int, float], expected: float) -> None:
    assert floor(count, floors, 0.03) == pytest.approx(expected)


@pytest.mark.parametrize("known", [(8,), (8, 1024), (128, 1024), (8, 128)])
def test_floors_of_a_pipeline_follow_its_curve(known: tuple[int, ...]) -> None:
    """Four equal stages; a step's work takes 32 s on each, and every microbatch 10 ms besides (none: one is known)."""

    def step(count: int) -> float:
        return (count + 3) * (32.0 / count + 0.01 * (len(known) > 1))

    floors = {count: step(count) for count in known}
    for count in (2**k for k in range(3, 11)):
        assert floor(count, floors, 0.0, stages=4) == pytest.approx(step(count), rel=0.03)


def test_floors_of_fewer_microbatches_may_gain_where_one_is_known() -> None:
    assert floor(64, {128: 10.0}, 0.03, stages=1) == pytest.approx(9.7)
    assert floor(256, {128: 10.0}, 0.03, stages=1) == pytest.approx(10.0)


def test_memory() -> None:
    """With 8 microbatches nothing fits; with 16 times as many there is enough. 64 are solved and do not fit either."""
    seen = {8: Seen((inf, 30.0, 12.0, 10.0), False)}
    assert [within_memory(n, seen) for n in (4, 8, 16, 32, 64, 128, 1024)] == [inf, inf, inf, 30.0, 12.0, 10.0, 10.0]
    seen[64] = Seen((11.0,), False)
    assert [within_memory(n, seen) for n in (32, 64, 128)] == [inf, inf, 11.0]
    seen[128] = Seen((), True)
    assert within_memory(256, seen) == 0.0
    assert within_memory(8, {}) == 0.0


def test_what_stages_that_wait_say_of_memory_is_not_what_eager_ones_take() -> None:
    """MoE-70B on 64 devices, in 16 layers: with memory enough 32 microbatches take 8.5 s if no stage waits for
    transfers, 11.7 s if all do. They fit where layers run again; what 64 take was looked ahead to under both."""
    module = parse_module("module {}", make_context())
    none, waiting, eager = Setting(8, "none"), Setting(32, "partly"), Setting(32, "partly", False, "eager-1f1b")
    short = DoesNotFit("too large")
    attempts = {
        none: Attempt(none, module, error=short, floor=9.786, eager=9.786, ahead=(inf, 10.39, 10.61)),
        waiting: Attempt(waiting, module, floor=11.69, eager=8.516, ahead=(11.76,)),
        eager: Attempt(eager, module, floor=8.516, eager=8.516, ahead=(9.631,)),
    }
    all_again, some = Setting(32, "full", False, "eager-1f1b"), Setting(32, "0-7")
    rows = [
        Considered(none, "1f1b", error=short),
        Considered(some, "1f1b", 13.37, 15.7e9),
        Considered(all_again, "eager-1f1b", 10.63, 15.2e9),
    ]
    wishes = Wishes((32, 64), "auto", "auto", 16e9)
    forecasts = Forecasts(wishes, attempts, rows, {waiting: some, eager: all_again}, True)
    found = {(s.remat, s.flying): least for s, least, _ in forecasts.of(64)}
    assert found["none", ""] == pytest.approx(10.61)
    assert found["partly", "eager-1f1b"] == pytest.approx(9.631)
