"""Messages and computation overlap: nothing waits for a send, and a receive is posted a program before it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import mlp_plan
import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import MeshTensor
from alpa_mlir.runtime import transfers as moving
from alpa_mlir.runtime.actions import Action, Call, Drop, Expect, Give, Path, Take, fills, reads
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.overlap import overlapped
from alpa_mlir.runtime.program import decode, read
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


def parts() -> list[tuple[Action, ...]]:
    """The actions of two ranks."""
    module = parse_module(mlp_plan.plan_text(MICROBATCHES), make_context())
    return [decode(module, read(module), rank, (0, 0, 1, 1)).actions for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_half_of_a_transfer_stands_where_it_overlaps_with_most(rank: int) -> None:
    actions = parts()[rank]
    gives = [i for i, a in enumerate(actions) if isinstance(a, Give)]
    takes = [i for i, a in enumerate(actions) if isinstance(a, Take)]
    assert gives and takes
    for i in gives:
        before = next(a for a in reversed(actions[:i]) if not isinstance(a, Give))
        assert actions[i].value in fills(before)
    for i in takes:
        behind = next(a for a in actions[i:] if not isinstance(a, Take))
        assert actions[i].result in reads(behind)
        posted = next(k for k, a in enumerate(actions) if isinstance(a, Expect) and a.transfer == actions[i].transfer)
        between = [a for a in actions[posted:i] if isinstance(a, Call)]
        assert between or not any(isinstance(a, Call) for a in actions[:i])


def test_nothing_waits_in_a_circle() -> None:
    """The ranks, played with messages that arrive at once: all get to their ends."""
    ranks, at, given = parts(), [0, 0], set()
    while any(a < len(r) for a, r in zip(at, ranks, strict=True)):
        before = list(at)
        for rank, actions in enumerate(ranks):
            while at[rank] < len(actions):
                action = actions[at[rank]]
                if isinstance(action, Take) and action.transfer not in given:
                    break
                given |= {action.transfer} if isinstance(action, Give) else set()
                at[rank] += 1
        assert at != before


def test_a_take_comes_before_whatever_reads_it_and_a_give_after_a_take_that_makes_it() -> None:
    kind = MeshTensor("m", (2,), "f32", Sharding.replicated(1))
    path = Path(kind, kind, None)
    relay = [Take(0, path, 7, "-"), Call("f", "m", 0, (5,), (1,), "-"), Give(0, path, 8, False), Drop((0, 1))]
    expected = [Expect(path, 7), relay[0], relay[2], relay[1], relay[3]]
    assert list(overlapped(relay)) == expected
    unread = [Take(0, path, 7, "-"), Call("f", "m", 0, (5,), (1,), "-")]
    assert list(overlapped(unread)) == [Expect(path, 7), unread[1], unread[0]]


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
