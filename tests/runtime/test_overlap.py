"""Messages and computation overlap: nothing waits for a send, and a receive is posted a program before it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import mlp_plan
import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.runtime import transfers as moving
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.program import Call, decode, read
from alpa_mlir.runtime.transfers import TAGS_PER_TRANSFER, Transfers
from alpa_mlir.runtime.transport.base import Buffer, Held, Message, Test, Transport, Window
from alpa_mlir.runtime.worker import Worker

MICROBATCHES = 4


class Blocked(Exception):
    """The rank waits."""


class Nothing(Transport):
    """A transport that takes everything and moves nothing."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def post_send(self, held: Held, window: Window, message: Message, after: Sequence[Test] = ()) -> None:
        self._note("send", message)

    def post_receive(self, target: Buffer, message: Message) -> Test:
        self._note("receive", message)
        return lambda: False

    def _note(self, what: str, message: Message) -> None:
        said = f"{what} {message.tag // TAGS_PER_TRANSFER}"
        if self.log[-1:] != [said]:  # a transfer may be several boxes
            self.log.append(said)

    def progress(self) -> None:
        pass

    def idle(self) -> bool:
        return False

    def secured(self) -> bool:
        return True


def until_it_waits(rank: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str]:
    """What a rank of two does while no message moves, and what it waits for then."""
    log: list[str] = []
    rank_of = (0, 0, 1, 1)
    module = parse_module(mlp_plan.plan_text(MICROBATCHES), make_context())
    plan = read(module)
    part = decode(module, plan, rank, rank_of)
    submeshes, watchdog = Submeshes(plan, rank, rank_of, jax.devices()[:4]), Watchdog(0, 0)
    worker = Worker(
        part, submeshes, Transfers.on_host(submeshes, rank_of, Nothing(log), part.routes, watchdog), watchdog
    )
    for argument in worker.wanted:
        worker.place(argument, np.asarray(mlp_plan.arguments()[argument]))

    def noted(action: Call, call: object) -> object:
        return lambda: (log.append(action.what), call())  # type: ignore[operator]

    calls = zip(part.actions, worker._calls, strict=True)
    worker._calls = [noted(a, c) if isinstance(a, Call) else c for a, c in calls]  # type: ignore[misc]

    def wait(done: Test, progress: object, watchdog: Watchdog, what: str, busy: object) -> None:
        raise Blocked(what)

    monkeypatch.setattr(moving, "wait_until", wait)
    with pytest.raises(Blocked) as blocked:
        worker.step()
    return log, str(blocked.value)


def test_the_first_stage_runs_on_while_its_values_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    log, waits = until_it_waits(0, monkeypatch)
    assert log == [
        "@stage_0_forward of microbatch 0",
        "send 0",
        "receive 2",  # of the first gradient, while the second microbatch runs
        "@stage_0_forward of microbatch 1",
        "send 1",
    ]
    assert waits == "transfer 7 from stage_1 to stage_0, microbatch 0"


def test_the_second_stage_waits_for_its_first_value_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log, waits = until_it_waits(1, monkeypatch)
    assert log == ["receive 0"]
    assert waits == "transfer 4 from stage_0 to stage_1, microbatch 0"
