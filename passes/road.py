"""The road from a program to a plan: settings tried, the best of them finished.

The number of microbatches (a power of two that divides the batch), the schedule and rematerialisation, where they are
not given, are chosen together (`joint.py`). Settings are compared on a folded program where that can be; the best ones
are then staged exactly, on the whole program, and carried on to the plan (`plan_passes.py` says by which passes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, prod

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.mesh import parse_mesh
from alpa_mlir.dialect.plan import read_pipeline, read_stages
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.finishing import Finisher
from alpa_mlir.passes.inter.fold import fold
from alpa_mlir.passes.inter.fold_layers import NotFoldable
from alpa_mlir.passes.inter.interleave import MANY
from alpa_mlir.passes.inter.layout import read_layout
from alpa_mlir.passes.joint import JointChoice
from alpa_mlir.passes.more_again import layers_text
from alpa_mlir.passes.pipeline import run_pipeline, verify
from alpa_mlir.passes.plan_passes import LARGE, PlanOptions, expected_stages, until_layers, until_stages
from alpa_mlir.passes.settings import FULL, NONE, PARTLY, Attempt, Considered, Setting, Wishes

EARLY = ("alpa-microbatch", "alpa-layers")
"""Passes before a setting makes a difference worth comparing."""
LAYERED = 2
"""How many modules of level 3 are kept of the whole program; those of folded ones are small, and all kept."""
MOST_MICROBATCHES = 4096
"""The largest number of microbatches that is tried where none is given."""

Progress = Callable[[str], None]
"""Called with the text of a pass before it runs."""


@dataclass
class Road:
    """The passes of one planning, in order, until `stop_after` has run."""

    options: PlanOptions
    progress: Progress | None
    stop_after: str
    layered: dict[tuple[int, bool], Attempt] = field(default_factory=dict)
    """Level 3 by number of microbatches and by whether it is of the whole program."""
    small: ir.Module | None = None
    """The program with its equal layers folded, on which settings are compared; None where that cannot be, or was not
    asked for yet."""
    folds: bool = True
    """Whether settings may be compared on a folded program, as far as known."""
    expected: int = 0
    """The number of stages that layers are made for; 0: not known."""
    rough: bool = False
    """Whether settings are compared before the stages of the best are priced exactly."""
    chosen: dict[str, None] = field(default_factory=dict)
    """The logical meshes of all stages found so far: on large clusters those that interleaved stages may have."""
    meshes: dict[Setting, str] = field(default_factory=dict)
    """The logical meshes that were of use under each setting that was compared roughly."""
    sizes: dict[Setting, set[int]] = field(default_factory=dict)
    """The numbers of devices of its stages where a setting was compared roughly: those that are solved have others only
    where nothing fits so."""
    chunks: dict[Setting, int] = field(default_factory=dict)
    """On large clusters: how many stages share a submesh where an interleaved setting was compared roughly."""

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
        counts = self.counts(normal)
        choice = self._choice(normal, counts)
        if self.stop_after in EARLY:
            return self._early(choice, counts, notes)
        exact = lambda setting, memory: self.attempt(normal, setting, exact=True, memory=memory)  # noqa: E731
        finisher = Finisher(self.options, self.run, self.stop_after, exact, choice)
        kept: tuple[float, Attempt] | None = None
        for row, attempt in choice.ranked():
            done = finisher.finished(row, attempt)
            if done is None:
                continue
            if done.error is not None:
                choice.reject(row, done.error)
                continue
            seconds = _step_seconds(done.module)
            if kept is None or seconds < kept[0]:
                kept = seconds, done
            if not choice.outdone(row, seconds, kept[0]):
                break
        if kept is None:
            raise choice.least_error()
        notes += [*kept[1].remarks, *_passed_over(choice.rows)]
        if self.stop_after == "":
            verify(kept[1].module, "alpa-schedule")
        return kept[1].module

    def foresee(self, normal: ir.Module) -> Considered:
        """The best plan at prices, as settings are compared before any stage is solved."""
        return self._choice(normal, self.counts(normal)).foreseen()

    def _choice(self, normal: ir.Module, counts: Sequence[int]) -> JointChoice:
        """The choice among all settings, none of which was tried yet."""
        options = self.options
        given = read_pipeline(normal) if alpa.STAGES in normal.operation.attributes else ()
        memory = float(options.cluster.memory)
        stages = 1 if options.mesh else len(given) or options.stages
        wishes = Wishes(
            tuple(counts),
            options.schedule,
            options.remat,
            memory,
            single=stages == 1 or len(set(given)) == 1,
            given=bool(options.mesh or given),
            interleave=options.cluster.device_count < MANY,
            stages=stages,
        )
        self.rough = len(counts) > 1
        self.expected = expected_stages(options, normal)
        self.folds = self.stop_after not in EARLY
        closer = (lambda setting: self.attempt(normal, setting, exact=True)) if self.rough else None
        return JointChoice(wishes, lambda setting: self.attempt(normal, setting), closer)

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
        if setting.remat == PARTLY:
            return self._partly(normal, setting)
        if self.rough and not exact:
            return self._priced(normal, setting)
        return replace(self._attempt(normal, setting, False, memory), exact=True)

    def _priced(self, normal: ir.Module, setting: Setting) -> Attempt:
        """A rough attempt."""
        small = self._folded(normal) if setting.remat in (NONE, FULL, PARTLY) else None
        if small is not None:
            try:
                return self._attempt(small, setting, rough=True)
            except NotFoldable:
                self.small, self.folds = None, False
        return self._attempt(normal, setting, rough=True)

    def _folded(self, normal: ir.Module) -> ir.Module | None:
        """The folded program, made when it is first asked for."""
        if self.folds and self.small is None:
            self.small = folded(normal)
            self.folds = self.small is not None
        return self.small

    def _partly(self, normal: ir.Module, setting: Setting) -> Attempt:
        """The attempt with the layers run again that prices find best; its setting says which."""
        found = self._priced(normal, setting)
        if found.error is not None:
            return found
        layers = list(ir.DenseI64ArrayAttr(found.module.operation.attributes[alpa.REMAT]))
        named = replace(setting, remat=layers_text(layers, read_layout(found.module).count))
        self.sizes.setdefault(named, self.sizes.get(setting, set()))
        return replace(found, setting=named) if self.rough else self.attempt(normal, named, exact=True)

    def _attempt(self, normal: ir.Module, setting: Setting, rough: bool, memory: float = 0.0) -> Attempt:
        layered = self._layers(normal, setting)
        if layered.error is not None or self.stop_after in EARLY:
            return replace(layered, setting=setting)
        module, remarks = clone_module(layered.module), list(layered.remarks)
        attempt = Attempt(setting, module)
        options = replace(self.options, chunks=self.chunks.get(setting, self.options.chunks))
        try:
            meshes = self._meshes(setting, not rough and not memory)
            self.run(module, until_stages(options, setting, meshes, rough, memory), remarks)
        except NotFoldable:
            raise
        except CompileError as error:
            attempt = replace(attempt, error=error.without_frames())
        else:
            attempt = replace(attempt, remarks=tuple(remarks))
            meshes_found = [stage.mesh for stage in read_stages(module).values()]
            self.chosen |= dict.fromkeys("x".join(map(str, mesh.shape)) for mesh in meshes_found)
            if rough and not setting.interleaved:
                self.sizes[setting] = {mesh.device_count for mesh in meshes_found}
            if setting.interleaved and rough and self.options.cluster.nodes >= LARGE:
                pipeline = read_pipeline(module)
                self.chunks[setting] = len(pipeline) // len(set(pipeline))
        attributes = module.operation.attributes
        attributes[alpa.CLUSTER] = self.options.cluster.attribute(module.context)
        if alpa.MESHES in attributes:
            self.meshes[setting] = alpa.get_string(module.operation, alpa.MESHES) or ""
            floor, eager = ir.DenseF64ArrayAttr(attributes[alpa.FLOOR])
            ahead = tuple(ir.DenseF64ArrayAttr(attributes[alpa.AHEAD]))
            attempt = replace(attempt, floor=floor, eager=eager, ahead=ahead)
            for name in (alpa.MESHES, alpa.FLOOR, alpa.AHEAD):
                del attributes[name]
        return attempt

    def _layers(self, normal: ir.Module, setting: Setting) -> Attempt:
        """Level 3 with a number of microbatches, kept for other settings of the same number."""
        key = (setting.microbatches, normal is not self.small)
        known = self.layered.get(key)
        if known is not None:
            return known
        module, remarks = clone_module(normal), list[Remark]()
        whole = [key for key in self.layered if key[1]]
        for old in whole[: 1 - LAYERED] if key[1] else ():
            del self.layered[old]
        error: CompileError | None = None
        try:
            self.run(module, until_layers(self.options, self.expected, setting), remarks)
        except NotFoldable:
            raise
        except CompileError as found:
            error = found.without_frames()
        self.layered[key] = Attempt(setting, module, tuple(remarks), error)
        return self.layered[key]

    def _meshes(self, setting: Setting, known: bool) -> str:
        """The logical meshes to search (empty: all): what was of no use under one setting is not tried under others;
        `known`: nor are meshes of other sizes than those of the stages that prices found."""
        if setting.interleaved and setting not in self.meshes and self.options.cluster.nodes >= LARGE:
            return ",".join(self.chosen)
        useful = self.meshes.get(setting, next((m for s, m in self.meshes.items() if not s.interleaved), ""))
        sizes = self.sizes.get(setting, set()) if known else set()
        same = [shape for shape in useful.split(",") if shape and prod(parse_mesh(shape)) in sizes]
        return ",".join(same) or useful

    def counts(self, normal: ir.Module) -> list[int]:
        """Numbers of microbatches to choose from."""
        options = self.options
        if options.microbatches:
            return [options.microbatches]
        if self.stop_after == "alpa-microbatch":
            return [1]
        size = batch_size(normal)
        return [m for m in (2**k for k in range(MOST_MICROBATCHES.bit_length())) if size % m == 0] or [1]


def _step_seconds(module: ir.Module) -> float:
    """What a step of a finished plan is predicted to take; 0 where the road ended before."""
    attributes = module.operation.attributes
    finished = alpa.get_string(module.operation, alpa.LEVEL) == "plan" and alpa.COST in attributes
    return float(ir.FloatAttr(attributes[alpa.COST]).value) if finished else 0.0


def _passed_over(rows: Sequence[Considered]) -> list[Remark]:
    """The first number of microbatches that cannot be at all."""
    possible = {row.setting.microbatches for row in rows if row.error is None}
    for row in rows:
        if row.error is not None and row.setting.microbatches not in possible:
            why = f"{row.setting.microbatches} microbatches are not possible: {row.error.message}"
            return [Remark(why, row.error.location)]
    return []


def folded(normal: ir.Module) -> ir.Module | None:
    """A level-1 program with its equal layers folded; None where nothing folds, or where a user says the layers."""
    body = functions(normal)["main"].regions[0].blocks[0]
    if any(alpa.LAYER in op.attributes for op in body.operations):
        return None
    small = fold(normal)
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
