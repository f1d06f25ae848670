"""`alpa-parallelize-pipeline`: from a program to a plan: which passes run, in which order, with which options.

    normalize ─ microbatch ─ layers ─ stages ─ shard ─ split ─ price ─ localize ─ route ─ schedule

The number of microbatches (a power of two that divides the batch), the schedule and rematerialisation, where they are
not given, are chosen together (`alpa_mlir.passes.joint`).  `alpa_mlir.planner.plan` and the command `alpa-mlir-plan`
run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions, replace_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.plan import read_pipeline, read_stages, seal, stage_entries
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.costs.cluster import Cluster, choose_cluster
from alpa_mlir.passes.costs.limits import fullest, memory_limits
from alpa_mlir.passes.inter.fold import fold
from alpa_mlir.passes.inter.fold_layers import NotFoldable, cut_period
from alpa_mlir.passes.inter.layout import read_layout
from alpa_mlir.passes.inter.meshes import MESH_AXES
from alpa_mlir.passes.inter.schedules import KINDS, SPLIT_BACKWARD
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.joint import AUTO, FULL, NONE, Attempt, Considered, JointChoice, Setting, Wishes, too_large
from alpa_mlir.passes.memo import remembering_meanwhile
from alpa_mlir.passes.pipeline import run_pipeline, verify
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.unroll import UNROLL

SCHEDULES = (AUTO, *KINDS)
PARTITIONERS = ("local", "xla")
EARLY = ("alpa-microbatch", "alpa-layers")
"""Passes before a setting makes a difference worth comparing."""
TURNS, MARGIN, STEP = 4, 1.05, 0.008
"""How often the stages of a setting are chosen, and how much less memory there is each time, in parts of what the plan
before needed too much, and from the second time on of the memory itself: other plans need other copies."""
LAYERED = 2
"""How many modules of level 3 are kept."""
MOST_MICROBATCHES = 4096
"""The largest number of microbatches that is tried where none is given."""
LARGE, STAGES = 16, 8
"""Clusters of at least LARGE nodes are expected to get STAGES stages or more, where no number is given: layers are made
for so many, and interleaved stages may have the meshes only of other stages found."""
EXPLAINED = 20
"""How many decisions of a stage are explained at most."""

Progress = Callable[[str], None]
"""Called with the text of a pass before it runs."""


@dataclass(frozen=True)
class PlanOptions:
    """What the user decides; everything else is the planner's. 0 and "" mean: choose.

    mesh:         logical mesh such as "2x4": one stage on all devices, no search over stages.
    microbatches, stages, layers: numbers, or 0. chunks: stages that share a submesh (interleaved).
    schedule:     one of SCHEDULES. partitioner: who makes one device's program of a sharded stage.
    remat:        auto, none, full, or numbers of layers such as "0-3,5" whose forward ops run again.
    batch_args, state_args: argument numbers such as "3,5-7" where the program does not say its roles.
    constrain:    shardings that must be, such as "arg0=[{x},{}]; y=tensor" (docs/constraints.md).
    explain:      values or ops whose decisions are explained in remarks; what_if: constraints to price, cases
                  separated by "|" (docs/explain.md). Neither changes the plan.
    axes:         most axes of a stage's logical mesh that are searched: 1, 2 or 3.
    unroll:       most ops that a loop with a known number of rounds may become; 0: loops stay one unit.
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
    remat: str = AUTO
    chunks: int = 0
    constrain: str = ""
    explain: str = ""
    what_if: str = ""
    unroll: int = UNROLL
    axes: int = MESH_AXES


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
    road = _Road(options, progress, stop_after)
    normal = clone_module(module)
    roles = {"batch_args": options.batch_args, "state_args": options.state_args}
    unroll = {} if options.unroll == UNROLL else {"unroll": str(options.unroll)}
    stopped = road.run(normal, [_text("alpa-normalize", **roles, **unroll)], notes)
    normal.operation.attributes[alpa.CLUSTER] = options.cluster.attribute(normal.context)
    with remembering_meanwhile():
        return normal if stopped else road.choose(normal, notes)


