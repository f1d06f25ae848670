"""Level 7 of the IR as values: per submesh the list of instructions that executes one step.

A plan is a split module (see `alpa_mlir.dialect.staged`) with one `"alpa.schedule"` op per submesh.
Each instruction names an op of `@main` by its `alpa.id`, or several, and a microbatch (-1: once per step).  The
lists are projections of one total order of runs and transfers, so that they can be executed in
order with blocking sends and receives without a deadlock (`alpa-check-schedule` proves it by playing them).
`digest` seals the text of a plan: every rank of a run checks that it decoded the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.once import Once
from alpa_mlir.dialect.staged import PlanMain, Ref
from alpa_mlir.dialect.staged_main import read_main

SCHEDULE = "alpa.schedule"
ONCE = -1
"""The microbatch of an instruction that runs once per step."""


@dataclass(frozen=True)
class Run:
    """`alpa.run`: run a fragment call, cut a microbatch (`alpa.microbatch`) or make its number (`alpa.index`).

    `joined`: a fragment call is one program with that of the run before it (rule S9).
    """

    id: int
    microbatch: int
    joined: bool = False


@dataclass(frozen=True)
class Send:
    """`alpa.send`: the source submesh's half of a transfer."""

    id: int
    microbatch: int


@dataclass(frozen=True)
class Recv:
    """`alpa.recv`: the destination submesh's half of a transfer."""

    id: int
    microbatch: int


@dataclass(frozen=True)
class Combine:
    """`alpa.accumulate`: add one microbatch's values to `alpa.accumulate` and `alpa.stack` ops of `@main`."""

    ids: tuple[int, ...]
    microbatch: int


@dataclass(frozen=True)
class Free:
    """`alpa.free`: the values are dead on this submesh."""

    values: tuple[Ref, ...]
    microbatch: int


Instruction = Run | Send | Recv | Combine | Free

_BY_NAME: dict[str, type[Run] | type[Send] | type[Recv]] = {"alpa.run": Run, "alpa.send": Send, "alpa.recv": Recv}
_NAMES: dict[type, str] = {cls: name for name, cls in _BY_NAME.items()}
_RUN = "alpa.run"
_JOINED = "joined"
_COMBINE = "alpa.accumulate"
_FREE = "alpa.free"
_VALUES, _RANGES = "values", "ranges"
LONG = 4
"""Results of an op in a row from which on `alpa.free` names the first and the last of them: every microbatch of a deep
program frees thousands."""
MOST = 1_000_000
"""More results than an op has, whatever a plan says."""


