"""From the stages of a setting to its plan, with no submesh fuller than its memory.

A finished plan may hold more than its stages were chosen for: copies that collectives make. Then the shardings of the
submeshes that are too full are chosen again, with as much less memory for those, and the other stages stay as they are.
Each time that takes a little less than was needed too much, or only as much, or as much as there is at all, where there
is no sharding with less.
Where no sharding is found so, one more layer of these stages runs again, if that is free to choose. Else, or where the
step is longer by more than LONGER, stages are chosen again with less memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.passes.costs.limits import fullest, memory_limits
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.plan_passes import PlanOptions, rest, until_price
from alpa_mlir.passes.schedule_peak import expected_peaks
from alpa_mlir.passes.settings import Attempt, Considered, Setting, too_large

STAGINGS, TURNS = 3, 4
"""How often stages are chosen at most, and how often their shardings are for each."""
CLOSE, LONGER = 0.005, 0.05
"""Where a plan that fits takes so much longer than one that was too large, one with memory between theirs is tried, and
other stages are."""
ROUNDED = 1e-6
"""The part by which a limit must be larger than what just keeps it."""
NEAR = 0.9
"""How far that memory is from what fits, in parts of the way to where the plan is expected to be just too large."""
MARGIN, STEP = 1.05, 0.008
"""How much less memory there is each time, in parts of what the plan before needed too much, and from the second time
on of the memory itself: other plans need other copies."""
SHARES = (0.5, 0.0)
"""The parts of that STEP that are tried where there is no sharding with so much less."""
HELP, SMALL = 0.5, 0.02
"""Nothing more is tried where a plan became smaller by less than the part HELP of the memory taken away, unless it
needs only the part SMALL of the memory too much: what is gathered for a moment grows as less is held."""
COPIES = " with the copies that collectives make"

Run = Callable[[ir.Module, Sequence[str], list[Remark]], bool]
"""Runs passes; True where the last one to run was among them."""


class Choice(Protocol):
    """What is asked of the joint choice (`joint.JointChoice`, which says what each is)."""

    def postpone(self, row: Considered, attempt: Attempt) -> bool:
        """Take a row back whose stages, chosen again, make a slower step than another setting, if that is so."""

    def again(self, row: Considered, attempt: Attempt, crowded: Sequence[str], error: CompileError) -> bool:
        """Reject a row whose plan is too large on `crowded` submeshes, for a setting where one more layer of each of
        their stages runs again; whether there is one."""

    def record(self, module: ir.Module) -> None:
        """Write what was considered into the plan."""


@dataclass(frozen=True)
class Carried:
    """A plan as far as it came: bytes per device that each submesh needs, and that are there; its seconds, as the stage
    search reckons them; bytes per device that its stages were allowed, and that they need by their shardings."""

    attempt: Attempt
    needed: tuple[float, ...]
    there: tuple[float, ...]
    seconds: float
    allowed: tuple[float, ...]
    held: tuple[float, ...] = ()

    @property
    def used(self) -> tuple[float, ...]:
        """What is needed by the shardings, as far as known, of what was allowed."""
        return tuple(map(min, self.allowed, self.held or self.allowed))

    @property
    def over(self) -> float:
        """The most bytes that a submesh needs too much."""
        return max((max(0.0, n - t) for n, t in zip(self.needed, self.there, strict=True)), default=0.0)

    def less(self, turn: float) -> tuple[float, ...]:
        """What stages are allowed next; in turn 0 the most that may do."""
        known = zip(self.needed, self.there, self.allowed, self.used, strict=True)
        return tuple(u - MARGIN * (n - t) - turn * STEP * t if n > t else a for n, t, a, u in known)

    def helps(self, before: Carried) -> bool:
        """Whether this plan is so much smaller than the one before that it is of use to go on."""
        taken = max(a - b for a, b in zip(before.used, self.allowed, strict=True))
        return before.over - self.over >= HELP * taken or self.over <= SMALL * max(self.there)


@dataclass(frozen=True)
class Turns:
    """Plans of the same stages, in the order in which they were made."""

    plans: list[Carried]

    @property
    def full(self) -> list[Carried]:
        """Those that are too large."""
        return [plan for plan in self.plans if plan.over]

    @property
    def fitting(self) -> list[Carried]:
        """Those that are not."""
        return [plan for plan in self.plans if not plan.over]

    @property
    def help(self) -> bool:
        """Whether it is of use to go on with less memory, and there is some left."""
        full = self.full
        return min(self.less()) > 0 and (len(full) < 2 or full[-1].helps(full[-2]))

    def less(self, share: float = 1.0) -> tuple[float, ...]:
        """What stages are allowed after one that was too large; `share`: of the STEP less."""
        return self.full[-1].less(share * (len(self.full) - 1))

    def least(self, least: float) -> tuple[float, ...]:
        """What stages are allowed where one needs `least` bytes at least, more than it was allowed; empty where the
        plan would still be much too large."""
        plan = self.full[-1]
        known = list(zip(plan.needed, plan.there, plan.used, self.less(), strict=True))
        allowed = tuple(min(u, max(a, (1 + ROUNDED) * least)) if n > t else a for n, t, u, a in known)
        close = all(n - (u - a) <= (1 + CLOSE) * t for (n, t, u, _), a in zip(known, allowed, strict=True) if n > t)
        return allowed if close else ()

    def following(self, share: float) -> tuple[float, ...]:
        """What they are allowed in the next turn: less, or something between what was too large and what takes long;
        empty where there is none."""
        full, fitting = self.full, self.fitting
        if not fitting:
            return self.less(share) if self.help else ()
        longer = full and fitting[-1].seconds > (1 + CLOSE) * full[-1].seconds
        return between(fitting[-1], full[-1]) if longer else ()

    def error(self) -> DoesNotFit:
        """What the first one that is too large needs."""
        first = self.full[0]
        return too_large(*fullest(first.needed, first.there), COPIES)


@dataclass(frozen=True)
class Finisher:
    """The last passes for rows of the joint choice; `stage`: exact stages with so many bytes per device (0: what is
    there)."""

    options: PlanOptions
    run: Run
    stop_after: str
    stage: Callable[[Setting, float], Attempt]
    choice: Choice

    def finished(self, row: Considered, attempt: Attempt) -> Attempt | None:
        """The plan of a row, or its attempt with an error; None where another setting is quicker than what fits."""
        best: Carried | None = None
        error: CompileError | None = None
        memory = 0.0
        for staging in range(STAGINGS):
            if staging or not attempt.exact:
                attempt = self.stage(row.setting, memory)
            if attempt.error is None and staging and self.choice.postpone(row, attempt):
                return None
            try:
                turns = self._turns(row, attempt, memory)
            except DoesNotFit as short:
                error = error or short.without_frames()
                break
            best = min([*([best] if best else []), *turns.fitting], key=lambda plan: plan.seconds, default=None)
            if best is not None and (staging or best.seconds <= (1 + LONGER) * turns.plans[0].seconds):
                break
            error = error or turns.error()
            if best is None and not staging and self.choice.again(row, attempt, _crowded(turns.full[0]), error):
                return None
            if not turns.help:
                break
            memory = min(turns.less())
        return best.attempt if best is not None else replace(attempt, error=error)

    def _turns(self, row: Considered, attempt: Attempt, memory: float) -> Turns:
        """Plans of the same stages: with less memory for submeshes that were too full until one fits, then with memory
        between. DoesNotFit where there is none at all."""
        if attempt.error is not None:
            raise attempt.error
        turns, share, shares = Turns([]), 1.0, list(SHARES)
        allowed = tuple(memory or there for there in memory_limits(attempt.module))
        while len(turns.plans) < TURNS:
            try:
                plan = self.carried(row, attempt, allowed, bool(turns.plans or memory))
            except DoesNotFit as short:
                if not turns.plans:
                    raise
                if len(turns.plans) == 1:
                    allowed, shares = turns.least(short.least) if shares else (), []
                elif turns.fitting or not shares:
                    break
                else:
                    share = shares.pop(0)
                    allowed = turns.less(share)
            else:
                turns.plans.append(plan)
                allowed = turns.following(share)
            if not allowed:
                break
        return turns

    def carried(self, row: Considered, attempt: Attempt, allowed: tuple[float, ...], said: bool) -> Carried:
        """From level 4 to a plan; `said`: passes must be told what is allowed.

        Where a submesh is too full the module may be short of a plan: what is needed is known before it is localized.
        """
        module, remarks = clone_module(attempt.module), list(attempt.remarks)
        there = memory_limits(module)
        if self.stop_after == "":
            self.choice.record(module)
        made = replace(attempt, module=module)
        texts = until_price(self.options, row.schedule, allowed if said else ())
        if self.stop_after == "alpa-stages" or self.run(module, texts, remarks):
            return Carried(replace(made, remarks=tuple(remarks)), there, there, 0.0, allowed)
        seconds, held = float(ir.FloatAttr(module.operation.attributes[alpa.COST]).value), _held(module)
        needed = expected_peaks(module, row.schedule)
        if self.stop_after or not needed or all(n <= t for n, t in zip(needed, there, strict=True)):
            self.run(module, rest(self.options, row.schedule), remarks)
            needed = _peaks(module)
        needed = there if self.stop_after or not needed else needed
        return Carried(replace(made, remarks=tuple(remarks)), needed, there, seconds, allowed, held)


def between(fitting: Carried, full: Carried) -> tuple[float, ...]:
    """What stages are allowed for a plan that is nearly too large, as far as that is between two others."""
    found = []
    known = zip(fitting.allowed, full.used, fitting.needed, full.needed, fitting.there, strict=True)
    for low, high, less, more, there in known:
        part = NEAR * (there - less) / (more - less) if more > there else 1.0
        found.append(low + part * (high - low))
    return tuple(found)


def _crowded(plan: Carried) -> list[str]:
    """The submeshes on which a plan is too large."""
    meshes = dict.fromkeys(ir.StringAttr(e["mesh"]).value for e in stage_entries(plan.attempt.module))
    return [mesh for mesh, n, t in zip(meshes, plan.needed, plan.there, strict=True) if n > t]


def _held(module: ir.Module) -> tuple[float, ...]:
    """Bytes per device that the stages of each submesh need by their shardings; infinite where several share it."""
    found: dict[str, float] = {}
    for entry in stage_entries(module):
        mesh = ir.StringAttr(entry["mesh"]).value
        found[mesh] = inf if mesh in found else float(ir.IntegerAttr(entry["memory_bytes"]).value)
    return tuple(found.values())


def _peaks(module: ir.Module) -> tuple[float, ...]:
    """Bytes per device that a plan needs on each submesh, where it says so."""
    entries = {ir.StringAttr(e["mesh"]).value: e for e in stage_entries(module)}.values()
    return tuple(float(ir.IntegerAttr(e["peak_bytes"]).value) for e in entries if "peak_bytes" in e)