@dataclass
class _Road:
    """The passes of one planning, in order, until `stop_after` has run."""

    options: PlanOptions
    progress: Progress | None
    stop_after: str
    layered: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    """Level 3 by number of microbatches and by how many units at a time the program is folded."""
    small: dict[int, ir.Module | None] = field(default_factory=dict)
    """The program with its equal layers folded, so many units at a time, on which settings are compared; None where
    that cannot be. 0: the whole program."""
    period: int | None = None
    """How many units of the program one layer takes, once known."""
    rough: bool = False
    """Whether settings are compared before the stages of the best are priced exactly."""
    chosen: dict[str, None] = field(default_factory=dict)
    """The logical meshes of all stages found so far: on large clusters those that interleaved stages may have."""
    meshes: dict[Setting, str] = field(default_factory=dict)
    """The logical meshes that were of use under each setting that was compared roughly."""

    def run(self, module: ir.Module, texts: Sequence[str], remarks: list[Remark]) -> bool:
        """Run passes; True where the last one to run was among them."""
        for text in texts:
            if self.progress is not None:
                self.progress(text)
            # What users get to see is verified, not what lies between.
            run_pipeline(module, text, remarks, verify_each=bool(self.stop_after))
            if text.partition("{")[0] == self.stop_after:
                return True
        return False

    def choose(self, normal: ir.Module, notes: list[Remark]) -> ir.Module:
        """The best plan that can be; what else was considered is written into it.

        A setting that cannot be (an operation mixes examples, memory is short) is passed over, the first with a
        remark; its error stands where none can be.
        """
        options = self.options
        counts = self.counts(normal)
        given = read_pipeline(normal) if alpa.STAGES in normal.operation.attributes else ()
        in_order = bool(options.mesh) or options.stages == 1 or len(set(given)) == 1
        memory = float(options.cluster.memory)
        wishes = Wishes(tuple(counts), options.schedule, options.remat, memory, in_order)
        self.rough = len(counts) > 1 and not in_order
        self.small = {0: normal}
        closer = (lambda setting: self.attempt(normal, setting, exact=True)) if self.rough else None
        choice = JointChoice(wishes, lambda setting: self.attempt(normal, setting), closer)
        if self.stop_after in EARLY:
            return self._early(choice, counts, notes)
        for row, attempt in choice.ranked():
            done = self._finished(normal, row, attempt)
            if done.error is not None:
                choice.reject(row, done.error)
                continue
            module = done.module
            notes += [*done.remarks, *_passed_over(choice.rows)]
            if self.stop_after == "":
                verify(module, "alpa-schedule")
                choice.record(module)
                seal(module)
            return module
        raise choice.least_error()

    def _finished(self, normal: ir.Module, row: Considered, attempt: Attempt) -> Attempt:
        """The plan with the setting and schedule of a row.

        A finished plan may hold more than the stages were chosen for, copies that collectives make: then they are
        chosen once more, with that much less memory.
        """
        memory = float(self.options.cluster.memory)
        full: DoesNotFit | None = None
        for turn in range(TURNS):
            if turn or not attempt.exact:
                attempt = self.attempt(normal, row.setting, exact=True, memory=memory if turn else 0.0)
            module, remarks = clone_module(attempt.module), list(attempt.remarks)
            try:
                if attempt.error is not None:
                    raise attempt.error
                self.run(module, self.rest(row, memory if turn else 0.0), remarks)
            except DoesNotFit as error:
                return replace(attempt, error=full or error)
            except CompileError as error:
                if attempt.error is None:
                    raise
                return replace(attempt, error=error)
            needed, there = _fullest(module)
            if self.stop_after or needed <= there:
                return replace(attempt, module=module, remarks=tuple(remarks))
            full = full or too_large(needed, there, " with the copies that collectives make")
            memory -= MARGIN * (needed - there) + turn * STEP * there
        return replace(attempt, error=full)

    def _early(self, choice: JointChoice, counts: Sequence[int], notes: list[Remark]) -> ir.Module:
        """A module from before the stages, with the first number of microbatches that can be."""
        attempts = [choice.stage(Setting(counts[0], NONE))]
        for count in counts[1:]:
            if attempts[-1].error is None:
                break
            attempts.append(choice.stage(Setting(count, NONE)))
        error = attempts[-1].error
        if error is not None:
            raise attempts[0].error or error
        notes += attempts[-1].remarks
        return attempts[-1].module

    def attempt(self, normal: ir.Module, setting: Setting, exact: bool = False, memory: float = 0.0) -> Attempt:
        """Stages under one setting; costs are rough where several are compared, unless `exact`.

        `memory`: bytes per device, 0: the cluster's.

        Rough ones are found on a folded program where that can be.
        """
        if self.rough and not exact:
            for period in self._periods(normal, setting):
                try:
                    return self._attempt(period, setting, rough=True)
                except NotFoldable:
                    self.small[period] = None
        rough = self.rough and not exact
        return replace(self._attempt(0, setting, rough, memory), exact=not rough)

    def _periods(self, normal: ir.Module, setting: Setting) -> Iterator[int]:
        """How many units at a time the program may be folded for a setting: with layers that run again so many that
        they are all cut alike."""
        if setting.remat not in (NONE, FULL) or not self._folds(normal, 1):
            return
        period = 1 if setting.remat == NONE else self._period(setting)
        if period and self._folds(normal, period):
            yield period

    def _period(self, setting: Setting) -> int:
        """How many units one layer takes, as the first setting that can be layered shows; 0: they are not alike."""
        if self.period is None:
            try:
                module = self._layers(1, setting).module
            except NotFoldable:
                return 0
            if alpa.get_string(module.operation, alpa.LEVEL) != "layered":
                return 0
            self.period = cut_period(read_layout(module))
        return self.period

    def _folds(self, normal: ir.Module, period: int) -> bool:
        """Whether the program can be folded so many units at a time, as far as known."""
        if period not in self.small:
            self.small[period] = folded(normal, period)
        return self.small[period] is not None

    def _attempt(self, period: int, setting: Setting, rough: bool, memory: float = 0.0) -> Attempt:
        layered = self._layers(period, setting)
        if layered.error is not None or self.stop_after in EARLY:
            return replace(layered, setting=setting)
        module, remarks = clone_module(layered.module), list(layered.remarks)
        attempt = Attempt(setting, module)
        try:
            self.run(module, self.until_stages(setting, rough, memory), remarks)
        except NotFoldable:
            raise
        except CompileError as error:
            attempt = replace(attempt, error=error)
        else:
            attempt = replace(attempt, remarks=tuple(remarks))
            for stage in read_stages(module).values():
                self.chosen.setdefault("x".join(map(str, stage.mesh.shape)))
        attributes = module.operation.attributes
        attributes[alpa.CLUSTER] = self.options.cluster.attribute(module.context)
        if alpa.MESHES in attributes:
            self.meshes[setting] = alpa.get_string(module.operation, alpa.MESHES) or ""
            attempt = replace(attempt, floor=ir.FloatAttr(attributes[alpa.FLOOR]).value)
            del attributes[alpa.MESHES], attributes[alpa.FLOOR]
        return attempt

    def _layers(self, period: int, setting: Setting) -> Attempt:
        """Level 3 with a number of microbatches; the last ones are kept, for other settings of the same number."""
        key = (setting.microbatches, period)
        known = self.layered.get(key)
        if known is not None:
            return known
        normal = self.small[period]
        assert normal is not None
        module, remarks = clone_module(normal), list[Remark]()
        for old in list(self.layered)[: 1 - LAYERED]:
            del self.layered[old]
        error: CompileError | None = None
        try:
            self.run(module, self.until_layers(normal, setting), remarks)
        except NotFoldable:
            raise
        except CompileError as found:
            error = found
        self.layered[key] = Attempt(setting, module, tuple(remarks), error)
        return self.layered[key]

    def counts(self, normal: ir.Module) -> list[int]:
        """Numbers of microbatches to choose from."""
        options = self.options
        if options.microbatches:
            return [options.microbatches]
        if self.stop_after == "alpa-microbatch":
            return [1]
        size = batch_size(normal)
        return [m for m in (2**k for k in range(MOST_MICROBATCHES.bit_length())) if size % m == 0] or [1]

    def until_layers(self, normal: ir.Module, setting: Setting) -> list[str]:
        """The passes from level 1 to level 3."""
        options = self.options
        stages = len(stage_entries(normal)) if alpa.STAGES in normal.operation.attributes else 0
        expected = options.stages or stages or (STAGES if options.cluster.nodes >= LARGE else 0)
        allowed = options.allow_per_microbatch_statistics
        return [
            _text("alpa-microbatch", count=setting.microbatches, allow_per_microbatch_statistics=allowed),
            _text("alpa-layers", count=options.layers, stages=expected),
        ]

    def until_stages(self, setting: Setting, rough: bool, memory: float = 0.0) -> list[str]:
        """The passes from level 3 to level 4. What was of no use under one setting is not tried under others."""
        options = self.options
        kind = "interleaved" if setting.interleaved else options.schedule if options.schedule != AUTO else "1f1b"
        remat = [_text("alpa-remat", layers=setting.remat)] if setting.remat != NONE else []
        meshes = self.meshes.get(setting, next((m for s, m in self.meshes.items() if not s.interleaved), ""))
        if setting.interleaved and setting not in self.meshes and options.cluster.nodes >= LARGE:
            meshes = ",".join(self.chosen)
        return [
            *remat,
            _text(
                "alpa-stages",
                stages=options.stages,
                chunks=options.chunks if setting.interleaved else 0,
                mesh=options.mesh,
                memory=_bytes(memory),
                axes=options.axes if options.axes != MESH_AXES else 0,
                schedule=kind,
                solver=options.solver,
                whole_sums=options.partitioner == "xla",
                meshes=meshes,
                rough=rough,
            ),
        ]

    def rest(self, row: Considered, memory: float = 0.0) -> list[str]:
        """The passes from level 4 to the plan."""
        local = self.options.partitioner == "local"
        if self.stop_after == "alpa-stages":
            return []
        return [
            _text(
                "alpa-shard",
                constrain=self.options.constrain,
                memory=_bytes(memory),
                solver=self.options.solver,
                schedule=row.schedule,
                whole_sums=not local,
                explain=self.options.explain,
                most=EXPLAINED if self.options.explain else 0,
                what_if=self.options.what_if,
            ),
            _text("alpa-split", weight_apart=row.schedule in SPLIT_BACKWARD),
            "alpa-price",
            *(["alpa-localize"] if local else []),
            "alpa-route",
            _text("alpa-schedule", kind=row.schedule),
        ]