@dataclass(frozen=True)
class Schedule:
    """The instructions of one submesh, in order of execution; `kind` names the pipeline schedule."""

    mesh: str
    kind: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Stage:
    """One submesh: its logical mesh and the numbers of its devices, in row-major order of the mesh."""

    mesh: Mesh
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A whole plan: submeshes by mesh name, the step, one schedule per submesh, predicted seconds of a step.

    `pipeline` names the submesh of each pipeline stage in order; several stages may share one.
    """

    stages: dict[str, Stage]
    main: PlanMain
    schedules: tuple[Schedule, ...]
    cost: float | None
    pipeline: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.pipeline:
            object.__setattr__(self, "pipeline", tuple(self.stages))


def read_plan(module: ir.Module) -> Plan:
    """Decode a plan (level 7); CompileError where it is not one."""
    level = alpa.get_string(module.operation, alpa.LEVEL)
    if level != "plan":
        raise CompileError(
            f"not a plan: alpa.level is {level!r}; make one with alpa-mlir-plan", module.operation.location
        )
    schedules, pipeline = read_schedules(module), read_pipeline(module)
    return Plan(read_stages(module), read_main(module), schedules, _read_cost(module), pipeline)


def read_stages(module: ir.Module) -> dict[str, Stage]:
    """The submeshes of `alpa.stages`, in order of first use by a stage, by mesh name."""
    location = module.operation.location
    meshes = meshes_of(module)
    found: dict[str, Stage] = {}
    for entry in stage_entries(module):
        name = ir.StringAttr(entry["mesh"]).value
        devices = tuple(int(d) for d in ir.DenseI64ArrayAttr(entry["devices"]))
        if name not in meshes or meshes[name].device_count != len(devices):
            raise CompileError(f"alpa.stages: mesh {name} is not declared with {len(devices)} devices", location)
        if found.setdefault(name, Stage(meshes[name], devices)).devices != devices:
            raise CompileError(f"alpa.stages: mesh {name} is said to have two sets of devices", location)
    used = [d for s in found.values() for d in s.devices]
    if len(set(used)) != len(used):
        raise CompileError("alpa.stages: a device belongs to two submeshes", location)
    return found


def read_pipeline(module: ir.Module) -> tuple[str, ...]:
    """The mesh name of each stage of `alpa.stages`, in order; several stages may share a mesh."""
    return tuple(ir.StringAttr(entry["mesh"]).value for entry in stage_entries(module))


def stage_entries(module: ir.Module) -> list[ir.DictAttr]:
    """The entries of `alpa.stages`; CompileError where the module has none."""
    if alpa.STAGES not in module.operation.attributes:
        raise CompileError("the module carries no alpa.stages", module.operation.location)
    return [ir.DictAttr(a) for a in ir.ArrayAttr(module.operation.attributes[alpa.STAGES])]


def _read_cost(module: ir.Module) -> float | None:
    if alpa.COST not in module.operation.attributes:
        return None
    attribute = module.operation.attributes[alpa.COST]
    if isinstance(attribute, ir.DictAttr):
        entry = ir.DictAttr(attribute)
        if "step_seconds" not in entry:
            return None
        attribute = entry["step_seconds"]
    return float(ir.FloatAttr(attribute).value) if isinstance(attribute, ir.FloatAttr) else None


def read_schedules(module: ir.Module) -> tuple[Schedule, ...]:
    """The instruction lists of a plan, one per submesh, in module order."""
    found = []
    reader = _Reader()
    for view in module.body.operations:
        op = view.operation
        if op.name != SCHEDULE:
            continue
        block = op.regions[0].blocks[0]
        instructions = tuple([reader.read(view.operation) for view in block.operations])
        found.append(Schedule(_string(op, "mesh"), _string(op, "kind"), instructions))
    return tuple(found)


def _string(op: ir.Operation, name: str) -> str:
    value = alpa.get_string(op, name)
    if value is None:
        raise CompileError(f"{op.name} needs the attribute {name}", op.location)
    return value


class _Reader:
    """Reads instructions; what their attributes say is read once, as most occur in every microbatch."""

    def __init__(self) -> None:
        self.single: dict[ir.Attribute, int] = {}
        self.ids: dict[ir.Attribute, tuple[int, ...]] = {}
        self.values: dict[tuple[ir.Attribute, ir.Attribute | None], tuple[Ref, ...]] = {}

    def read(self, op: ir.Operation) -> Instruction:
        """The instruction that an op stands for."""
        name, attributes = op.name, op.attributes
        said = {_FREE: _VALUES, _COMBINE: "ids"}.get(name, "id")
        if "microbatch" not in attributes or said not in attributes:
            raise CompileError(f"{name} is not an instruction with its attributes", op.location)
        microbatch, what = self._number(attributes["microbatch"]), attributes[said]
        if name == _FREE:
            key = what, attributes.get(_RANGES)
            if key not in self.values:
                self.values[key] = _freed(*key)
            return Free(self.values[key], microbatch)
        if name == _COMBINE:
            if what not in self.ids:
                self.ids[what] = tuple([int(n) for n in ir.DenseI64ArrayAttr(what)])
            return Combine(self.ids[what], microbatch)
        if name not in _BY_NAME:
            raise CompileError(f"unknown instruction {name}", op.location)
        if name == _RUN and _JOINED in attributes:
            return Run(self._number(what), microbatch, joined=True)
        return _BY_NAME[name](self._number(what), microbatch)

    def _number(self, attribute: ir.Attribute) -> int:
        if attribute not in self.single:
            self.single[attribute] = int(ir.IntegerAttr(attribute).value)
        return self.single[attribute]


def _freed(values: ir.Attribute, ranges: ir.Attribute | None) -> tuple[Ref, ...]:
    """The values that an `alpa.free` names: (op, result), …, and from `ranges` (op, first result, last result), …"""
    numbers = [int(n) for n in ir.DenseI64ArrayAttr(values)]
    found = [Ref(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    if ranges is None:
        return tuple(found)
    numbers = [int(n) for n in ir.DenseI64ArrayAttr(ranges)]
    for op, first, last in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        found += [Ref(op, k) for k in range(first, min(last, first + MOST) + 1)]
    return tuple(sorted(found))


def _in_ranges(values: Sequence[Ref]) -> tuple[list[int], list[int]]:
    """The numbers of `values` and `ranges` that name these values; those out of order are all named one by one."""
    single: list[int] = []
    ranges: list[int] = []
    runs: list[tuple[int, int, int]] = []
    for op, result in values:
        if runs and runs[-1][0] == op and runs[-1][2] + 1 == result:
            runs[-1] = op, runs[-1][1], result
        else:
            runs.append((op, result, result))
    for op, first, last in runs if runs == sorted(runs) else [(op, k, k) for op, k in values]:
        if last - first + 1 >= LONG:
            ranges += [op, first, last]
        else:
            single += [n for k in range(first, last + 1) for n in (op, k)]
    return single, ranges


def write_schedules(module: ir.Module, schedules: Sequence[Schedule]) -> None:
    """Append `"alpa.schedule"` ops to a module, replacing those that stand there."""
    for view in list(module.body.operations):
        if view.operation.name == SCHEDULE:
            view.operation.erase()
    context = module.context
    with context, ir.Location.unknown():
        writer = _Writer(context)
        for schedule in schedules:
            attributes = {
                "mesh": alpa.string(schedule.mesh, context),
                "kind": alpa.string(schedule.kind, context),
            }
            op = ir.Operation.create(SCHEDULE, attributes=attributes, regions=1, ip=ir.InsertionPoint(module.body))
            ip = ir.InsertionPoint(op.regions[0].blocks.append())
            for instruction in schedule.instructions:
                writer.write(instruction, ip)


class _Writer:
    """Writes instructions; attributes are made once, as most occur in every microbatch."""

    def __init__(self, context: ir.Context) -> None:
        self.context = context
        self.single: dict[int, ir.Attribute] = {}
        self.frees = Once[tuple[Ref, ...], dict[str, ir.Attribute]]()
        self.sums = Once[tuple[int, ...], dict[str, ir.Attribute]]()

    def write(self, instruction: Instruction, ip: ir.InsertionPoint) -> None:
        """The op of an instruction; within the context."""
        attributes = {"microbatch": self._number(instruction.microbatch)}
        if isinstance(instruction, Free):
            attributes |= self.frees.of(instruction.values, self._free)
            ir.Operation.create(_FREE, attributes=attributes, ip=ip)
        elif isinstance(instruction, Combine):
            attributes |= self.sums.of(instruction.ids, self._ids)
            ir.Operation.create(_COMBINE, attributes=attributes, ip=ip)
        else:
            attributes["id"] = self._number(instruction.id)
            if isinstance(instruction, Run) and instruction.joined:
                attributes[_JOINED] = ir.UnitAttr.get(self.context)
            ir.Operation.create(_NAMES[type(instruction)], attributes=attributes, ip=ip)

    def _ids(self, ids: Sequence[int]) -> dict[str, ir.Attribute]:
        return {"ids": ir.DenseI64ArrayAttr.get(list(ids), self.context)}

    def _free(self, values: Sequence[Ref]) -> dict[str, ir.Attribute]:
        single, ranges = _in_ranges(values)
        named = {_VALUES: single, _RANGES: ranges} if ranges else {_VALUES: single}
        return {name: ir.DenseI64ArrayAttr.get(numbers, self.context) for name, numbers in named.items()}

    def _number(self, value: int) -> ir.Attribute:
        if value not in self.single:
            self.single[value] = alpa.i64(value, self.context)
        return self.single[value]


def digest(module: ir.Module) -> str:
    """SHA-256, in hexadecimal, of the module's text without `alpa.digest`."""
    attributes = module.operation.attributes
    sealed = alpa.get_string(module.operation, alpa.DIGEST)
    if sealed is not None:
        del attributes[alpa.DIGEST]
    try:
        return hashlib.sha256(print_module(module).encode()).hexdigest()
    finally:
        if sealed is not None:
            alpa.set_string(module.operation, alpa.DIGEST, sealed)


