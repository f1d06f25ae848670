"""`alpa-parallelize-pipeline`: from a program to a plan: which passes run, in which order, with which options.

    normalize ─ microbatch ─ layers ─ stages ─ shard ─ split ─ price ─ localize ─ schedule

The number of microbatches, where it is not given, is the one whose stages the cost model likes best among the powers
of two that divide the batch.  `alpa_mlir.planner.plan` and the command `alpa-mlir-plan` run the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import clone_module, functions, replace_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.costs.cluster import Cluster, choose_cluster
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.passes.registry import Pass, option, register

SCHEDULES = ("auto", "1f1b", "gpipe", "inference")
PARTITIONERS = ("local", "xla")
MOST_MICROBATCHES = 32
"""The largest number of microbatches that is tried where none is given."""

Progress = Callable[[str], None]
"""Called with the text of a pass before it runs."""


@dataclass(frozen=True)
class PlanOptions:
    """What the user decides; everything else is the planner's. 0 and "" mean: choose.

    mesh:         logical mesh such as "2x4": one stage on all devices, no search over stages.
    microbatches, stages, layers: numbers, or 0.
    schedule:     one of SCHEDULES. partitioner: who makes one device's program of a sharded stage.
    batch_args, state_args: argument numbers such as "3,5-7" where the program does not say its roles.
    """

    cluster: Cluster
    mesh: str = ""
    microbatches: int = 0
    stages: int = 0
    layers: int = 0
    schedule: str = "auto"
    partitioner: str = "local"
    batch_args: str = ""
    state_args: str = ""
    allow_per_microbatch_statistics: bool = False
    solver: str = "highs"


def plan(
    module: ir.Module,
    options: PlanOptions,
    remarks: list[Remark] | None = None,
    progress: Progress | None = None,
    stop_after: str = "",
) -> ir.Module:
    """The plan of a program as a new module; the program itself is left alone.

    Notes to the user are appended to `remarks`. `stop_after` names the last pass to run. Raises `CompileError`
    where the program or what is asked of it cannot be.
    """
    notes: list[Remark] = [] if remarks is None else remarks
    road = _Road(options, notes, progress, stop_after)
    normal = clone_module(module)
    road.run(normal, _text("alpa-normalize", batch_args=options.batch_args, state_args=options.state_args))
    normal.operation.attributes[alpa.CLUSTER] = options.cluster.attribute(normal.context)
    if road.stopped:
        return normal
    staged = road.staged(normal)
    for text in road.rest(staged) if not road.stopped else []:
        road.run(staged, text)
    return staged


@dataclass(frozen=True)
class _Attempt:
    """A module staged with one number of microbatches, its predicted seconds, or why it cannot be."""

    module: ir.Module
    seconds: float
    remarks: list[Remark]
    error: CompileError | None = None


@dataclass
class _Road:
    """The passes of one planning, in order, until `stop_after` has run."""

    options: PlanOptions
    remarks: list[Remark]
    progress: Progress | None
    stop_after: str
    stopped: bool = False

    def run(self, module: ir.Module, text: str) -> None:
        if self.stopped:
            return
        if self.progress is not None:
            self.progress(text)
        run_pipeline(module, text, self.remarks)
        self.stopped = text.partition("{")[0] == self.stop_after

    def staged(self, normal: ir.Module) -> ir.Module:
        """Level 4, with the number of microbatches that was asked for or that costs least.

        Where the planner chooses, a number that cannot be (an operation mixes examples, memory is short) is
        passed over with a remark; the first error stands if none can be.
        """
        candidates = self.candidates(normal)
        tried = [self.attempt(normal, count) for count in candidates]
        possible = [(attempt.seconds, n) for n, attempt in enumerate(tried) if attempt.error is None]
        if not possible:
            first = tried[0].error
            assert first is not None
            raise first
        chosen = tried[min(possible)[1]]
        self.remarks.extend(chosen.remarks)
        for count, attempt in zip(candidates, tried, strict=True):
            if attempt.error is not None:
                why = f"{count} microbatches are not possible: {attempt.error.message}"
                self.remarks.append(Remark(why, attempt.error.location))
                break
        return chosen.module

    def attempt(self, normal: ir.Module, count: int) -> _Attempt:
        """Stages with one number of microbatches."""
        module = clone_module(normal)
        road = _Road(self.options, [], self.progress, self.stop_after)
        try:
            road.run(module, road.microbatch(count))
            road.run(module, _text("alpa-layers", count=self.options.layers, stages=self.options.stages))
            if not road.stopped:
                road.run(module, road.stages(module))
        except CompileError as error:
            return _Attempt(module, 0.0, [], error)
        self.stopped = road.stopped
        return _Attempt(module, _seconds(module), road.remarks)

    def candidates(self, normal: ir.Module) -> list[int]:
        """Numbers of microbatches to try."""
        options = self.options
        if options.microbatches:
            return [options.microbatches]
        if options.mesh or options.stages == 1 or self.stop_after == "alpa-microbatch":
            return [1]
        size = batch_size(normal)
        return [m for m in (2**k for k in range(MOST_MICROBATCHES.bit_length())) if size % m == 0] or [1]

    def microbatch(self, count: int) -> str:
        allowed = self.options.allow_per_microbatch_statistics
        return _text("alpa-microbatch", count=count, allow_per_microbatch_statistics=allowed)

    def stages(self, module: ir.Module) -> str:
        options = self.options
        kind = self.kind(module)
        return _text(
            "alpa-stages",
            stages=options.stages,
            mesh=options.mesh,
            schedule=kind,
            solver=options.solver,
            whole_sums=options.partitioner == "xla",
        )

    def kind(self, module: ir.Module) -> str:
        """The schedule that was asked for, or 1F1B where there is a backward pass and inference where not."""
        if self.options.schedule != "auto":
            return self.options.schedule
        return "1f1b" if has_backward(module) else "inference"

    def rest(self, staged: ir.Module) -> list[str]:
        """The passes from level 4 to the plan."""
        kind = self.kind(staged)
        local = self.options.partitioner == "local"
        localize = ["alpa-localize"] if local else []
        return [
            _text("alpa-shard", solver=self.options.solver, schedule=kind, whole_sums=not local),
            "alpa-split",
            "alpa-price",
            *localize,
            _text("alpa-schedule", kind=kind),
        ]


def _text(name: str, **options: str | int | bool) -> str:
    """`name{a=1 b="x y"}` of the options that are set."""
    written = []
    for key, value in options.items():
        if value:
            shown = "true" if value is True else str(value)
            written.append(f"{key.replace('_', '-')}={{{shown}}}")
    return name + (f"{{{' '.join(written)}}}" if written else "")


def _seconds(module: ir.Module) -> float:
    if alpa.COST not in module.operation.attributes:
        return 0.0
    return float(ir.FloatAttr(module.operation.attributes[alpa.COST]).value)


def has_backward(module: ir.Module) -> bool:
    """Whether a layered module has a backward pass."""
    return any(alpa.get_string(op, alpa.PHASE) == "backward" for op in walk(functions(module)["microbatch"]))


def batch_size(normal: ir.Module) -> int:
    """The greatest number that divides the batch dimension of all batch arguments of @main; 1 without any."""
    main = functions(normal)["main"]
    size = 0
    for value, entry in zip(main.regions[0].blocks[0].arguments, argument_attributes(main), strict=True):
        if alpa.ROLE in entry and ir.StringAttr(entry[alpa.ROLE]).value == "batch":
            dim = int(ir.IntegerAttr(entry[alpa.DIM]).value) if alpa.DIM in entry else 0
            shape = shape_of(value)
            size = gcd(size, shape[dim]) if shape else size
    return size or 1


@register
@dataclass(frozen=True)
class Parallelize(Pass):
    """All passes from a program to a plan, as `alpa-mlir-plan` runs them, with the same result.

    IR before: level 0 (any StableHLO program). IR after: level 7 (`alpa.level = "plan"`).
    Precondition: `cluster` names a preset, or the module carries `alpa.cluster`.
    """

    name: ClassVar[str] = "alpa-parallelize-pipeline"
    cluster: str = option("", "cluster preset; empty: the module's alpa.cluster")
    nodes: int = option(0, "number of nodes; 0: as the cluster says")
    devices_per_node: int = option(0, "devices of each node; 0: as the cluster says")
    memory: str = option("", "memory per device, for example 16GB; empty: as the cluster says")
    mesh: str = option("", "one stage on this logical mesh, for example 2x4: no search over stages")
    microbatches: int = option(0, "microbatches per step; 0: the best")
    stages: int = option(0, "number of stages; 0: the best")
    layers: int = option(0, "number of layers that stages are made of; 0: chosen")
    schedule: str = option("auto", f"one of {', '.join(SCHEDULES)}")
    partitioner: str = option("local", "explicit collectives (local) or XLA's Shardy (xla)")
    batch_args: str = option("", "numbers of the arguments that hold the batch, e.g. 3,5-7, or none")
    state_args: str = option("", "numbers of the arguments that results replace every step, e.g. 0-2, or none")
    allow_per_microbatch_statistics: bool = option(False, "batch statistics may be those of a microbatch")
    solver: str = option("highs", "mixed-integer solver, any that CVXPY knows")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Replace the program in `module` by its plan."""
        location = module.operation.location
        for what, given, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("partitioner", self.partitioner, PARTITIONERS),
        ):
            if given not in known:
                raise CompileError(f"the {what} must be one of {', '.join(known)}, got '{given}'", location)
        for what, number in (("microbatches", self.microbatches), ("stages", self.stages), ("layers", self.layers)):
            if number < 0:
                raise CompileError(f"the number of {what} must not be negative, got {number}", location)
        options = PlanOptions(
            choose_cluster(module, self.cluster, self.nodes, self.devices_per_node, self.memory),
            self.mesh,
            self.microbatches,
            self.stages,
            self.layers,
            self.schedule,
            self.partitioner,
            self.batch_args,
            self.state_args,
            self.allow_per_microbatch_statistics,
            self.solver,
        )
        replace_module(module, plan(module, options, remarks))
