"""How long a step takes at least under settings that were not tried, by what is known of those that were.

Of a number of microbatches that was tried it is known how long a step would take if memory were no object (its
*floor*), and where memory is short, how long with more microbatches, each smaller (`Attempt.ahead`): at prices of the
larger ones, so rather too little. For other numbers:

* where the number of stages is given, floors follow the curve that a pipeline's do (`along`), through the two nearest
  that are known. Else stages differ from one number to another, and floors lie between those of their neighbours;
  beyond all that were tried, where they rose from one number to the next, they rise as much with each further one;
  where they fell, by half as much with each.
* within memory a step takes as long as was looked ahead to from the next fewer; what did not fit does not with fewer
  either.

Layers that run again lengthen a step by the part SOME at least, where most of them must by the part ALL; where all of
them do, by as much as with any other number.
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


def along(count: int, floors: Mapping[int, float], stages: int) -> float:
    """The floor of a number of microbatches by one or two others, of so many stages: about

        f(M) = work + fill / M + each · M

    The work of a step is the same however many microbatches it is split into. `fill / M` is how long the pipeline
    fills and drains, of p stages the part (p - 1) / (M + p - 1) of a step at most, with equal stages. `each` is what
    every microbatch costs besides (sums are added to, weights read); 0 where only one floor is known.
    """
    least = min(floors)
    fill = floors[least] * (stages - 1) / (1 + (stages - 1) / least)
    each = 0.0
    for more in floors:
        if more > least:
            each = max(0.0, (floors[more] - floors[least] + fill * (1 / least - 1 / more)) / (more - least))
    return floors[least] + fill * (1 / count - 1 / least) + each * (count - least)


def nearest(count: int, floors: Mapping[int, float]) -> dict[int, float]:
    """Two floors at most, those of the nearest numbers of microbatches: of fewer and of more where there are both."""
    fewer = sorted((n for n in floors if n < count), reverse=True)
    more = sorted(n for n in floors if n > count)
    chosen = [fewer[0], more[0]] if fewer and more else (fewer or more)[:2]
    return {n: floors[n] for n in chosen}


def floor(count: int, floors: Mapping[int, float], gain: float = 0.0, stages: int = 0) -> float:
    """About the seconds of a step if memory were no object, by those of other numbers of microbatches; 0: unknown.

    `gain`: the part by which they may fall from one number to the next, where it is not known how they do. `stages`:
    how many there are with any number of microbatches; 0: not known.
    """
    if count in floors:
        return floors[count]
    if stages and floors:
        known = nearest(count, floors)
        fewer_than_known = len(known) == 1 and count < min(known)
        return along(count, known, stages) * exp2(fewer_than_known * log2(min(known) / count) * log2(1 - gain))
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
        of other numbers of microbatches, by as much as there: where all run again if memory were no object, and within
        memory with more, for fewer need more of it."""
        floors = self._floors(again.flying)
        for count in sorted(floors):
            setting = replace(again, microbatches=count)
            if setting in self.attempts:
                known = [self.attempts[setting].floor if again.remat == FULL else 0.0]
                if count > again.microbatches:
                    known.append(quickest(self._of(self.found.get(setting, setting))))
                part = max([part, *(seconds / floors[count] - 1 for seconds in known if 0.0 < seconds < inf)])
        return max(least * (1 + part), self._within_memory(again))

    def _floor(self, count: int, flying: str, gain: float = 0.0) -> float:
        """Seconds of a step if memory were no object, as far as known or foreseen."""
        return floor(count, self._floors(flying), gain, self.wishes.stages)

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
