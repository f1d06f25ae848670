"""alpa-microbatch: split a step over time.

Splitting a batch over M microbatches is partitioning over a mesh axis of size M laid out in time (GPipe and
gradient accumulation, seen as GSPMD would).  `time_analysis` finds each value's state along that axis, `time_cut` where
the sums are taken, `time_demand` what one microbatch has to compute, `time_rewrite` writes it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, passmanager
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.local.time_analysis import DetachBase, TimeAnalysis
from alpa_mlir.passes.local.time_base import detach_base
from alpa_mlir.passes.local.time_fission import MustSplit, split_loops
from alpa_mlir.passes.local.time_rewrite import Microbatched
from alpa_mlir.passes.local.time_states import INVARIANT, STATISTIC, State, split
from alpa_mlir.passes.local.update_order import order_by_results
from alpa_mlir.passes.registry import Pass, option, register


@register
@dataclass(frozen=True)
class Microbatch(Pass):
    """Split a step into microbatches: `@microbatch` runs M times, `@update` once on the sums.

    Before: level 1 (`alpa-normalize`), batch arguments marked `alpa.role = "batch"`.
    After: level 2 (docs/ir.md): `@prologue` (where needed), `@microbatch`, `@update` and a `@main` that runs
    them, equal to the `@main` before up to the order of additions.
    The program must not mix examples of different microbatches; what does is an error at the op, except
    values that depend on no state (computed beforehand on the full batch) and, with
    `allow-per-microbatch-statistics`, sums over the batch that examples need again: each microbatch then
    uses M times its own sum, and what leaves for the update is averaged.
    """

    name: ClassVar[str] = "alpa-microbatch"
    count: int = option(1, "number of microbatches M; must divide the batch")
    allow_per_microbatch_statistics: bool = option(
        False, "let batch statistics (batch norm) be those of each microbatch, averaged over the step"
    )

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite a level-1 module; raises `CompileError` where the program mixes examples."""
        main = functions(module).get("main")
        if main is None:
            raise CompileError("alpa-microbatch needs a function @main", module.operation.location)
        if self.count < 1:
            raise CompileError(f"count must be at least 1, got {self.count}", main.location)
        with module.context, ir.Location.unknown():
            batching = "func.func(sdy-explicit-gather-scatter-batching)"
            passmanager.PassManager.parse(f"builtin.module({batching})").run(module.operation)
            main = functions(module)["main"]
            analysis = _write(main, self.count, self.allow_per_microbatch_statistics)
            order_by_results(functions(module)["update"])
        alpa.set_string(module.operation, alpa.LEVEL, "microbatched")
        alpa.set_int(module.operation, alpa.MICROBATCHES, self.count)
        if analysis.statistics and self.count > 1:
            alpa.set_string(module.operation, alpa.STATISTICS, "microbatch")


def _write(main: ir.Operation, parts: int, per_microbatch: bool) -> TimeAnalysis:
    """Put the functions of level 2 in place of @main; loops that microbatches and the update need become two."""
    while True:
        analysis = _analyse(main, parts, per_microbatch)
        try:
            Microbatched(main, analysis).write()
        except MustSplit as found:
            split_loops(found.loops, analysis)
        else:
            return analysis


def _analyse(main: ir.Operation, parts: int, per_microbatch: bool) -> TimeAnalysis:
    """States of all values; sums that start from a value are rewritten to start from zero where that matters."""
    while True:
        analysis = TimeAnalysis(main, parts, per_microbatch)
        seeds, stateful = _seeds(main, parts)
        try:
            analysis.run(seeds, stateful)
        except DetachBase as found:
            detach_base(found.op)
        else:
            return analysis


def _seeds(main: ir.Operation, parts: int) -> tuple[list[State], list[bool]]:
    """The arguments' states: batch arguments split, others invariant; and which of them are state.

    With one microbatch and no batch argument, everything that is not state is the microbatch's own work.
    """
    entries = argument_attributes(main)
    roles = [ir.StringAttr(e[alpa.ROLE]).value if alpa.ROLE in e else "constant" for e in entries]
    stateful = [role == "state" for role in roles]
    arguments = list(main.regions[0].blocks[0].arguments)
    if "batch" not in roles:
        if parts > 1:
            raise CompileError(
                f"no argument of @main is a batch, so there is nothing to split into {parts} microbatches: "
                'mark batch arguments with alpa.role = "batch" or name them with --batch-args',
                main.location,
            )
        return [INVARIANT if s else STATISTIC for s in stateful], stateful
    seeds = []
    for i, (role, entry, argument) in enumerate(zip(roles, entries, arguments, strict=True)):
        dim = int(ir.IntegerAttr(entry[alpa.DIM]).value) if alpa.DIM in entry else 0
        seeds.append(_batch_seed(i, argument, dim, parts) if role == "batch" else INVARIANT)
    return seeds, stateful


def _batch_seed(number: int, argument: ir.Value, dim: int, parts: int) -> State:
    shape = shape_of(argument)
    if shape is None or dim >= len(shape):
        raise CompileError(f"batch argument {number} has no dimension {dim}: {argument.type}", argument.location)
    if shape[dim] % parts:
        raise CompileError(
            f"{parts} microbatches do not divide batch argument {number}, which has {shape[dim]} examples",
            argument.location,
        )
    return split(dim)
