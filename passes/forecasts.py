"""How long a step takes at least under settings that were not tried, by what is known of those that were.

Of a number of microbatches that was tried it is known how long a step would take if memory were no object (its
*floor*), and where memory is short, how long with more microbatches, each smaller (`Attempt.ahead`): at prices of the
larger ones, so rather too little. For other numbers:

* floors lie between those of their neighbours. Beyond all that were tried, where they rose from one number to the
  next, they rise as much with each further one; where they fell, by half as much with each.
* within memory a step takes as long as was looked ahead to from the next fewer; what did not fit does not with fewer
  either.

Layers that run again lengthen a step by the part SOME at least, where most of them must by the part ALL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp2, inf, log2

from alpa_mlir.passes.inter.schedules import EAGER, GPIPE
from alpa_mlir.passes.inter.search import FURTHER
from alpa_mlir.passes.intra.problem import DoesNotFit
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


def floor(count: int, floors: Mapping[int, float], gain: float = 0.0) -> float:
    """About the seconds of a step if memory were no object, by those of other numbers of microbatches; 0: unknown.

    `gain`: the part by which they may fall from one number to the next, where it is not known how they do.
    """
    if count in floors:
        return floors[count]
    fewer = sorted((n for n in floors if n < count), reverse=True)
    more = sorted(n for n in floors if n > count)
    if fewer and more:
        return min(floors[fewer[0]], floors[more[0]])
    beyond = fewer or more
    if not beyond:
        return 0.0
    near, steps = beyond[0], abs(log2(count / beyond[0]))
    if len(beyond) == 1 or abs(log2(beyond[1] / near)) > 1:
        return floors[near] * exp2(steps * log2(1 - gain))
    rise = floors[near] - floors[beyond[1]]
    return floors[near] + rise * (steps if rise > 0 else 1 - exp2(-steps))


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
    program has a backward pass.
    """

    wishes: Wishes
    attempts: Mapping[Setting, Attempt]
    rows: Sequence[Considered]
    found: Mapping[Setting, Setting]
    trains: bool

    def distance(self, count: int) -> float:
        """How often a number of microbatches is twice one that was tried, or half of it, at the least."""
        return min(abs(log2(count / setting.microbatches)) for setting in self.attempts)

    def of(self, count: int) -> Iterator[tuple[Setting, float, float]]:
        """Settings of a number of microbatches that were not tried, about the seconds of their steps at least, and
        those by which they are put in order."""
        wishes, tried = self.wishes, self.attempts
        eager = wishes.schedule == AUTO and not wishes.given and self.trains
        for flying in ("", EAGER) if eager else ("",):
            base, again = wishes.setting(count, wishes.least_remat, flying), wishes.setting(count, self._again, flying)
            floors = self._floors(flying)
            least, expected = (floor(count, floors, gain) for gain in (GAIN, 0.0))
            if flying and not 0.0 < least < (1 - HIDDEN) * floor(count, self._floors(""), GAIN):
                return
            plain = quickest(self._of(base))
            if base not in tried:
                plain = self._within_memory(base)
                # Stages that wait for transfers have the same prices, and may do better under other schedules.
                first = base if replace(base, flying="") in tried else replace(base, flying="")
                yield first, max(least, plain), max(expected, plain) * (1 + FAR * self.distance(count))
            if wishes.remat == AUTO and self.trains and again not in tried and self._short(base, plain):
                part = SOME if plain < inf else ALL
                if base in tried and not tried[base].floor:
                    part = UNKNOWN
                # The longer a step is without recomputation, the more layers must run again.
                longer = min(max(log2(plain / expected), 0.0), MOST) if 0 < plain < inf and expected else MOST
                if plain == inf:
                    least = expected
                at_least, expected = (self._lengthened(again, seconds, part) for seconds in (least, expected))
                yield again, at_least, expected * (1 + FAR * longer)

    @property
    def _again(self) -> str:
        """What is tried where memory is short: layers that run again chosen stage by stage, unless stages are given or
        share submeshes."""
        return FULL if self.wishes.given or self.wishes.schedule == INTERLEAVED else PARTLY

    def _of(self, setting: Setting) -> list[Considered]:
        return [row for row in self.rows if row.setting == setting]

    def _short(self, base: Setting, plain: float) -> bool:
        """Whether memory may be too short for what would be quicker; `plain`: seconds without recomputation."""
        if base not in self.attempts and plain > (1 + SOME) * floor(base.microbatches, self._floors(base.flying)):
            return True
        rows = self._of(base) or self._of(replace(base, flying=""))
        return any(isinstance(r.error, DoesNotFit) or (r.bytes or 0.0) > HALF * self.wishes.memory for r in rows)

    def _lengthened(self, again: Setting, least: float, part: float) -> float:
        """Seconds of a step whose layers run again at least: the floor lengthened by a part, or, as far as it is known
        of more microbatches, by as much as there: fewer need more memory."""
        floors = self._floors(again.flying)
        for more in sorted(floors):
            setting = replace(again, microbatches=more)
            if more > again.microbatches and setting in self.attempts:
                known = quickest(self._of(self.found.get(setting, setting)))
                part = max(part, known / floors[more] - 1 if known < inf else 0.0)
        return max(least * (1 + part), self._within_memory(again))

    def _floors(self, flying: str) -> dict[int, float]:
        """Seconds of a step if memory were no object, by number of microbatches, as far as known; `flying`: under which
        schedule."""
        wishes, found = self.wishes, dict[int, float]()
        for setting, attempt in self.attempts.items():
            count = setting.microbatches
            if setting not in [wishes.setting(count, r, setting.flying) for r in (wishes.least_remat, PARTLY)]:
                continue
            known = [attempt.eager if flying else 0.0 if setting.flying else attempt.floor]
            mine = [r for r in self._of(setting) if (r.schedule in EAGERLY) == bool(flying)]
            known += [r.seconds or 0.0 for r in mine if r.schedule in (SIMPLE, EAGER) or r.error is None]
            if any(known):
                found[count] = min([k for k in known if k] + [found.get(count, inf)])
        return found

    def _seen(self, setting: Setting) -> dict[int, Seen]:
        """What attempts say of memory that are like a setting but for the number of microbatches, by that."""
        return {
            s.microbatches: Seen(attempt.ahead, not isinstance(attempt.error, DoesNotFit))
            for s, attempt in self.attempts.items()
            if s == replace(setting, microbatches=s.microbatches)
        }

    def _within_memory(self, setting: Setting) -> float:
        """About the seconds of a step as far as memory makes it long; eager schedules need no less than others."""
        flying = ("", EAGER) if setting.flying else ("",)
        return max(within_memory(setting.microbatches, self._seen(replace(setting, flying=f))) for f in flying)
