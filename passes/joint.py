"""The joint choice of microbatch count, schedule and rematerialisation, by simulation, under memory.

Each number of microbatches, with and without rematerialisation, gives other layers, stages and costs: an
*attempt*.  The stages of an attempt are then played under every schedule that suits them, and the shortest step
that fits in memory wins.  Three things are done in turn:

* settings are tried, at prices, as long as one may be quicker than the best so far: the one first whose step is
  foreseen to be shortest (`forecasts.py`), from FIRST microbatches on. No layer runs again at first; where memory is
  too short for what would be quicker, as many layers run again as it demands (`inter/partial_remat.py`);
* interleaving, which cuts stages of its own, only where the best step so far idles more than IDLE of the time while
  its pipeline fills and drains (that is what it shortens; stages that are uneven stay so), and exactly only where at
  its prices the step is less than DOUBT longer than the best, the best of several numbers of microbatches first. On
  large clusters it is not tried at all: the optima of its stages take minutes there;
* the stages of the best setting are solved. How much longer its step is then than at prices corrects the others: of up
  to SOLVED settings that still look better by WORTH (of another kind than those solved: better at all) the stages are
  solved as well, and the best of these wins.

What is more complicated (another schedule than 1F1B, recomputation) must gain more than WORTH.  The plan records
what else was considered (`alpa.considered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf, isfinite

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_pipeline
from alpa_mlir.passes.corrections import DOUBT, Corrections, Kind
from alpa_mlir.passes.fewest import Hunt
from alpa_mlir.passes.forecasts import Forecasts
from alpa_mlir.passes.intra.problem import StateDoesNotFit
from alpa_mlir.passes.more_again import MORE, more_again
from alpa_mlir.passes.no_plan import least_bytes, least_error, short_of_memory
from alpa_mlir.passes.played import played
from alpa_mlir.passes.settings import (
    AUTO,
    FULL,
    INTERLEAVED,
    NONE,
    PARTLY,
    WORTH,
    Attempt,
    Considered,
    Setting,
    Wishes,
    quickest,
)
from alpa_mlir.passes.stages import has_backward

FIRST, IDLE = 8, 0.1
SOLVED = 3
"""Of how many settings at most stages are solved where prices found the best: as long as another's price is better."""
LEEWAY = 0.05
"""Plans that need this part of the memory too much by estimates may fit when their stages are solved."""
SLOWER, FINISHED = 0.05, 3
"""The part by which a finished plan's step must be longer than foreseen, and another's shorter, for that to be finished
as well; how often."""
TIGHT = 0.95
"""Memory is called tight where a step needs more than this part of it."""


