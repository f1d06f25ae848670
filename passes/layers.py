"""`alpa-layers`: gather the ops of one step into layers, the grain at which stages are cut.

A training step has thousands of ops; the stage search needs a handful of units.  The pass
finds the forward pass in the graph (`inter/phases.py`), cuts it into layers of similar work with little
data between them (`inter/layer_dp.py`: Alpa, OSDI'22, §5.2), and lets backward and update ops follow
their data (`inter/assign.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.passes.inter import assign
from alpa_mlir.passes.inter.dataflow import Dataflow, read_dataflow
from alpa_mlir.passes.inter.fold_layers import check_repeats, segment_layout, share_cheap_ops
from alpa_mlir.passes.inter.layout import Layout, write_layout
from alpa_mlir.passes.inter.phases import forward_ops, state_updates
from alpa_mlir.passes.inter.repeat import repeat_cheap_ops
from alpa_mlir.passes.inter.sum_pieces import separate
from alpa_mlir.passes.registry import Pass, option, register

AUTOMATIC_LAYERS = 8


@register
@dataclass(frozen=True)
class Layers(Pass):
    """Write `alpa.layer` and `alpa.phase` on every op of `@microbatch`, `@update` and `@prologue`.

    IR before: level 2 (`alpa.level = "microbatched"`). IR after: level 3 (`"layered"`).
    Precondition: none further; `alpa.layer` that stands on forward ops already is a user's cut and is kept.
    Postcondition: forward data flows from lower to equal or higher layers, backward data from higher to
    equal or lower ones; every layer holds at least one contraction of the forward pass.
    """

    name: ClassVar[str] = "alpa-layers"
    count: int = option(
        0,
        f"number of layers; 0: {AUTOMATIC_LAYERS} (2·stages if more; up to half as many again where they are equal "
        "then), at most one per contraction",
    )
    stages: int = option(0, "with count=0: the number of stages that will be made of the layers, if known")
    even: bool = option(False, "any few layers in a row do about as much work; else each layer does (least variance)")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        level = alpa.get_string(module.operation, alpa.LEVEL)
        if level != "microbatched":
            raise CompileError(
                f"alpa-layers needs a microbatched module (run alpa-microbatch first), got level {level or 'source'}",
                module.operation.location,
            )
        if min(self.count, self.stages) < 0:
            raise CompileError(f"the number of layers must not be negative, got {min(self.count, self.stages)}")
        flows = {name: read_dataflow(f) for name, f in functions(module).items() if name != "main"}
        micro, update = flows["microbatch"], flows["update"]
        forward = forward_ops(micro, update, state_updates(functions(module)["main"]))
        automatic = max(AUTOMATIC_LAYERS, 2 * self.stages)
        ahead, layout = _forward_layers(micro, forward, self.count, automatic, self.even, remarks)
        layers = layout.layers
        behind = assign.backward_layers(micro, ahead, layers)
        of_micro = [ahead[o] if o in ahead else behind[o] for o in range(len(micro.ops))]
        _write(micro, of_micro, ["forward" if o in ahead else "backward" for o in range(len(micro.ops))])
        if separate(module):
            flows = {name: read_dataflow(f) for name, f in functions(module).items() if name != "main"}
            micro, update = flows["microbatch"], flows["update"]
            of_micro = [alpa.get_int(op, alpa.LAYER) or 0 for op in micro.ops]
        of_update = assign.update_layers(update, _produced_at(micro, of_micro))
        _write(update, of_update, ["update"] * len(update.ops))
        if "prologue" in flows:
            needed = _needed_at([(micro, of_micro), (update, of_update)])
            of_prologue = assign.prologue_layers(flows["prologue"], needed)
            _write(flows["prologue"], of_prologue, ["prologue"] * len(of_prologue))
        check_repeats(flows.values(), layout)
        if layout.whole:
            for flow in flows.values():
                repeat_cheap_ops(flow)
        else:
            write_layout(module, share_cheap_ops(flows.values(), layout))
        alpa.set_string(module.operation, alpa.LEVEL, "layered")


def _forward_layers(
    micro: Dataflow, forward: set[int], count: int, automatic: int, even: bool, remarks: list[Remark]
) -> tuple[dict[int, int], Layout]:
    """Layer of each forward op, and their layout: `count` layers, or about `automatic` where that is 0.

    Those of a folded program are its segments, and what is cut is the whole program.
    """
    given = assign.user_layers(micro, forward)
    if given is not None:
        layers = max(given.values()) + 1
        if count not in (0, layers):
            raise CompileError(
                f"count={count}, but the program's own alpa.layer attributes name {layers} layers",
                micro.function.location,
            )
        return assign.complete_forward(micro, forward, given, layers), Layout(layers)
    spine = assign.spine_of(micro, forward)
    if not spine:
        return dict.fromkeys(sorted(forward), 0), Layout(1)
    segments = assign.segments_of(micro, spine)
    layout = segment_layout(micro, spine, segments)
    possible = assign.most_layers(layout)
    layers = count or min(_even(assign.repetitions(micro, spine, segments, layout), automatic), possible)
    if layers > possible:
        raise CompileError(
            f"{layers} layers were asked for, but the forward pass has only {possible} contractions to cut between",
            micro.function.location,
        )
    starts, cut = assign.cut_forward(micro, spine, segments, layout, layers, even)
    if cut.delta > 0.5:
        share = f"{100 * (1 + cut.delta) / layers:.0f} %"
        message = f"no cut into {layers} layers is balanced within 50 %: a layer may do {share} of the work"
        remarks.append(Remark(message, _where(micro)))
    found = Layout(layers)
    if not layout.whole:
        found = replace(layout, cuts=starts)
    else:
        segments = (np.searchsorted(np.array(starts), np.array(segments), side="right") - 1).tolist()
    known = dict(zip(spine, segments, strict=True))
    return assign.complete_forward(micro, forward, known, found.layers), found


def _even(repetitions: int, least: int) -> int:
    """At least so many layers, and a few more where all of them then hold as many of the repeated parts: equal layers
    are compared, and folded, as one."""
    for layers in range(least, least * 3 // 2 + 1):
        if repetitions >= 2 * layers and repetitions % layers == 0:
            return layers
    return least


def _where(flow: Dataflow) -> str:
    return CompileError("", flow.function.location).location


def _produced_at(micro: Dataflow, layers: Sequence[int]) -> dict[Binding, int]:
    produced: dict[Binding, int] = {}
    for value, binding in zip(micro.returned, micro.yields, strict=True):
        owner = micro.definition[value]
        readers = [layers[u] for u in micro.uses[value]]
        produced[binding] = layers[owner] if owner >= 0 else min(readers, default=0)
    return produced


def _needed_at(parts: Sequence[tuple[Dataflow, Sequence[int]]]) -> dict[Binding, int]:
    """For each binding of an argument the lowest layer that reads it."""
    needed: dict[Binding, int] = {}
    for flow, layers in parts:
        for value, binding in enumerate(flow.arguments):
            for user in flow.uses[value]:
                needed[binding] = min(needed.get(binding, layers[user]), layers[user])
    return needed


def _write(flow: Dataflow, layers: Sequence[int], phases: Sequence[str]) -> None:
    context = flow.function.context
    numbers = {layer: alpa.i64(layer, context) for layer in set(layers)}
    words = {phase: alpa.string(phase, context) for phase in set(phases)}
    for op, layer, phase in zip(flow.ops, layers, phases, strict=True):
        op.attributes[alpa.LAYER], op.attributes[alpa.PHASE] = numbers[layer], words[phase]
