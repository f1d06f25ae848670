"""Memory that does not suffice: refused before the first step where the plan says so, explained where XLA finds out.

A plan predicts the peak of each submesh's devices (`peak_bytes` in `alpa.stages`, else `memory_bytes`).  CPU devices
take it from their host, whose ranks together must not need more than is available there; GPUs have their own, of which
XLA takes a part at the start.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Plan

WAYS_OUT = (
    "to need less, plan for more devices or stages, or with more microbatches, and tell the planner what a device has"
    " (alpa-mlir-plan --memory)"
)


@dataclass(frozen=True)
class Demand:
    """What devices at a place (a host, a GPU) need that has `available`: bytes of a device and devices by submesh."""

    place: str
    available: int
    devices: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Footprint:
    """What XLA says that a compiled stage function needs on each device of its submesh, in bytes."""

    function: str
    mesh: str
    arguments: int
    results: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.results + self.working


def demand(module: ir.Module, plan: Plan, devices: Sequence[int]) -> Demand:
    """That of a rank that owns these CPU devices of the plan."""
    return Demand(f"host {socket.gethostname()}", available_bytes(), _needed(module, plan, devices))


def gpu_demands(module: ir.Module, plan: Plan, devices: Mapping[int, Any], rank: int) -> list[Demand]:
    """Those of a rank's GPUs, jax's devices by the plan's number."""
    return [
        Demand(
            f"GPU {gpu.local_hardware_id} ({gpu.device_kind}) of rank {rank}", room, _needed(module, plan, (number,))
        )
        for number, gpu in devices.items()
        if (room := gpu_bytes(gpu)) is not None
    ]


def gpu_bytes(gpu: Any) -> int | None:
    """What XLA may use of a GPU; None where it does not say."""
    found = gpu.memory_stats()
    return int(found["bytes_limit"]) if found and "bytes_limit" in found else None


def _needed(module: ir.Module, plan: Plan, devices: Sequence[int]) -> dict[str, tuple[int, int]]:
    predicted, found = _predicted(module), {}
    for name, stage in plan.stages.items():
        count = sum(1 for device in stage.devices if device in devices)
        if count and name in predicted:
            found[name] = (predicted[name], count)
    return found


def check(demands: Sequence[Demand], plan: Plan, location: str) -> None:
    """CompileError where what is at one place needs more than there is."""
    for place in dict.fromkeys(d.place for d in demands):
        here = [d for d in demands if d.place == place]
        needed = sum(size * count for d in here for size, count in d.devices.values())
        available = min(d.available for d in here)
        if needed > available:
            lines = []
            for number, mesh in enumerate(plan.stages):
                count = sum(d.devices[mesh][1] for d in here if mesh in d.devices)
                if count:
                    size = next(d.devices[mesh][0] for d in here if mesh in d.devices)
                    lines.append(f"submesh {number}: {count} devices there need {_text(size)} each")
            raise CompileError(
                f"{place} has {_text(available)} of memory available, its part of the plan needs {_text(needed)}",
                location,
                [*lines, WAYS_OUT],
            )


def is_shortage(error: BaseException) -> bool:
    """Whether XLA says that memory was short; the text must tell, its error has one class for all."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def explain(
    error: BaseException, doing: str, footprints: Sequence[Footprint], location: str, gpus: Sequence[Any] = ()
) -> CompileError:
    """The error that says what was short, who needed how much, and what to change; `gpus` are this rank's."""
    asked = re.search(r"allocat(?:e|ing) ([0-9]+) bytes", str(error))
    what = f"{_text(int(asked[1]))} could not be allocated" if asked else str(error).strip().splitlines()[0]
    notes = []
    for largest in sorted(footprints, key=lambda f: -f.total)[:1]:
        notes.append(
            f"the largest program here is @{largest.function} on {largest.mesh}: on each device it works in"
            f" {_text(largest.working)}, with {_text(largest.arguments)} of arguments and"
            f" {_text(largest.results)} of results"
        )
    rooms = [room for gpu in gpus if (room := gpu_bytes(gpu)) is not None]
    if rooms:
        notes.append(f"XLA may use {_text(min(rooms))} of a GPU here (XLA_PYTHON_CLIENT_MEM_FRACTION says which part)")
    else:
        notes.append(f"{_text(available_bytes())} of memory are available on {socket.gethostname()}")
    return CompileError(f"out of memory: {what}; the rank was in: {doing}", location, [*notes, WAYS_OUT])


def available_bytes() -> int:
    """Memory of this host that this process may still take."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = 1024 * int(fields["MemAvailable"].split()[0])
    try:
        most, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return found
    return found if most == "max" else min(found, int(most) - int(used))


def _predicted(module: ir.Module) -> dict[str, int]:
    """Bytes of a device by submesh, where the plan predicts them; the largest of the stages that share one."""
    found: dict[str, int] = {}
    for attribute in ir.ArrayAttr(module.operation.attributes[alpa.STAGES]):
        entry = ir.DictAttr(attribute)
        name = ir.StringAttr(entry["mesh"]).value
        for key in ("peak_bytes", "memory_bytes"):
            if key in entry:
                found[name] = max(found.get(name, 0), int(ir.IntegerAttr(entry[key]).value))
                break
    return found


def _text(size: int) -> str:
    """Bytes for people."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if abs(size) >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
