"""A plan in figures: what `alpa-mlir-plan` prints as a table and writes as JSON.

Everything is read back from the plan itself (`alpa.stages`, `alpa.cost`, the schedule).  The bubble is the
part of the step during which an average stage waits: 1 - mean busy time / step time, with busy = M · seconds per
microbatch + seconds per step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TextIO

from jaxlib.mlir import ir
from rich.console import Console
from rich.table import Table

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.mesh import meshes_of


@dataclass(frozen=True)
class StageSummary:
    """One stage; seconds and bytes are None where the planner had no reason to compute them."""

    stage: int
    layers: tuple[int, int]
    devices: tuple[int, ...]
    mesh: tuple[int, ...]
    microbatch_seconds: float | None
    step_seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class PlanSummary:
    """The whole plan: `step_seconds` is the predicted time of one step, `bubble` the part of it spent waiting."""

    cluster: str
    microbatches: int
    step_seconds: float | None
    bubble: float | None
    digest: str
    stages: tuple[StageSummary, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarize(module: ir.Module) -> PlanSummary:
    """Read the figures of a plan."""
    attributes = module.operation.attributes
    meshes = meshes_of(module)
    stages = []
    for number, attribute in enumerate(ir.ArrayAttr(attributes[alpa.STAGES])):
        entry = ir.DictAttr(attribute)
        layers = tuple(int(k) for k in ir.DenseI64ArrayAttr(entry["layers"])) if "layers" in entry else (0, 0)
        stages.append(
            StageSummary(
                number,
                (layers[0], layers[-1]),
                tuple(int(d) for d in ir.DenseI64ArrayAttr(entry["devices"])),
                meshes[ir.StringAttr(entry["mesh"]).value].shape,
                _float(entry, "microbatch_seconds"),
                _float(entry, "step_seconds"),
                int(ir.IntegerAttr(entry["memory_bytes"]).value) if "memory_bytes" in entry else None,
            )
        )
    microbatches = alpa.get_int(module.operation, alpa.MICROBATCHES) or 1
    seconds = float(ir.FloatAttr(attributes[alpa.COST]).value) if alpa.COST in attributes else None
    return PlanSummary(
        ir.StringAttr(ir.DictAttr(attributes[alpa.CLUSTER])["name"]).value,
        microbatches,
        seconds,
        _bubble(stages, microbatches, seconds),
        alpa.get_string(module.operation, alpa.DIGEST) or "",
        tuple(stages),
    )


def _float(entry: ir.DictAttr, name: str) -> float | None:
    return float(ir.FloatAttr(entry[name]).value) if name in entry else None


def _bubble(stages: list[StageSummary], microbatches: int, seconds: float | None) -> float | None:
    busy = [microbatches * (s.microbatch_seconds or 0.0) + (s.step_seconds or 0.0) for s in stages]
    if not seconds or not all(busy):
        return None
    return max(0.0, 1.0 - sum(busy) / len(busy) / seconds)


def print_table(summary: PlanSummary, stream: TextIO) -> None:
    """The plan as a table."""
    console = Console(file=stream, width=None if stream.isatty() else 120, highlight=False)
    count = len(summary.stages)
    title = f"{count} stage{'s' * (count > 1)}, {summary.microbatches} microbatch{'es' * (summary.microbatches > 1)}"
    table = Table(title=f"{title}, cluster {summary.cluster}")
    for column in ("stage", "layers", "devices", "mesh", "ms/microbatch", "ms/step", "MB/device"):
        table.add_column(column, justify="right")
    for s in summary.stages:
        table.add_row(
            str(s.stage),
            _range(s.layers),
            _range((s.devices[0], s.devices[-1])),
            "x".join(str(n) for n in s.mesh),
            _scaled(s.microbatch_seconds, 1e3),
            _scaled(s.step_seconds, 1e3),
            _scaled(s.memory_bytes, 1e-6),
        )
    console.print(table)
    if summary.step_seconds is not None:
        waiting = "" if summary.bubble is None else f", bubble {100 * summary.bubble:.1f} %"
        console.print(f"predicted step: {1e3 * summary.step_seconds:.4g} ms{waiting}")


def _range(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def _scaled(value: float | None, factor: float) -> str:
    return "" if value is None else f"{value * factor:.4g}"
