"""The joint choice of microbatch count, schedule and rematerialisation, by simulation, under memory.

Each number of microbatches, with and without rematerialisation, gives other layers, stages and costs: an
*attempt*.  The stages of an attempt are then played under every schedule that suits them, and the shortest step
that fits in memory wins.  Not everything is tried:

* numbers of microbatches from FIRST on upwards while the step gets shorter (or, in longer strides, does not fit),
  then downwards: more of them idle less, fewer start less often and add up less; beyond that, numbers with which, by
  prices for fewer, a step without rematerialisation would fit and be quicker;
* rematerialisation only where the best schedule without it needs more than HALF of the memory or nothing fits
  (else it only adds work), and where it may be quicker than the best step without it, for as many microbatches,
  AHEAD numbers of them further or the first that memory is not foreseen to slow down: it adds at least the part AGAIN
  to the step that would be if memory were no object;
* no rematerialisation only where prices for fewer microbatches do not say already that it would be slower than all of
  it;
* some layers of each stage run again (`inter/partial_remat.py`) only where memory is short, for the best number of
  microbatches and, as long as that is quicker, its neighbours;
* interleaving, which cuts stages of its own, only where the best step so far idles more than IDLE of the time while
  its pipeline fills and drains (that is what it shortens; stages that are uneven stay so), and exactly only where at
  its prices the step is less than DOUBT longer than the best. On large clusters it is not tried at all: the optima of
  its stages take minutes there.

Where attempts are rough, those of up to SOLVED settings that look best are solved, and the best of these wins.
What is more complicated (another schedule than 1F1B, recomputation) must gain more than WORTH.  The plan records
what else was considered (`alpa.considered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isfinite

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_pipeline
from alpa_mlir.passes.fewest import Hunt
from alpa_mlir.passes.inter.search import FURTHER
from alpa_mlir.passes.inter.tables import SLACK
from alpa_mlir.passes.intra.problem import DoesNotFit, StateDoesNotFit
from alpa_mlir.passes.no_plan import least_bytes, least_error, short_of_memory
from alpa_mlir.passes.played import played
from alpa_mlir.passes.recomputing import AGAIN, HALF, WORTH, try_full, try_partly
from alpa_mlir.passes.settings import (
    AUTO,
    FULL,
    INTERLEAVED,
    NONE,
    Attempt,
    Considered,
    Setting,
    Wishes,
    quickest,
)
from alpa_mlir.passes.stages import has_backward

FIRST, IDLE = 8, 0.1
AHEAD = 2
DOUBT = 0.15
SOLVED = 3
"""Of how many settings at most stages are solved where prices found the best: as long as another's price is better."""
PATIENT = 2
"""How many numbers of microbatches in a row may be no better before the search ends, where memory is short."""
INFINITE = float("inf")


