"""Rematerialisation once more in the joint choice (`joint.py`): in part, and where solved stages say otherwise.

In part (`inter/partial_remat.py`) layers run again only where memory is short, for the best number of microbatches and,
as long as that is quicker, for its neighbours. All of them are tried once more where the best step (if it runs layers
again, and of any when its stages are solved) takes longer than one that runs them again may: HOPEFUL numbers of
microbatches that would take least if memory were no object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from alpa_mlir.passes.settings import AUTO, EAGER, FULL, NONE, PARTLY, Attempt, Considered, Setting, Wishes, quickest

HALF, WORTH, AGAIN = 0.5, 0.01, 0.1
HOPEFUL = 2


class Choice(Protocol):
    """What is asked of the joint choice (`joint.JointChoice`, which says what each is)."""

    wishes: Wishes
    stage: Callable[[Setting], Attempt]
    attempts: dict[Setting, Attempt]
    rows: list[Considered]
    trains: bool

    def left(self) -> list[Considered]:
        """Possible plans not yet given out."""

    @staticmethod
    def best(rows: Sequence[Considered]) -> Considered:
        """The quickest, or a simple one nearly as quick."""

    def try_setting(self, setting: Setting) -> list[Considered]:
        """The rows of a setting, tried unless it was."""

    def play(self, attempt: Attempt) -> list[Considered]:
        """The schedules that suit the stages of an attempt, simulated."""


def try_full(choice: Choice) -> None:
    """All layers run again, where that was not tried and may be quicker than what is possible; then some of them."""
    least = quickest(choice.left())
    if not _may_recompute(choice):
        return
    open_counts = sorted(
        (attempt.floor, s.microbatches)
        for s, attempt in choice.attempts.items()
        if s.remat == NONE and not s.interleaved and replace(s, remat=FULL) not in choice.attempts
        if 0.0 < (1 + AGAIN) * attempt.floor < least
    )
    for _, count in open_counts[:HOPEFUL]:
        choice.try_setting(Setting(count, FULL))
    if quickest(choice.left()) < least:
        try_partly(choice)


def try_partly(choice: Choice) -> None:
    """Layers that run again chosen stage by stage."""
    possible = [r for r in choice.left() if r.seconds is not None]
    if not possible or not _may_recompute(choice):
        return
    best = choice.best(possible)
    ample = (best.bytes or 0.0) <= HALF * choice.wishes.memory
    ample |= (best.seconds or 0.0) <= (1 + WORTH) * choice.attempts[best.setting].floor
    if best.setting.interleaved or (best.setting.remat == NONE and ample):
        return
    counts = sorted(choice.wishes.microbatches)
    at, least = counts.index(best.setting.microbatches), float("inf")
    eager = best.schedule == EAGER and choice.wishes.schedule == AUTO
    seconds = _try_part(choice, counts[at], eager)
    if seconds >= (best.seconds or 0.0):
        return
    for step in (1, -1):
        while seconds < least and 0 <= at + step < len(counts):
            least, at = seconds, at + step
            seconds = _try_part(choice, counts[at], eager)


def _may_recompute(choice: Choice) -> bool:
    return choice.wishes.remat == AUTO and choice.trains and not choice.wishes.given


def _try_part(choice: Choice, count: int, eager: bool) -> float:
    """Seconds of the best step if layers run again as memory demands, with `eager` also for what EAGER has in
    flight; infinite where that is all or none, or was tried."""
    tried = list[Considered]()
    for flying in ("", EAGER) if eager else ("",):
        asked = Setting(count, PARTLY, flying=flying)
        if asked in choice.attempts:
            continue
        attempt = choice.attempts[asked] = choice.stage(asked)
        if attempt.error is None and attempt.setting.remat not in (NONE, FULL, PARTLY):
            choice.attempts[attempt.setting] = attempt
            tried += choice.play(attempt)
    choice.rows += tried
    return quickest(tried)
