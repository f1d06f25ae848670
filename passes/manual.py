"""Plans made by hand: stages, submeshes and what else the planner would choose, from a small TOML file.

    microbatches = 8                    # all of these may be left to the planner
    schedule = "1f1b"
    remat = "none"
    layers = 8
    constrain = ["x=data", "y=tensor"]  # shardings, docs/constraints.md

    stages = 2                          # equal stages on equal submeshes …
    mesh = "2x2"
    chunks = 1                          # stages that share a submesh in turn

    [[stage]]                           # … or each by itself
    layers = "0-3"
    mesh = "2x2"
    devices = "0-3"

The stages become attributes of the module, as if the program had come with them: `alpa.stages` and `sdy.mesh`, which
`alpa-stages` takes as they are.  A hand-written plan is then sharded, priced and run like any other.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh, declare_mesh, parse_mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.inter.schedules import KINDS
from alpa_mlir.passes.intra.constraints import parse_constraints
from alpa_mlir.passes.number_list import ascending_ranges, number_text

MOST = 65536
"""More stages, layers or microbatches are a slip of the pen."""


@dataclass(frozen=True)
class ManualStage:
    """A stage by hand: its mesh, devices (row-major), and first and last layer, where they are said."""

    shape: tuple[int, ...]
    devices: tuple[int, ...]
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class ManualPlan:
    """What a file decides: stages, and settings; 0 and "" leave the choice to the planner."""

    stages: tuple[ManualStage, ...]
    microbatches: int = 0
    layers: int = 0
    schedule: str = ""
    remat: str = ""
    constrain: str = ""


def parse_manual(text: str, filename: str, cluster: Cluster) -> ManualPlan:
    """A plan from TOML text for a cluster. CompileError at its line of `filename` for what is wrong."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        message, _, place = str(e).partition(" (at ")
        numbers = re.findall(r"[0-9]+", place)
        line, column = numbers if len(numbers) == 2 else (str(text.count("\n") + 1), "1")
        raise CompileError(f"not a plan by hand: {message}", f"{filename}:{line}:{column}") from None
    return _Reader(table, lambda key, stage=None: _position(text, filename, key, stage), cluster).plan()


def _position(text: str, filename: str, key: str, stage: int | None) -> str:
    """Where a key stands at the top, or in the stage of a number; else where that stage, or the file, begins."""
    headers = [m.start() for m in re.finditer(r"^\s*\[\[\s*stage", text, re.MULTILINE)]
    bounds = [0, *headers, len(text)]
    first, last = bounds[0 if stage is None else stage + 1], bounds[1 if stage is None else stage + 2]
    found = re.compile(rf"^[ \t]*(\[\[)?[ \t]*({re.escape(key)})\b", re.MULTILINE).search(text, first, last)
    at = found.start(2) if found is not None else text.find("[", first, last) if stage is not None else 0
    return f"{filename}:{text.count(chr(10), 0, at) + 1}:{at - text.rfind(chr(10), 0, at)}"


_KEYS = ("microbatches", "schedule", "remat", "layers", "constrain", "stages", "mesh", "chunks", "stage")
_STAGE_KEYS = ("layers", "mesh", "devices")


@dataclass(frozen=True)
class _Reader:
    """Typed look-ups; `where(key, stage)` locates a key, at the top or in a stage."""

    table: Mapping[str, Any]
    where: Callable[..., str]
    cluster: Cluster

    def plan(self) -> ManualPlan:
        self._known(self.table, _KEYS)
        listed = self.table.get("stage", [])
        if bool(listed) == ("stages" in self.table):
            raise CompileError("a plan by hand says stages = N and mesh, or lists each [[stage]]", self.where("stages"))
        stages = self._listed(listed) if listed else self._equal()
        self._shared(stages)
        schedule, remat = self._text("schedule"), self._text("remat")
        if schedule not in ("", *KINDS):
            raise CompileError(f"schedule must be one of {', '.join(KINDS)}, got {schedule!r}", self.where("schedule"))
        if remat not in ("", "none", "full") and ascending_ranges(remat) is None:
            raise CompileError(f"remat must be none, full or numbers such as 0-3,5, got {remat!r}", self.where("remat"))
        counts = self._count("microbatches"), self._count("layers")
        return ManualPlan(stages, *counts, schedule, remat, self._constraints())

    def _shared(self, stages: Sequence[ManualStage]) -> None:
        """Stages share all of their devices, and then their mesh, or none."""
        owners: dict[int, ManualStage] = {}
        for number, stage in enumerate(stages):
            for device in stage.devices:
                other = owners.setdefault(device, stage)
                if (other.devices, other.shape) != (stage.devices, stage.shape):
                    raise CompileError(
                        f"stage {number} shares device {device} with another stage: stages share all their devices and "
                        "their mesh, or none",
                        self.where("stage", number),
                    )

    def _known(self, table: Mapping[str, Any], keys: tuple[str, ...], number: int | None = None) -> None:
        for key in table:
            if key not in keys:
                raise CompileError(f"unknown key {key}: there are {', '.join(keys)}", self.where(key, number))

    def _count(self, key: str) -> int:
        value = self.table.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
            raise CompileError(f"{key} must be a whole number up to {MOST}, got {value!r}", self.where(key))
        return value

    def _text(self, key: str) -> str:
        value = self.table.get(key, "")
        if not isinstance(value, str):
            raise CompileError(f"{key} must be text, got {value!r}", self.where(key))
        return value

    def _constraints(self) -> str:
        value = self.table.get("constrain", [])
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(v, str) for v in listed):
            raise CompileError(f"constrain must be text or a list of texts, got {value!r}", self.where("constrain"))
        text = "; ".join(listed)
        try:
            parse_constraints(text)
        except CompileError as e:
            raise CompileError(e.message, self.where("constrain")) from None
        return text

    def _shape(self, table: Mapping[str, Any], number: int | None) -> tuple[int, ...]:
        text = table.get("mesh", "")
        try:
            return parse_mesh(text if isinstance(text, str) else repr(text))
        except CompileError as e:
            raise CompileError(e.message, self.where("mesh", number)) from None

    def _equal(self) -> tuple[ManualStage, ...]:
        count, shape = self._count("stages"), self._shape(self.table, None)
        chunks = self._count("chunks") or 1
        if not count or count % chunks:
            raise CompileError(f"{count} stages cannot be dealt out {chunks} to a submesh", self.where("stages"))
        lanes, size = count // chunks, prod(shape)
        if lanes * size > self.cluster.device_count:
            raise CompileError(
                f"{lanes} submeshes of {size} devices are more than the cluster's {self.cluster.device_count}",
                self.where("stages"),
            )
        devices = [tuple(range(lane * size, (lane + 1) * size)) for lane in range(lanes)]
        return tuple(ManualStage(shape, devices[s % lanes]) for s in range(count))

    def _listed(self, listed: object) -> tuple[ManualStage, ...]:
        if not isinstance(listed, list) or not all(isinstance(s, dict) for s in listed):
            raise CompileError("stages are listed as [[stage]]", self.where("stage"))
        stages: list[ManualStage] = []
        first = 0
        for number, table in enumerate(listed):
            self._known(table, _STAGE_KEYS, number)
            shape = self._shape(table, number)
            devices = self._numbers(table, "devices", number) or tuple(range(first, first + prod(shape)))
            if len(devices) != prod(shape) or max(devices) >= self.cluster.device_count:
                raise CompileError(
                    f"stage {number} needs {prod(shape)} of the cluster's {self.cluster.device_count} devices, got "
                    f"{number_text(devices)}",
                    self.where("devices" if "devices" in table else "mesh", number),
                )
            layers = self._numbers(table, "layers", number)
            stages.append(ManualStage(shape, devices, (layers[0], layers[-1]) if layers else None))
            first = max(first, devices[-1] + 1)
        return tuple(stages)

    def _numbers(self, table: Mapping[str, Any], key: str, number: int) -> tuple[int, ...]:
        """The numbers of a range or list such as "0-3"; () where nothing is said."""
        if key not in table:
            return ()
        ranges = ascending_ranges(str(table[key]))
        if ranges is None:
            raise CompileError(f"{key} are numbers such as 0-3, got {table[key]!r}", self.where(key, number))
        return tuple(n for low, high in ranges for n in range(low, high + 1))


def write_stages(module: ir.Module, stages: tuple[ManualStage, ...]) -> None:
    """Say the stages in the module: `alpa.stages` and an `sdy.mesh` per submesh."""
    names: dict[tuple[int, ...], Mesh] = {}
    context, entries = module.context, []
    for stage in stages:
        mesh = names.setdefault(stage.devices, Mesh.from_shape(f"stage_{len(names)}", stage.shape))
        entry = {
            "mesh": alpa.string(mesh.name, context),
            "devices": ir.DenseI64ArrayAttr.get(list(stage.devices), context=context),
        }
        if stage.layers is not None:
            entry["layers"] = ir.DenseI64ArrayAttr.get(list(stage.layers), context=context)
        entries.append(ir.DictAttr.get(dict(sorted(entry.items())), context=context))
    for mesh in reversed(names.values()):
        declare_mesh(module, mesh)
    module.operation.attributes[alpa.STAGES] = ir.ArrayAttr.get(entries, context=context)