class JointChoice:
    """The search over settings; `stage` makes an attempt, which is kept while it may still be chosen.

    `closer`, where attempts are rough, makes an exact one. What a rough one needs may be wrong by SLACK.
    """

    def __init__(
        self, wishes: Wishes, stage: Callable[[Setting], Attempt], closer: Callable[[Setting], Attempt] | None = None
    ) -> None:
        self.wishes, self.stage, self.closer = wishes, stage, closer
        self.attempts: dict[Setting, Attempt] = {}
        self.rows: list[Considered] = []
        self.trains = True
        self.short: set[int] = set()
        """Numbers of microbatches that memory is too short for without rematerialisation, untried."""
        self.divides = True
        """Whether the last number of microbatches could be made of the program at all."""
        self.given: list[Considered] = []
        """Possible plans given out; `postponed`: the settings of those that came back."""
        self.postponed: set[Setting] = set()
        self.solved: set[Setting] = set()
        """Settings that were solved after rough attempts."""
        self.hopeless: StateDoesNotFit | None = None
        """Why no setting can be."""
        self.rejected = False
        """Whether a plan turned out to be impossible that had been found to be possible."""

    def ranked(self) -> Iterator[tuple[Considered, Attempt]]:
        """Possible plans, best first. CompileError where there is none: memory that would do, or the last error."""
        found = False
        for rows in (self._fewest, self._by_seconds, self._in_order, self._closest):
            for row in rows() if self.hopeless is None else ():
                found = True
                yield row, self.attempts[row.setting]
        if not found:
            raise self.least_error()

    def _fewest(self) -> Iterator[Considered]:
        """One stage never idles: the fewest microbatches are quickest where they fit, and nothing need be compared."""
        if self.wishes.single:
            setting = Setting(self.wishes.microbatches[0], self._least_remat)
            for row in self.try_setting(setting, self.closer):
                if row.error is None and self.hopeless is None:
                    yield row

    def _in_order(self) -> Iterator[Considered]:
        """Possible plans not tried yet, where others were rejected: prices know nothing of pinned shardings.

        Without rematerialisation before with it, few microbatches before many.
        """
        if not self.rejected:
            return
        for remat in (NONE, FULL) if self.wishes.remat == AUTO else (self.wishes.remat,):
            settings = {count: self._setting(count, remat) for count in self.wishes.microbatches}
            known = {count: setting for count, setting in settings.items() if setting in self.attempts}
            hunt = Hunt([count for count in settings if count not in known], self.wishes.memory)
            for count, setting in known.items():
                hunt.needs(count, least_bytes(self._of(setting)))
            while (self.trains or remat != FULL) and (found := hunt.next()) is not None:
                for row in self.try_setting(settings[found]):
                    if row.error is None:
                        yield row
                    if self.hopeless is not None:
                        return
                if short_of_memory(self._of(settings[found])):
                    hunt.needs(found, least_bytes(self._of(settings[found])))

    def _closest(self) -> Iterator[Considered]:
        """Of given stages that prices found too large the setting that needs least, solved: it may fit, or says why."""
        rows = [row for row in self.rows if isfinite(least_bytes([row]))]
        row = min(rows, key=lambda row: least_bytes([row]), default=None)
        if row is not None and self._is_estimate(row) and (self.wishes.given or self.wishes.single):
            self._solve(row.setting)
            yield from [solved for solved in self._of(row.setting) if solved.error is None]

    @property
    def _least_remat(self) -> str:
        """The least rematerialisation that the user allows."""
        return NONE if self.wishes.remat == AUTO else self.wishes.remat

    def _setting(self, count: int, remat: str) -> Setting:
        """A setting with the schedule that the user asks for."""
        return Setting(count, remat, self.wishes.schedule == INTERLEAVED)

    def _of(self, setting: Setting) -> list[Considered]:
        return [row for row in self.rows if row.setting == setting]

    def _by_seconds(self) -> Iterator[Considered]:
        self._climb(sorted(self.wishes.microbatches))
        try_partly(self)
        possible = self.left()
        if self.closer is not None and possible and self.best(possible).setting.remat != NONE:
            try_full(self)
        self._try_interleaving()
        while self.hopeless is None:
            possible = self.left()
            if not possible:
                return
            best = self.best(possible)
            if self._is_estimate(best):
                if len(self.solved & {row.setting for row in possible}) < SOLVED:
                    self._solve(best.setting)
                    try_full(self)
                    continue
                best = self.best([row for row in possible if not self._is_estimate(row)])
            self.given.append(best)
            yield best

    def left(self) -> list[Considered]:
        """Possible plans not yet given out."""
        return [row for row in self.rows if row.error is None and row not in self.given]

    def _is_estimate(self, row: Considered) -> bool:
        return self.closer is not None and not self.attempts[row.setting].exact

    def _solve(self, setting: Setting) -> None:
        """Put exact stages in place of a rough attempt, and what they say in place of its rows."""
        assert self.closer is not None
        self.solved.add(setting)
        attempt = self.attempts[setting] = replace(self.closer(setting), floor=self.attempts[setting].floor)
        rows = self.play(attempt)
        at = next(n for n, row in enumerate(self.rows) if row.setting == setting)
        self.rows = [row for row in self.rows if row.setting != setting]
        self.rows[at:at] = rows

    def _climb(self, counts: Sequence[int]) -> None:
        """Numbers of microbatches up from FIRST as long as it gets better, and down where up was no way."""
        start = max((n for n, count in enumerate(counts) if count <= FIRST), default=0)
        first = best = self._try_count(counts[start])
        position, at, tried, worse = start, start, {start}, 0
        if self.hopeless is not None:
            return
        while self.divides and position + 1 < len(counts) and worse < self._patience(counts[at]):
            position = min(position + (1 if best < INFINITE else 2), len(counts) - 1)
            tried.add(position)
            seconds = self._try_count(counts[position])
            if seconds < best:
                at, best, worse = position, seconds, 0
            elif best < INFINITE:
                worse += 1
        if start < at and at - 1 not in tried and best < INFINITE:
            self._try_count(counts[at - 1])
        if self.divides:
            best = min(best, self._leap(counts[position + 1 :], best))
        if best < first:
            return
        for count in reversed(counts[:start]):
            seconds = self._try_count(count)
            if seconds > best or seconds == best < INFINITE:
                break
            best = seconds

    def _leap(self, counts: Sequence[int], best: float) -> float:
        """Seconds of the best step with numbers of microbatches beyond those where rematerialisation was no quicker,
        as long as a step without it is foreseen to be."""
        if self.wishes.remat != AUTO or best == INFINITE:
            return best
        leapt = False
        for count in counts:
            foreseen, _ = self._foreseen(self._setting(count, NONE))
            if not leapt and not 0.0 < foreseen < best:
                continue
            seconds, leapt = self._try_count(count), True
            if seconds >= best or not self.divides:
                break
            best = seconds
        return best

    def _patience(self, count: int) -> int:
        """How many numbers that are no better end the search: where memory is short, prices jump, and more of them
        need less."""
        short = any(isinstance(r.error, DoesNotFit) for r in self._of_count(count))
        return PATIENT if short or count in self.short else 1

    def _of_count(self, count: int) -> list[Considered]:
        return [r for r in self.rows if r.setting.microbatches == count]

    def _try_count(self, count: int) -> float:
        """One number of microbatches, with the rematerialisation that was asked for, or as much as memory demands.

        The seconds of its best step; infinite where nothing fits.
        """
        chosen = self.wishes.remat
        whole = self._setting(count, self._least_remat)
        expected = self._expected(whole) if chosen == AUTO and self.trains else None
        if expected is not None:
            # Memory is too short for it: what runs again is tried first, and alone where that is quicker.
            least = quickest(self.try_setting(self._setting(count, FULL)))
            if least < expected:
                self.short.add(count)
                return least
        rows = self.try_setting(whole)
        fitting = [r.bytes or 0.0 for r in rows if r.error is None]
        tight = chosen == AUTO and (not fitting or min(fitting) > HALF * self.wishes.memory) and self.trains
        if tight and self.hopeless is None and self._may_gain(whole):
            rows = rows + self.try_setting(self._setting(count, FULL))
        return quickest(rows)

    def _expected(self, setting: Setting) -> float | None:
        """About the seconds of a step without rematerialisation, as foreseen; None where nothing is known, where the
        setting was tried, or where memory would not be short."""
        expected, floor = self._foreseen(setting)
        return expected if expected > (1 + AGAIN) * floor > 0.0 else None

    def _foreseen(self, setting: Setting) -> tuple[float, float]:
        """About the seconds of a step, and those if memory were no object, by the attempt with next fewer microbatches;
        0 where nothing is known, or where the setting was tried."""
        if setting in self.attempts:
            return 0.0, 0.0
        before = [s for s in self.attempts if replace(s, microbatches=setting.microbatches) == setting]
        fewer = max((s.microbatches for s in before if s.microbatches < setting.microbatches), default=0)
        if not fewer:
            return 0.0, 0.0
        attempt, times = self.attempts[replace(setting, microbatches=fewer)], setting.microbatches // fewer
        known = dict(zip(FURTHER, attempt.ahead, strict=False))
        return known.get(times, 0.0), attempt.floor

    def _may_gain(self, setting: Setting) -> bool:
        """Whether rematerialisation may make the step quicker than the best one known without it."""
        least, divides = self.attempts[setting].floor * (1 + AGAIN), self.divides
        for further in self._further(setting) if least else ():
            if quickest(self.rows) <= least:
                break
            self.try_setting(further)
            self.divides = divides
        return quickest(self.rows) > least

    def _further(self, setting: Setting) -> list[Setting]:
        """The same with as many microbatches or more that may be as quick: the first that memory is not foreseen to
        slow down, then those of AHEAD numbers further that it is not expected to be short for."""
        more = [replace(setting, microbatches=c) for c in sorted(self.wishes.microbatches) if c >= setting.microbatches]
        free = [s for s in more if 0.0 < self._foreseen(s)[0] <= self._foreseen(s)[1]]
        return [*free[:1], *(s for s in more[: AHEAD + 1] if self._expected(s) is None)]

    def _try_interleaving(self) -> None:
        """Where the best step fills and drains long: stages that share submeshes, for about as many microbatches."""
        possible = [r for r in self.rows if r.error is None and r.seconds is not None]
        if self.wishes.schedule != AUTO or not self.wishes.interleave or not possible:
            return
        best = self.best(possible)
        waiting = len(set(read_pipeline(self.attempts[best.setting].module))) - 1
        if min(best.bubble, waiting / (best.setting.microbatches + waiting)) > IDLE:
            for count in self.wishes.microbatches:
                if best.setting.microbatches <= 2 * count <= 4 * best.setting.microbatches:
                    self.try_setting(Setting(count, best.setting.remat, interleaved=True))

    def try_setting(self, setting: Setting, stage: Callable[[Setting], Attempt] | None = None) -> list[Considered]:
        """The rows of a setting, tried unless it was; by `stage`, or as is usual."""
        known = setting in self.attempts
        attempt = self.attempts[setting] = self.attempts[setting] if known else (stage or self._stage)(setting)
        self.divides = alpa.get_string(attempt.module.operation, alpa.LEVEL) != "normal"
        if isinstance(attempt.error, StateDoesNotFit):
            self.hopeless = attempt.error
        if known:
            return self._of(setting)
        rows = self.play(attempt)
        self.rows += rows
        return rows

    def _stage(self, setting: Setting) -> Attempt:
        """An attempt; of interleaved stages, whose prices say less, an exact one unless they are much worse."""
        attempt = self.stage(setting)
        if not setting.interleaved or self.closer is None or attempt.exact:
            return attempt
        if self.wishes.schedule == AUTO:
            if attempt.error is not None:
                return attempt
            best = min((r.seconds or 0.0 for r in self.rows if r.error is None), default=INFINITE)
            if min(r.seconds or 0.0 for r in self.play(attempt)) > (1 + DOUBT) * best:
                return attempt
        return self.closer(setting)

    def play(self, attempt: Attempt) -> list[Considered]:
        """The schedules that suit the stages of an attempt, simulated."""
        if attempt.error is None:
            self.trains = has_backward(attempt.module)
        return played(attempt, self.wishes, SLACK if self.closer is not None else 0.0)

    @staticmethod
    def best(rows: Sequence[Considered]) -> Considered:
        """The quickest, or a simple one nearly as quick."""
        return min(rows, key=lambda r: (r.seconds or 0.0) * (1 + WORTH if r.complicated else 1.0))

    def postpone(self, row: Considered, attempt: Attempt) -> bool:
        """Take a row back whose stages, chosen again, make a slower step than another setting, if that is so."""
        now = next((r for r in self.play(attempt) if r.schedule == row.schedule and r.error is None), None)
        others = [r for r in self.left() if r.setting != row.setting and r.seconds is not None]
        if now is None or row.setting in self.postponed or not others or self.best([now, *others]) is now:
            return False
        self.postponed.add(row.setting)
        self.attempts[row.setting] = attempt
        self.rows[self.rows.index(row)] = now
        return True

    def reject(self, row: Considered, error: CompileError) -> None:
        """Note that a row turned out to be impossible."""
        self.rejected |= row.seconds is not None
        if self.wishes.given and isinstance(error, StateDoesNotFit):
            self.hopeless = error
        at = self.rows.index(row)
        self.rows[at] = Considered(row.setting, row.schedule, row.seconds, row.bytes, row.bubble, error)

    def least_error(self) -> CompileError:
        """Why nothing is possible."""
        return self.hopeless or least_error(self.rows, self.closer)

    def record(self, module: ir.Module) -> None:
        """Write what was considered into the plan."""
        rows = [row.attribute(module.context) for row in self.rows]
        module.operation.attributes[alpa.CONSIDERED] = ir.ArrayAttr.get(rows, module.context)