def seal(module: ir.Module) -> str:
    """Write `alpa.digest` on a finished plan; the digest."""
    # Large plans take seconds to print: it is done once, with another digest of that length.
    alpa.set_string(module.operation, alpa.DIGEST, _BLANK)
    text = print_module(module)
    written = f'{alpa.DIGEST} = "{_BLANK}"'
    without = text.replace(f"{written}, ", "", 1) if f"{written}, " in text else text.replace(f", {written}", "", 1)
    found = hashlib.sha256(without.encode()).hexdigest()
    alpa.set_string(module.operation, alpa.DIGEST, found)
    _sealed.clear()
    _sealed[found] = text.replace(_BLANK, found, 1)
    return found


_BLANK = "0" * 64
_sealed: dict[str, str] = {}
"""The text that was sealed last, by its digest."""


def sealed_text(module: ir.Module) -> str:
    """The text of a plan, as it was when it was sealed."""
    return _sealed.get(alpa.get_string(module.operation, alpa.DIGEST) or "") or print_module(module)


def check_digest(module: ir.Module) -> None:
    """CompileError unless `alpa.digest` is that of the module."""
    sealed = alpa.get_string(module.operation, alpa.DIGEST)
    actual = digest(module)
    if sealed != actual:
        said = "no alpa.digest" if sealed is None else f"alpa.digest {sealed[:12]}…"
        raise CompileError(
            f"the plan was changed after it was made: it says {said}, its text has {actual[:12]}…",
            module.operation.location,
        )
