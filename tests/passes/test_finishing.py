"""What is done where a finished plan holds more than its stages were chosen for; plans are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.finishing import Carried, Finisher
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.joint import JointChoice
from alpa_mlir.passes.plan_passes import PlanOptions
from alpa_mlir.passes.settings import Attempt, Considered, Setting, Wishes

MEMORY = 100.0
CLUSTER = load_cluster("cpu").with_sizes(1, 2, int(MEMORY))
SETTING = Setting(8)
ROW = Considered(SETTING, "1f1b", 10.0, MEMORY)

Needs = Callable[[int, tuple[float, ...]], tuple[tuple[float, ...], float]]
"""(how often stages were chosen before, bytes allowed) -> (bytes needed, seconds)."""


@dataclass(frozen=True)
class Pretended(Finisher):
    """Plans that need what `needs` says; DoesNotFit where it says nothing."""

    needs: Needs = lambda staging, allowed: ((0.0, 0.0), 10.0)
    log: list[tuple[float, ...]] = field(default_factory=list)

    def carried(self, row: Considered, attempt: Attempt, allowed: tuple[float, ...], said: bool) -> Carried:
        self.log.append(allowed)
        staging = len([asked for asked in self.log if len(asked) == 1])
        needed, seconds = self.needs(staging, allowed)
        if not needed:
            raise DoesNotFit("no sharding")
        return Carried(attempt, needed, (MEMORY, MEMORY), seconds, allowed)


def attempt() -> Attempt:
    """Stages on two devices."""
    module = parse_module("module { func.func @microbatch() { return } }", make_context())
    context, entries = module.context, []
    for number in range(2):
        devices = ir.DenseI64ArrayAttr.get([number], context)
        layers = ir.DenseI64ArrayAttr.get([2 * number, 2 * number + 1], context)
        entry = {"mesh": alpa.string(f"s{number}", context), "devices": devices, "layers": layers}
        entries.append(ir.DictAttr.get(entry, context))
    module.operation.attributes[alpa.STAGES] = ir.ArrayAttr.get(entries, context)
    module.operation.attributes[alpa.CLUSTER] = CLUSTER.attribute(context)
    return Attempt(SETTING, module, exact=True)


def finisher(needs: Needs, remat: str = "none") -> Pretended:
    """It notes what was allowed, and of stages chosen again the memory that they were chosen for."""
    log = list[tuple[float, ...]]()

    def stage(setting: Setting, memory: float) -> Attempt:
        log.append((memory,))
        return attempt()

    choice = JointChoice(Wishes((8,), "auto", remat, MEMORY), lambda setting: replace(attempt(), setting=setting))
    return Pretended(PlanOptions(CLUSTER), lambda *_: False, "", stage, choice, needs, log)


def test_a_plan_that_fits_is_done() -> None:
    found = finisher(lambda _, allowed: ((90.0, 100.0), 10.0))
    done = found.finished(ROW, attempt())
    assert done is not None and done.error is None
    assert found.log == [(100.0, 100.0)]


def test_only_what_is_too_full_gets_less_memory() -> None:
    """The second submesh needs 4 bytes more than its stages were chosen for."""
    found = finisher(lambda _, allowed: ((99.0, allowed[1] + 4.0), 10.0))
    done = found.finished(ROW, attempt())
    assert done is not None and done.error is None
    assert [allowed[0] for allowed in found.log] == [100.0, 100.0]
    assert found.log[1][1] == pytest.approx(100 - 1.05 * 4)


def test_memory_between_is_tried_where_less_makes_the_step_longer() -> None:
    """A plan needs 3 bytes more than is allowed; with less than 96.9 the step takes 1 % longer."""
    found = finisher(lambda _, allowed: ((50.0, allowed[1] + 3.0), 10.0 + 0.1 * (allowed[1] < 96.9)))
    done = found.finished(ROW, attempt())
    assert done is not None and done.error is None
    assert [allowed[1] for allowed in found.log] == pytest.approx([100.0, 96.85, 96.985])


@pytest.mark.parametrize(("least", "tried"), [(88.0, [88.05]), (88.2, [88.05, 88.45])])
def test_less_care_is_taken_where_no_sharding_holds_so_much_less(least: float, tried: list[float]) -> None:
    """The second plan needs a byte too much; with the care of a second turn there is no sharding."""

    def needs(staging: int, allowed: tuple[float, ...]) -> tuple[tuple[float, ...], float]:
        more = 10.0 if allowed[1] == MEMORY else 11.5
        return ((50.0, allowed[1] + more) if allowed[1] >= least else ()), 10.0

    found = finisher(needs)
    done = found.finished(ROW, attempt())
    assert done is not None and done.error is None
    assert [allowed[1] for allowed in found.log] == pytest.approx([100.0, 89.5, 87.65, *tried])


@pytest.mark.parametrize(("least", "tried"), [(89.9, [89.9]), (91.0, [])])
def test_the_sharding_that_holds_least_is_tried_where_it_may_fit(least: float, tried: list[float]) -> None:
    """A plan needs 10 bytes more than is allowed."""

    def needs(staging: int, allowed: tuple[float, ...]) -> tuple[tuple[float, ...], float]:
        if allowed[-1] < least:
            raise DoesNotFit("no sharding", least=least)
        return (50.0, allowed[-1] + 10.0), 10.0

    found = finisher(needs)
    done = found.finished(ROW, attempt())
    assert done is not None and (done.error is None) == bool(tried)
    assert [allowed[1] for allowed in found.log[: 2 + len(tried)]] == pytest.approx([100.0, 89.5, *tried])


def test_stages_are_chosen_again_where_no_sharding_fits_them() -> None:
    """The first stages have no sharding that holds less; the next ones fit."""

    def needs(staging: int, allowed: tuple[float, ...]) -> tuple[tuple[float, ...], float]:
        if staging:
            return (80.0, 80.0), 11.0
        return ((50.0, 110.0) if allowed[1] == MEMORY else ()), 10.0

    found = finisher(needs)
    done = found.finished(ROW, attempt())
    assert done is not None and done.error is None
    assert [len(asked) for asked in found.log] == [2, 2, 1, 2]
    assert found.log[2] == pytest.approx((100 - 1.05 * 10,))


def test_the_quicker_plan_is_kept_where_other_stages_are_no_better() -> None:
    """A sharding that fits takes 6 % longer; the stages chosen again take longer still."""

    def needs(staging: int, allowed: tuple[float, ...]) -> tuple[tuple[float, ...], float]:
        return (50.0, 104.0 if allowed[1] > 99 else 99.0), 10.0 + staging + 0.6 * (allowed[1] < 99)

    found = finisher(needs)
    done = found.finished(ROW, attempt())
    assert done is not None and done.error is None
    assert (len(found.log[0]), sum(len(asked) == 1 for asked in found.log)) == (2, 1)


def test_what_does_not_get_smaller_ends_with_what_was_needed_at_first() -> None:
    found = finisher(lambda _, allowed: ((50.0, 130.0), 10.0))
    done = found.finished(ROW, attempt())
    assert done is not None and isinstance(done.error, DoesNotFit)
    assert done.error.least == 130.0 and "with the copies that collectives make" in done.error.message
    assert len(found.log) == 2


def test_one_more_layer_of_stages_that_are_too_full_runs_again() -> None:
    """Where layers that run again are free to choose: of the second stage, which no sharding makes small enough."""
    made = finisher(lambda _, allowed: ((90.0, 130.0), 10.0) if allowed[1] == MEMORY else ((), 0.0), "auto")
    assert isinstance(made.choice, JointChoice)
    made.choice.rows.append(ROW)
    assert made.finished(ROW, attempt()) is None
    assert made.choice.rows[0].error is not None
    assert {row.setting for row in made.choice.rows[1:]} == {replace(SETTING, remat="2")}
    assert not any(len(asked) == 1 for asked in made.log)


def test_nothing_more_is_tried_where_no_memory_would_be_left() -> None:
    """With the copies that collectives make it needs more than twice of what there is."""
    made = finisher(lambda staging, allowed: ((220.0, 50.0), 10.0))
    done = made.finished(ROW, attempt())
    assert done is not None and isinstance(done.error, DoesNotFit) and done.error.least == 220.0
    assert made.log == [(MEMORY, MEMORY)]


def test_stages_that_cannot_be_are_an_error() -> None:
    found = finisher(lambda *_: ((0.0, 0.0), 10.0))
    done = found.finished(ROW, replace(attempt(), error=DoesNotFit("too large")))
    assert done is not None and done.error is not None and done.error.message == "too large"
    assert found.log == []