def _fullest(module: ir.Module) -> tuple[float, float]:
    """(bytes needed, bytes there) of the submesh of a plan that is fullest for its devices."""
    entries = {ir.StringAttr(e["mesh"]).value: e for e in stage_entries(module)}.values()
    peaks = [float(ir.IntegerAttr(e["peak_bytes"]).value) for e in entries if "peak_bytes" in e]
    return fullest(peaks, memory_limits(module)) if peaks else (0.0, 0.0)


def _bytes(memory: float) -> str:
    return f"{int(memory)}B" if memory else ""


def _passed_over(rows: Sequence[Considered]) -> list[Remark]:
    """The first number of microbatches that cannot be at all."""
    possible = {row.setting.microbatches for row in rows if row.error is None}
    for row in rows:
        if row.error is not None and row.setting.microbatches not in possible:
            why = f"{row.setting.microbatches} microbatches are not possible: {row.error.message}"
            return [Remark(why, row.error.location)]
    return []


def _text(name: str, **options: str | int | bool) -> str:
    """`name{a=1 b="x y"}` of the options that are set."""
    written = []
    for key, value in options.items():
        if value:
            shown = "true" if value is True else str(value)
            written.append(f"{key.replace('_', '-')}={{{shown}}}")
    return name + (f"{{{' '.join(written)}}}" if written else "")


def folded(normal: ir.Module, period: int = 1) -> ir.Module | None:
    """A level-1 program with its equal layers folded, `period` units at a time; None where nothing folds, or where a
    user says the layers."""
    body = functions(normal)["main"].regions[0].blocks[0]
    if any(alpa.LAYER in op.attributes for op in body.operations):
        return None
    small = fold(normal, period)
    return small if small is not normal else None


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
    remat: str = option(AUTO, "layers whose forward ops run again in the backward pass: auto, none, full or 0-3,5")
    chunks: int = option(0, "stages that share a submesh, with schedule=interleaved; 0: the best")
    constrain: str = option("", "shardings that must be, e.g. arg0=[{x},{}]; y=tensor (docs/constraints.md)")
    unroll: int = option(UNROLL, "most ops that a loop with a known number of rounds may become, or 0 to keep loops")
    axes: int = option(MESH_AXES, "axes of a stage's logical mesh at most: 1, 2 or 3")

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
            self.remat,
            self.chunks,
            self.constrain,
            unroll=self.unroll,
            axes=self.axes,
        )
        replace_module(module, plan(module, options, remarks))
