"""What the joint choice (`joint.py`) is between: settings, what the user wishes of them, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.words import needed_text

AUTO, NONE, FULL, PARTLY = "auto", "none", "full", "partly"
"""Rematerialisation: to be chosen; of no layers, of all; of those that memory demands, stage by stage."""
INTERLEAVED, SIMPLE = "interleaved", "1f1b"
FORWARD_ONLY = "inference"

WORTH = 0.01
"""What is more complicated, or takes long to find out, must gain more than this part of a step."""


@dataclass(frozen=True)
class Setting:
    """What an attempt fixes: microbatches, which layers are rematerialised, whether stages share submeshes."""

    microbatches: int
    remat: str = NONE
    interleaved: bool = False
    flying: str = ""
    """The schedule whose microbatches in flight stages are chosen for, where it is not the usual one."""

    @property
    def told(self) -> str:
        """In words."""
        count = f"{self.microbatches} microbatch{'es' * (self.microbatches > 1)}"
        layers = {NONE: "", FULL: ", all layers rematerialised"}
        return count + layers.get(self.remat, f", layers {self.remat} rematerialised")


@dataclass(frozen=True)
class Considered:
    """A plan that was considered: its setting, schedule, simulated seconds and peak bytes, or why it cannot be.

    Seconds are None where the stages were not searched, so that no estimate exists.
    """

    setting: Setting
    schedule: str
    seconds: float | None = None
    bytes: float | None = None
    bubble: float = 0.0
    error: CompileError | None = None

    @property
    def complicated(self) -> bool:
        """Whether it must be worth it."""
        return self.schedule not in (SIMPLE, FORWARD_ONLY) or self.setting.remat != NONE

    def attribute(self, context: ir.Context) -> ir.Attribute:
        """As a dictionary for `alpa.considered`."""
        entries = {
            "microbatches": alpa.i64(self.setting.microbatches, context),
            "schedule": alpa.string(self.schedule, context),
            "remat": alpa.string(self.setting.remat, context),
        }
        if self.error is not None:
            entries["error"] = alpa.string(self.error.message, context)
        if self.bytes is not None:
            entries["bytes"] = alpa.i64(ceil(self.bytes), context)
        if self.seconds is not None:
            with ir.Location.unknown(context):
                entries["seconds"] = ir.FloatAttr.get(ir.F64Type.get(context), self.seconds)
        return ir.DictAttr.get(entries, context)


@dataclass(frozen=True)
class Attempt:
    """A module staged under one setting, and the remarks of the passes; or the error."""

    setting: Setting
    module: ir.Module
    remarks: tuple[Remark, ...] = ()
    error: CompileError | None = None
    floor: float = 0.0
    """Seconds that a step takes at least, however much memory there is, as far as known; `eager`: where stages do not
    wait for transfers."""
    eager: float = 0.0
    ahead: tuple[float, ...] = ()
    """Where memory is short: about the seconds of a step with FURTHER times as many microbatches."""
    exact: bool = False
    """Whether the stages were solved, rather than priced."""


@dataclass(frozen=True)
class Wishes:
    """What the user fixed: numbers of microbatches to choose from, a schedule or auto, layers to rematerialise or auto.

    `memory` in bytes per device, of those that have least. `single`: all is on one submesh. `given`: the user says
    stages and meshes. `interleave`: interleaving may be tried where no schedule is given. `stages`: how many there are,
    0: to be chosen.
    """

    microbatches: tuple[int, ...]
    schedule: str
    remat: str
    memory: float
    single: bool = False
    given: bool = False
    interleave: bool = True
    stages: int = 0

    @property
    def least_remat(self) -> str:
        """The least rematerialisation that is allowed."""
        return NONE if self.remat == AUTO else self.remat

    def setting(self, count: int, remat: str, flying: str = "") -> Setting:
        """A setting with the schedule that is asked for."""
        return Setting(count, remat, self.schedule == INTERLEAVED, flying)


def too_large(peak: float, memory: float, how: str = "") -> DoesNotFit:
    """The error for a plan that does not fit."""
    text = f"no plan fits in {memory / 1e6:.6g} MB per device: this one needs {needed_text(peak)}{how}"
    return DoesNotFit(text, least=peak)


def quickest(rows: Sequence[Considered]) -> float:
    """Seconds of the quickest plan; infinite where none can be."""
    return min((r.seconds or 0.0 for r in rows if r.error is None), default=float("inf"))