class JointChoice:
    """The search over settings; `stage` makes an attempt, which is kept while it may still be chosen.

    `closer`, where attempts are rough, makes an exact one. What a rough one needs may be wrong by LEEWAY.
    """

    def __init__(
        self, wishes: Wishes, stage: Callable[[Setting], Attempt], closer: Callable[[Setting], Attempt] | None = None
    ) -> None:
        self.wishes, self.stage, self.closer = wishes, stage, closer
        self.attempts: dict[Setting, Attempt] = {}
        self.rows: list[Considered] = []
        self.found: dict[Setting, Setting] = {}
        """Where layers that run again were chosen stage by stage: the setting that says which."""
        self.trains = True
        self.mixing = inf
        """The least number of microbatches that the program could not be split into."""
        self.corrections = Corrections()
        self.given: list[Considered] = []
        """Possible plans given out; `postponed`: the settings of those that came back."""
        self.postponed: set[Setting] = set()
        self.hopeless: StateDoesNotFit | None = None
        """Why no setting can be."""
        self.finished = 0
        """How many plans were finished that took longer than was foreseen."""
        self.asked_again = 0
        """How many settings were tried because plans were too large."""
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

    def foreseen(self) -> Considered:
        """The best plan at prices, its stages not solved unless they are interleaved: prices say less of those.

        CompileError where there is none.
        """
        self._explore()
        self._try_interleaving()
        possible = self.left()
        if not possible:
            raise self.least_error()
        return self.best(possible)

    def _fewest(self) -> Iterator[Considered]:
        """One stage never idles: the fewest microbatches are quickest where they fit, and nothing need be compared."""
        if self.wishes.single:
            setting = Setting(self.wishes.microbatches[0], self.wishes.least_remat)
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
            settings = {count: self.wishes.setting(count, remat) for count in self.wishes.microbatches}
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
            self._solve(row)
            yield from [solved for solved in self._of(row.setting) if solved.error is None]

    def _of(self, setting: Setting) -> list[Considered]:
        return [row for row in self.rows if row.setting == setting]

    def _by_seconds(self) -> Iterator[Considered]:
        self._explore()
        self._try_interleaving()
        while self.hopeless is None:
            if not self.left() and not self.rejected:
                # What came back was not foreseen at all: it may be short of memory, and others need less.
                self._explore()
            possible = self.left()
            if not possible:
                return
            exact = [row for row in possible if not self._is_estimate(row)]
            estimates = [row for row in possible if self._is_estimate(row) and (not exact or self._may_win(row, exact))]
            if estimates and len({row.setting for row in exact}) < SOLVED:
                self._solve(self.best(estimates))
                self._explore()
                continue
            best = self.best(exact)
            self.given.append(best)
            yield best

    def _may_win(self, row: Considered, exact: Sequence[Considered]) -> bool:
        """Whether an estimate is better than what was solved by more than may be gained by chance; of a kind of which
        nothing was solved, prices may be wrong by more: then whether it is better at all."""
        best = self.best(exact)
        if not self.corrections.knows(self._kind(row)):
            return self._corrected(row) < (best.seconds or 0.0)
        return (1 + WORTH) * self._key(row) < self._key(best)

    def left(self) -> list[Considered]:
        """Possible plans not yet given out."""
        return [row for row in self.rows if row.error is None and row not in self.given]

    def _is_estimate(self, row: Considered) -> bool:
        return self.closer is not None and not self.attempts[row.setting].exact

    def _solve(self, found: Considered) -> None:
        """Put exact stages in place of a rough attempt, and what they say in place of its rows."""
        assert self.closer is not None
        setting, kind = found.setting, self._kind(found)
        rough, exact = self.attempts[setting], self.closer(setting)
        attempt = self.attempts[setting] = replace(exact, floor=rough.floor, eager=rough.eager, ahead=rough.ahead)
        rows = self.play(attempt)
        now = next((row.seconds for row in rows if row.schedule == found.schedule), None)
        if now and found.seconds:
            self.corrections.note(kind, now / found.seconds)
        self._put(rows)

    def _put(self, rows: Sequence[Considered]) -> None:
        """Put rows of a setting in place of those that it has."""
        setting = rows[0].setting
        at = next(n for n, row in enumerate(self.rows) if row.setting == setting)
        self.rows = [row for row in self.rows if row.setting != setting]
        self.rows[at:at] = rows

    def _kind(self, row: Considered) -> Kind:
        """What prices of a row may be wrong by alike."""
        tight = (row.bytes or 0.0) > TIGHT * self.wishes.memory
        return Kind(row.setting.remat != NONE, tight, row.setting.interleaved, self._submeshes(row) > 1)

    def _submeshes(self, row: Considered) -> int:
        """How many submeshes the stages of a possible row have."""
        return len(set(read_pipeline(self.attempts[row.setting].module)))

    def _explore(self) -> None:
        """Try settings, the one first that is foreseen to be quickest, as long as that may be better than the best."""
        counts = sorted(self.wishes.microbatches)
        count = max([c for c in counts if c <= FIRST] or counts[:1])
        self.try_setting(self.wishes.setting(count, self.wishes.least_remat))
        while self.hopeless is None:
            setting = self._promising(counts) or self._partly() or self._without_again()
            if setting is None:
                return
            self.try_setting(setting)

    def _partly(self) -> Setting | None:
        """Where layers of given stages run again: the best setting with as few of each stage as memory demands."""
        best = self._leading() if self.wishes.given and self.wishes.remat == AUTO else None
        if best is None or best.remat != FULL:
            return None
        partly = replace(best, remat=PARTLY)
        return partly if partly not in self.attempts else None

    def _without_again(self) -> Setting | None:
        """The best setting but that no layers run again: forecast as 1F1B, other schedules may do much better."""
        free = self.wishes.remat == self.wishes.schedule == AUTO
        best = self._leading() if free and not self.wishes.given else None
        if best is None or best.remat == self.wishes.least_remat:
            return None
        plain = self.wishes.setting(best.microbatches, self.wishes.least_remat)
        return plain if plain not in self.attempts and not self._forecasts.is_too_large(plain) else None

    def _leading(self) -> Setting | None:
        """The best setting so far whose stages are not interleaved."""
        rows = [row for row in self.left() if not row.setting.interleaved]
        return self.best(rows).setting if rows else None

    @property
    def _forecasts(self) -> Forecasts:
        return Forecasts(self.wishes, self.attempts, self.rows, self.found, self.trains, self.mixing)

    def _promising(self, counts: Sequence[int]) -> Setting | None:
        """The setting to try next."""
        forecasts = self._forecasts
        least = min(map(self._corrected, self.left()), default=inf)
        found: list[tuple[float, float, int, Setting]] = []
        for count in (c for c in counts if c < self.mixing):
            for setting, seconds, expected in forecasts.of(count):
                seconds *= self.corrections.of(Kind(setting.remat != NONE, True, setting.interleaved))
                if not forecasts.is_too_large(setting) if least == inf else seconds < (1 - WORTH) * least:
                    found.append((expected, forecasts.distance(count), -count, setting))
        return min(found, key=lambda f: f[:3])[-1] if found else None

    def _try_interleaving(self) -> None:
        """Where the best step fills and drains long: stages that share submeshes, for about as many microbatches."""
        possible = [r for r in self.rows if r.error is None and r.seconds is not None]
        if self.wishes.schedule != AUTO or not self.wishes.interleave or not possible:
            return
        best = self.best(possible)
        waiting = self._submeshes(best) - 1
        if min(best.bubble, waiting / (best.setting.microbatches + waiting)) > IDLE:
            for count in self.wishes.microbatches:
                if best.setting.microbatches <= 2 * count <= 4 * best.setting.microbatches:
                    self.try_setting(Setting(count, best.setting.remat, interleaved=True))
            self._solve_interleaved()

    def _solve_interleaved(self) -> None:
        """Solve interleaved stages, whose prices say less than those of others, unless they are much worse than the
        best: those first whose prices are best, and others as long as they may be better than those solved."""
        while True:
            possible = [r for r in self.rows if r.error is None and r.seconds is not None]
            mine = [r for r in possible if r.setting.interleaved]
            estimates = [r for r in mine if self._is_estimate(r)]
            solved = [r for r in mine if not self._is_estimate(r)]
            if not estimates:
                return
            row = self.best(estimates)
            if self._corrected(row) > (1 + DOUBT) * quickest(possible) or (solved and not self._may_win(row, solved)):
                return
            self._solve(row)

    def try_setting(self, setting: Setting, stage: Callable[[Setting], Attempt] | None = None) -> list[Considered]:
        """The rows of a setting, tried unless it was; by `stage`, or as is usual."""
        if setting in self.attempts:
            return self._of(setting)
        attempt = self.attempts[setting] = (stage or self._stage)(setting)
        if alpa.get_string(attempt.module.operation, alpa.LEVEL) == "normal":
            self.mixing = min(self.mixing, setting.microbatches)
        if isinstance(attempt.error, StateDoesNotFit):
            self.hopeless = attempt.error
        if setting.remat == PARTLY:
            # What needs least is that all of them run again.
            found = attempt.setting if attempt.error is None else replace(setting, remat=FULL, flying="")
            self.found[setting] = found
            if found in self.attempts:
                return self._of(found)
            attempt = self.attempts[found] = replace(attempt, setting=found)
        rows = self.play(attempt)
        self.rows += rows
        return rows

    def _stage(self, setting: Setting) -> Attempt:
        """An attempt; where interleaved stages are asked for, whose prices say less, an exact one."""
        attempt = self.stage(setting)
        if self.wishes.schedule != INTERLEAVED or self.closer is None or attempt.exact:
            return attempt
        return self.closer(setting)

    def play(self, attempt: Attempt) -> list[Considered]:
        """The schedules that suit the stages of an attempt, simulated."""
        if attempt.error is None:
            self.trains = has_backward(attempt.module)
        return played(attempt, self.wishes, LEEWAY if self.closer is not None else 0.0)

    def best(self, rows: Sequence[Considered]) -> Considered:
        """The quickest, or a simple one nearly as quick."""
        return min(rows, key=self._key)

    def _key(self, row: Considered) -> float:
        """Seconds of a step, and WORTH of them more for each thing that may be against it."""
        nearly_full = self._is_estimate(row) and (row.bytes or 0.0) > TIGHT * self.wishes.memory
        return self._corrected(row) * (1 + WORTH) ** (row.complicated + nearly_full)

    def _corrected(self, row: Considered) -> float:
        """Seconds of a step, where its stages were not solved with what prices are expected to be wrong by."""
        return (row.seconds or 0.0) * (self.corrections.of(self._kind(row)) if self._is_estimate(row) else 1.0)

    def postpone(self, row: Considered, attempt: Attempt) -> bool:
        """Take a row back whose stages, chosen again, make a slower step than another setting, if that is so."""
        rows = self.play(attempt)
        now = next((replace(r, error=None) for r in rows if r.schedule == row.schedule), None)
        others = [r for r in self.left() if r.setting != row.setting and r.seconds is not None]
        if now is None or row.setting in self.postponed or not others or self.best([now, *others]) is now:
            return False
        self.postponed.add(row.setting)
        self.attempts[row.setting] = attempt
        self._put([now if r.schedule == row.schedule else r for r in rows])
        return True

    def outdone(self, row: Considered, seconds: float, least: float) -> bool:
        """Note what the step of a finished plan takes; whether another is expected to be quicker than `least`, what the
        quickest finished one takes, by so much that it is worth to finish it as well.

        A plan may take longer than was foreseen where its shardings had to be chosen with less memory.
        """
        if row.seconds is None or seconds <= (1 + SLOWER) * row.seconds:
            return False
        self.finished += 1
        now = replace(row, seconds=seconds)
        self.rows[self.rows.index(row)] = now
        self.given.append(now)
        others = [r for r in self.left() if r.seconds is not None]
        return self.finished < FINISHED and bool(others) and (1 + SLOWER) * self._key(self.best(others)) < least

    def reject(self, row: Considered, error: CompileError) -> None:
        """Note that a row turned out to be impossible."""
        self.rejected |= row.seconds is not None
        if self.wishes.given and isinstance(error, StateDoesNotFit):
            self.hopeless = error
        self.rows[self.rows.index(row)] = replace(row, error=error)

    def again(self, row: Considered, attempt: Attempt, crowded: Sequence[str], error: CompileError) -> bool:
        """Reject a row whose plan is too large on `crowded` submeshes, for a setting where one more layer of each of
        their stages runs again; whether there is one."""
        free = self.wishes.remat == AUTO and self.trains and not (self.wishes.given or row.setting.interleaved)
        setting = replace(row.setting, remat=more_again(attempt.module, crowded)) if free else row.setting
        if setting == row.setting or self.asked_again == MORE:
            return False
        self.asked_again += setting not in self.attempts
        self.reject(row, error)
        self.try_setting(setting, self.closer)
        return True

    def least_error(self) -> CompileError:
        """Why nothing is possible."""
        return self.hopeless or least_error(self.rows, self.closer)

    def record(self, module: ir.Module) -> None:
        """Write what was considered into the plan."""
        rows = [row.attribute(module.context) for row in self.rows]
        module.operation.attributes[alpa.CONSIDERED] = ir.ArrayAttr.get(rows, module.context)
