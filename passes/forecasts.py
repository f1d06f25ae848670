"""How long a step takes at least under settings that were not tried, by what is known of those that were.

Of a number of microbatches that was tried it is known how long a step would take if memory were no object (its
*floor*), and where memory is short, how long with more microbatches, each smaller (`Attempt.ahead`): at prices of the
larger ones, so rather too little. For other numbers:

* floors follow from those of their neighbours (`floors.py`);
* within memory a step takes as long as was looked ahead to from the next fewer; what did not fit does not with fewer
  either.

Layers that run again lengthen a step by the part SOME at least, where most of them must by the part ALL; where all of
them do, by as much as with any other number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log2

from alpa_mlir.passes.fewest import is_too_large
from alpa_mlir.passes.floors import floor
from alpa_mlir.passes.inter.schedules import EAGER, GPIPE
from alpa_mlir.passes.inter.search import FURTHER
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.no_plan import least_bytes, short_of_memory
from alpa_mlir.passes.settings import (
    AUTO,
    FULL,
    INTERLEAVED,
    PARTLY,
    SIMPLE,
    Attempt,
    Considered,
    Setting,
    Wishes,
    quickest,
)

SOME, ALL, HALF = 0.05, 0.1, 0.5
"""See above; where all fits into the part HALF of the memory, no layers need run again."""
MUCH = 0.5
"""The part by which a step takes longer at most where all layers run again: a backward pass takes longer than a forward
pass."""
GAIN, FAR, MOST = 0.03, 0.01, 10
"""The part of a step that twice as many microbatches, or half as many, may gain where little is known; the one that is
expected to be lost for each time that they are twice as many or half, and that memory makes a step twice as long (so
many times at most)."""
EAGERLY = (EAGER, GPIPE, "zero-bubble-h2")
"""Schedules under which stages do not wait for transfers."""
HIDDEN = 0.05
"""Stages are found for eager schedules where the time of transfers is this part of a step at least."""
UNKNOWN = -1.0


@dataclass(frozen=True)
class Seen:
    """What a number of microbatches that was tried says of memory: what was looked ahead to, whether anything fits."""

    ahead: tuple[float, ...]
    fits: bool


def within_memory(count: int, seen: Mapping[int, Seen]) -> float:
    """About the seconds of a step as far as memory makes it long; 0 where it does not, as far as known."""
    if any(n >= count and not s.fits for n, s in seen.items()):
        return inf
    fewer = max((n for n in seen if n < count), default=0)
    if not fewer or not seen[fewer].ahead:
        return 0.0
    known = [seconds for times, seconds in zip(FURTHER, seen[fewer].ahead, strict=False) if times <= count // fewer]
    return known[-1] if known else 0.0


@dataclass(frozen=True)
class Forecasts:
    """What is foreseen of settings not tried, from attempts that were and what they say.

    `found`: where layers that run again were chosen stage by stage, the setting that says which. `trains`: whether the
    program has a backward pass. `mixing`: the least number of microbatches that it could not be split into.
    """

    wishes: Wishes
    attempts: Mapping[Setting, Attempt]
    rows: Sequence[Considered]
    found: Mapping[Setting, Setting]
    trains: bool
    mixing: float = inf

    def distance(self, count: int) -> float:
        """How often a number of microbatches is twice one that was tried, or half of it, at the least."""
        return min(abs(log2(count / setting.microbatches)) for setting in self.attempts)

    def of(self, count: int) -> Iterator[tuple[Setting, float, float]]:
        """Settings of a number of microbatches that were not tried, about the seconds of their steps at least, and
        those by which they are put in order."""
        for flying in self._schedules:
            least, expected = (self._floor(count, flying, gain) for gain in (GAIN, 0.0))
            if flying and not 0.0 < least < (1 - HIDDEN) * self._floor(count, "", GAIN):
                return
            base = self.wishes.setting(count, self.wishes.least_remat, flying)
            plain = quickest(self._of(base)) if base in self.attempts else self._within_memory(base)
            if base not in self.attempts:
                far = 1 + FAR * self.distance(count)
                yield self._first(base), max(least, plain), max(expected, plain) * far
            again = self.wishes.setting(count, self._again, flying)
            if self._may_run_again(base, again, plain):
                yield again, *self._again_in(again, base, plain, least, expected)

    def is_too_large(self, setting: Setting) -> bool:
        """Whether memory is expected to be too small, by other numbers of microbatches for which it was; the largest
        number is tried in any case."""
        needs: dict[int, float] = {}
        for count in self.wishes.microbatches:
            alike = replace(setting, microbatches=count)
            rows = self._of(self.found.get(alike, alike)) if alike in self.attempts else []
            if count > 1 and rows and short_of_memory(rows) and isfinite(least_bytes(rows)):
                needs[count] = least_bytes(rows)
        largest = max((c for c in self.wishes.microbatches if c < self.mixing), default=0)
        return setting.microbatches != largest and is_too_large(needs, setting.microbatches, self.wishes.memory)

    @property
    def _schedules(self) -> tuple[str, ...]:
        """The schedules whose microbatches in flight stages may be found for: the usual one, and eager ones."""
        eager = self.wishes.schedule == AUTO and not self.wishes.given and self.trains
        return ("", EAGER) if eager else ("",)

    def _first(self, base: Setting) -> Setting:
        """The setting to try first: stages that wait for transfers have the same prices, and may do better under other
        schedules."""
        waiting = replace(base, flying="")
        return base if waiting in self.attempts else waiting

    def _may_run_again(self, base: Setting, again: Setting, plain: float) -> bool:
        """Whether a setting is left to try where layers run again, and memory may be too short without."""
        free = self.wishes.remat == AUTO and self.trains
        return free and again not in self.attempts and self._short(base, plain)

    def _again_in(
        self, again: Setting, base: Setting, plain: float, least: float, expected: float
    ) -> tuple[float, float]:
        """About the seconds of a step whose layers run again, at least, and those by which it is put in order; by what
        is known of one where none do: `plain` seconds within memory, `least` and `expected` without limit."""
        part = SOME if plain < inf else ALL
        if base in self.attempts and not self.attempts[base].floor:
            part = UNKNOWN
        # The longer a step is without recomputation, the more layers must run again.
        longer = min(max(log2(plain / expected), 0.0), MOST) if 0 < plain < inf and expected else MOST
        if plain == inf:
            least = expected
        at_least, expected = (self._lengthened(again, seconds, part) for seconds in (least, expected))
        return at_least, expected * (1 + FAR * longer)

    @property
    def _again(self) -> str:
        """What is tried where memory is short: layers that run again chosen stage by stage, unless stages are given or
        share submeshes."""
        return FULL if self.wishes.given or self.wishes.schedule == INTERLEAVED else PARTLY

    def _of(self, setting: Setting) -> list[Considered]:
        return [row for row in self.rows if row.setting == setting]

    def _short(self, base: Setting, plain: float) -> bool:
        """Whether memory may be too short for what would be quicker; `plain`: seconds without recomputation."""
        if base not in self.attempts and plain > (1 + SOME) * self._floor(base.microbatches, base.flying):
            return True
        rows = self._of(base) or self._of(replace(base, flying=""))
        return any(isinstance(r.error, DoesNotFit) or (r.bytes or 0.0) > HALF * self.wishes.memory for r in rows)

    def _lengthened(self, again: Setting, least: float, part: float) -> float:
        """Seconds of a step whose layers run again at least: the floor lengthened by a part, or, as far as it is known
        of more microbatches, by as much as there, for fewer need more memory; where all of them run again, by as much
        as with any other number."""
        floors = self._floors(again.flying)
        if again.remat == FULL:
            part = max(part, self._all_again)
        for more in sorted(floors):
            setting = replace(again, microbatches=more)
            if more > again.microbatches and setting in self.attempts:
                known = quickest(self._of(self.found.get(setting, setting)))
                part = max(part, known / floors[more] - 1 if known < inf else 0.0)
        return max(least * (1 + part), self._within_memory(again))

    @property
    def _all_again(self) -> float:
        """The part by which a step takes longer if memory were no object where all layers run again; 0: unknown."""
        both = [(a.floor, self.attempts.get(replace(s, remat=self.wishes.least_remat))) for s, a in self._full]
        return max((long / short.floor - 1 for long, short in both if short is not None and short.floor), default=0.0)

    @property
    def _full(self) -> list[tuple[Setting, Attempt]]:
        """Attempts with all layers run again, where that is all that is tried of it."""
        wanted = self.wishes.least_remat != FULL and self._again == FULL
        return [(s, a) for s, a in self.attempts.items() if wanted and s.remat == FULL and a.floor]

    def _floor(self, count: int, flying: str, gain: float = 0.0) -> float:
        """Seconds of a step if memory were no object, as far as known or foreseen: where only that of layers run again
        is known, it is longer by as much as that makes it at most."""
        shorter = self._shorter(flying) / (1 + (self._all_again or MUCH))
        known = {s.microbatches: shorter * a.floor for s, a in self._full if s.flying == flying}
        return floor(count, known | self._floors(flying), gain, self.wishes.stages)

    def _floors(self, flying: str) -> dict[int, float]:
        """Seconds of a step if memory were no object, by number of microbatches, as far as known; `flying`: under which
        schedule."""
        found, shorter = dict[int, float](), self._shorter(flying)
        for setting, said, played in self._known(flying):
            seconds = [s for s in (shorter * said, played) if 0.0 < s < inf]
            if seconds:
                found[setting.microbatches] = min([*seconds, found.get(setting.microbatches, inf)])
        return found

    def _known(self, flying: str) -> Iterator[tuple[Setting, float, float]]:
        """Settings that were tried without recomputation, the seconds that their attempts say (0: nothing), and those
        when their stages are played, as far as memory does not matter (infinite: they were not)."""
        for setting, attempt in self.attempts.items():
            usual = [
                self.wishes.setting(setting.microbatches, r, setting.flying) for r in (self.wishes.least_remat, PARTLY)
            ]
            if setting in usual:
                said = attempt.eager if flying else 0.0 if setting.flying else attempt.floor
                rows = self._of(setting)
                # Given stages are the same under any schedule.
                mine = [r for r in rows if self.wishes.given or (r.schedule in EAGERLY) == bool(flying)]
                played = [r.seconds or inf for r in mine if r.schedule in (SIMPLE, EAGER) or r.error is None]
                yield setting, said, min(played, default=inf)

    def _shorter(self, flying: str) -> float:
        """The part of what attempts say that a step of as many stages takes when it is played, where that is known:
        some of the time that transfers take passes beside the work."""
        known = [played / said for _, said, played in self._known(flying) if self.wishes.stages and said]
        return min([1.0, *known])

    def _seen(self, setting: Setting, flying: str) -> dict[int, Seen]:
        """What attempts under a schedule say of memory that are like a setting otherwise but for the number of
        microbatches, by that: of stages that wait for transfers, to an eager schedule, as if they did not."""
        found = dict[int, Seen]()
        for s, attempt in self.attempts.items():
            if s == replace(setting, microbatches=s.microbatches, flying=flying):
                waits = setting.flying and not flying and 0.0 < attempt.eager < attempt.floor
                part = attempt.eager / attempt.floor if waits else 1.0
                ahead = tuple(part * seconds for seconds in attempt.ahead)
                found[s.microbatches] = Seen(ahead, not isinstance(attempt.error, DoesNotFit))
        return found

    def _within_memory(self, setting: Setting) -> float:
        """About the seconds of a step as far as memory makes it long; eager schedules need no less than others."""
        flying = ("", EAGER) if setting.flying else ("",)
        seconds = max(within_memory(setting.microbatches, self._seen(setting, f)) for f in flying)
        return seconds * self._shorter(setting.flying)
