"""From layers to stages in the IR: `alpa.stage` on ops, copies of cheap ops, the home of every argument.

A value that is used in several stages is transferred. Two kinds are made again instead, in every stage
that needs them:

* what depends on no argument (masks, constants, iota);
* in `@update`, what depends on arguments of `@main` alone and is small (bias corrections from the
  step count: otherwise each stage's update would wait for the first one's), and what only enlarges a value
  (the broadcast of a clipping factor: the factor travels, not the broadcast).

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

SMALL = 1024
"""Bytes up to which a result of @update that needs no sum is computed again rather than transferred."""


def place(module: ir.Module, stage_of_layer: Sequence[int]) -> None:
    """Write `alpa.stage` on all ops and arguments of @prologue, @microbatch and @update."""
    derived = {name: f for name, f in functions(module).items() if name != "main"}
    for name, function in derived.items():
        flow = read_dataflow(function)
        for op in flow.ops:
            alpa.set_int(op, alpa.STAGE, stage_of_layer[alpa.get_int(op, alpa.LAYER) or 0])
        _repeat_cheap(flow, _cheap_in_update(flow) if name == "update" else _without_arguments(flow))
    flows = {name: read_dataflow(function) for name, function in derived.items()}
    homes = _homes(flows, state_updates(functions(module)["main"]))
    for flow in flows.values():
        entries = argument_attributes(flow.function)
        for entry, binding in zip(entries, flow.arguments, strict=True):
            entry[alpa.STAGE] = alpa.i64(homes[_key(binding)], module.context)
        set_argument_attributes(flow.function, entries)
    check_order(flows["microbatch"])


def _without_arguments(flow: Dataflow) -> list[bool]:
    bound = [d < 0 for d in flow.definition]
    for o in range(len(flow.ops)):
        for v in flow.results[o]:
            bound[v] = any(bound[i] for i in flow.operands[o])
    return [all(not bound[v] for v in flow.results[o]) for o in range(len(flow.ops))]


def _cheap_in_update(flow: Dataflow) -> list[bool]:
    early = [b.kind == "arg" for b in flow.arguments]
    early += [False] * (len(flow.definition) - len(early))
    cheap = []
    for o, op in enumerate(flow.ops):
        made = sum(flow.nbytes[v] for v in flow.results[o])
        read = sum(flow.nbytes[v] for v in flow.operands[o])
        alone = all(early[v] for v in flow.operands[o])
        for v in flow.results[o]:
            early[v] = alone
        cheap.append((alone and made <= SMALL and read <= SMALL) or (made > read and not op.regions))
    return cheap


def _repeat_cheap(flow: Dataflow, cheap: Sequence[bool]) -> None:
    """Give every stage that uses a cheap op its own copy, last ops first so that copies of users count."""
    block = flow.function.regions[0].blocks[0]
    for o in range(len(flow.ops) - 1, -1, -1):
        op = flow.ops[o]
        if not cheap[o]:
            continue
        users = [(_top(use.owner.operation, block), use) for r in op.results for use in r.uses]
        wanted: dict[int, list[tuple[ir.Operation, ir.OpOperand]]] = {}
        for user, use in users:
            stage = alpa.get_int(user, alpa.STAGE)
            if stage is not None:
                wanted.setdefault(stage, []).append((user, use))
        returned = any(alpa.get_int(user, alpa.STAGE) is None for user, _ in users)
        own = alpa.get_int(op, alpa.STAGE)
        if wanted and not returned and own not in wanted:
            own = min(wanted)
            _settle(op, own, [user for user, _ in wanted[own]])
        for stage in sorted(wanted):
            if stage != own:
                _copy_into(op, stage, wanted[stage])


def _copy_into(op: ir.Operation, stage: int, users: Sequence[tuple[ir.Operation, ir.OpOperand]]) -> None:
    copy = op.clone(ip=ir.InsertionPoint(op)).operation
    numbers = [(_result_of(use), use) for _, use in users]
    _settle(copy, stage, [user for user, _ in users])
    for number, use in numbers:
        use.owner.operation.operands[use.operand_number] = copy.results[number]


def _result_of(use: ir.OpOperand) -> int:
    value = use.owner.operation.operands[use.operand_number]
    return int(ir.OpResult(value).result_number)


def _settle(op: ir.Operation, stage: int, users: Sequence[ir.Operation]) -> None:
    """Put an op into the stage, layer and phase of its first user there."""
    alpa.set_int(op, alpa.STAGE, stage)
    alpa.set_int(op, alpa.LAYER, min(alpa.get_int(u, alpa.LAYER) or 0 for u in users))
    phases = {alpa.get_string(u, alpa.PHASE) for u in users}
    if phases == {"backward"}:
        alpa.set_string(op, alpa.PHASE, "backward")


def _top(op: ir.Operation, block: ir.Block) -> ir.Operation:
    """The op of the function's own block that holds `op`."""
    while op.block != block:
        op = op.parent.operation
    return op


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
