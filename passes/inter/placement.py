"""From layers to stages in the IR: `alpa.stage` on ops, and the home of every argument.

An argument has one home: a state the stage of the op that makes its next value; `sum:k` and `stack:k`
the stage of their producer; every other the lowest stage that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import argument_attributes, set_argument_attributes
from alpa_mlir.passes.inter.dataflow import Dataflow, read_dataflow
from alpa_mlir.passes.inter.phases import state_updates


def place(module: ir.Module, stage_of_layer: Sequence[int]) -> None:
    """Write `alpa.stage` on all ops and arguments of @prologue, @microbatch and @update."""
    flows = {name: read_dataflow(function) for name, function in functions(module).items() if name != "main"}
    stages = [alpa.i64(stage, module.context) for stage in stage_of_layer]
    for flow in flows.values():
        for op in flow.ops:
            op.attributes[alpa.STAGE] = stages[alpa.get_int(op, alpa.LAYER) or 0]
    homes = _homes(flows, state_updates(functions(module)["main"]))
    for flow in flows.values():
        entries = argument_attributes(flow.function)
        for entry, binding in zip(entries, flow.arguments, strict=True):
            entry[alpa.STAGE] = alpa.i64(homes[_key(binding)], module.context)
        set_argument_attributes(flow.function, entries)
    check_order(flows["microbatch"])


def _key(binding: Binding) -> Binding:
    """An argument of @main has one home, whole or cut into microbatches."""
    return Binding("arg", binding.number) if binding.kind == "batch" else binding


def _homes(flows: dict[str, Dataflow], updates: dict[int, int]) -> dict[Binding, int]:
    used = _lowest_uses(flows)
    homes: dict[Binding, int] = {b: used.get(b, 0) for f in flows.values() for b in map(_key, f.arguments)}
    for name in ("prologue", "microbatch"):
        if name in flows:
            homes |= _made_at(flows[name], homes)
    for binding, stage in _made_at(flows["update"], homes).items():
        if binding.number in updates:
            state = Binding("arg", updates[binding.number])
            if state in homes:
                homes[state] = stage
    return homes


def _lowest_uses(flows: dict[str, Dataflow]) -> dict[Binding, int]:
    used: dict[Binding, int] = {}
    for flow in flows.values():
        for value, binding in enumerate(flow.arguments):
            stages = [alpa.get_int(flow.ops[u], alpa.STAGE) or 0 for u in flow.uses[value]]
            if stages:
                used[_key(binding)] = min([*stages, used.get(_key(binding), stages[0])])
    return used


def _made_at(flow: Dataflow, homes: dict[Binding, int]) -> dict[Binding, int]:
    """For each binding that a function yields the stage of its producer, or the home of the argument it is."""
    found = {}
    for value, binding in zip(flow.returned, flow.yields, strict=True):
        owner = flow.definition[value]
        if owner >= 0:
            found[binding] = alpa.get_int(flow.ops[owner], alpa.STAGE) or 0
        else:
            found[binding] = homes[_key(flow.arguments[value])]
    return found


def check_order(micro: Dataflow) -> None:
    """Forward data flows to equal or higher stages, backward data to equal or lower ones, or `CompileError`."""
    places = [(alpa.get_int(op, alpa.STAGE) or 0, alpa.get_string(op, alpa.PHASE)) for op in micro.ops]
    for o, (stage, phase) in enumerate(places):
        for source, source_phase in (places[p] for p in micro.producers(o)):
            if phase == "forward" and (source > stage or source_phase == "backward"):
                raise CompileError(
                    f"a forward op of stage {stage} needs a {source_phase} value of stage {source}",
                    micro.ops[o].location,
                )
            if phase == source_phase == "backward" and source < stage:
                raise CompileError(
                    f"a backward op of stage {stage} needs a backward value of the earlier stage {source}",
                    micro.ops[o].location,
                )
