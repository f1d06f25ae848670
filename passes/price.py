"""`alpa-price`: what each stage function and each transfer of a split step costs, written where it stands.

The figures are those of `alpa_mlir.passes.costs.pricing`, of the module as it is: whatever was repeated,
cut in two or resharded on the way is in them.  `alpa-schedule` plays them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.plan import Stage, read_stages, stage_entries
from alpa_mlir.dialect.staged import ACCUMULATE, STACK, TRANSFER, Fragment, MeshTensor, PlanMain
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster, module_cluster
from alpa_mlir.passes.costs.communication import transfer_cost
from alpa_mlir.passes.costs.compute import adding_seconds
from alpa_mlir.passes.costs.links import MeshLinks, links_from, mesh_links
from alpa_mlir.passes.costs.pricing import FunctionCost, price_function
from alpa_mlir.passes.inter.estimates import ESTIMATE
from alpa_mlir.passes.local.equal_functions import Anonymous, Key
from alpa_mlir.passes.memo import noted
from alpa_mlir.passes.registry import Pass, register
from alpa_mlir.passes.streams import Maker, side_by_side

PARTS = ("forward", "backward", "weight", "update", "prologue")
LONG = 20_000
"""From how many values read on functions are priced side by side: it is a quarter of a second's work."""


@register
@dataclass(frozen=True)
class Price(Pass):
    """Write the predicted cost of each stage function, transfer and accumulation.

    IR before: level 6, not localized. IR after: `alpa.cost = {seconds = {product = …, …}, working_bytes = …}` on stage
    functions, `alpa.cost = {seconds = …}` on `mpmd.transfer` (and `start`, the latency in it), `alpa.accumulate` and
    `alpa.stack`, and in `alpa.stages` for each stage `forward_seconds`, `backward_seconds`, … of one run. The cluster
    is the module's (without one: cpu).
    """

    name: ClassVar[str] = "alpa-price"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        if alpa.get_string(module.operation, alpa.LEVEL) != "split":
            raise CompileError("alpa-price needs a split module: run alpa-split first", module.operation.location)
        if any(op.name == "sdy.manual_computation" for op in alpa.walk(module.operation)):
            raise CompileError("alpa-price needs whole tensors: run it before alpa-localize", module.operation.location)
        cluster = module_cluster(module) or load_cluster("cpu")
        stages, main = read_stages(module), read_main(module)
        links = {name: mesh_links(s.mesh, cluster, min(s.devices)) for name, s in stages.items()}
        parts = {name: cluster.part_of(min(s.devices)) for name, s in stages.items()}
        costs = _price_functions(module, main, links, parts)
        for op in alpa.walk(functions(module)["main"]):
            if op.name == TRANSFER:
                source, target = (MeshTensor.read(v.type) for v in (op.operands[0], op.results[0]))
                ends = [d for m in (source, target) for d in stages[m.mesh].devices]
                there = links_from(links[target.mesh], ends, cluster)
                cost = transfer_cost(target.sharding, there)
                _set_seconds(op, cost.at(target.bytes), cost.seconds)
            elif op.name in (ACCUMULATE, STACK):
                kind = MeshTensor.read(op.operands[0].type)
                held, part = local_bytes(kind, stages[kind.mesh]), parts[kind.mesh]
                # A stack reads a value and writes one.
                _set_seconds(op, adding_seconds(held, part) if op.name == ACCUMULATE else 2 * held / part.memory_speed)
        _write_stages(module, main, costs)


def local_bytes(kind: MeshTensor, stage: Stage) -> float:
    """Bytes that one device holds of a value."""
    return kind.bytes / stage.mesh.extent(kind.sharding.axes)


def _price_functions(
    module: ir.Module, main: PlanMain, links: Mapping[str, MeshLinks], parts: Mapping[str, Cluster]
) -> dict[str, FunctionCost]:
    found, known = functions(module), _known()
    keys: dict[str, Key] = {}
    new: dict[Key, Maker] = {}
    for call in (s for s in main.steps if isinstance(s, Fragment)):
        function, at, part = found[call.function], links[call.mesh], parts[call.mesh]
        key = keys[call.function] = (*known.names.key(function, call.mesh), at.content, part)
        if key not in known.costs:
            new.setdefault(key, partial(_cost, function, at, part))
    with side_by_side(list(new.values()), sum(map(_length, new)) >= LONG) as streams:
        known.costs.update(zip(new, streams.advance(range(len(new))), strict=True))
    costs = {name: known.costs[key] for name, key in keys.items()}
    for name, cost in costs.items():
        _write_cost(found[name], cost)
    return costs


@dataclass(frozen=True)
class _Known:
    """What functions cost in this planning, by what is in them: a plan that is made again has many of them again."""

    names: Anonymous
    costs: dict[Key, FunctionCost]


def _known() -> _Known:
    notes = noted(Price.name)
    if not notes:
        notes.append(_Known(Anonymous(), {}))
    found: _Known = notes[0]
    return found


def _cost(function: ir.Operation, links: MeshLinks, part: Cluster) -> Iterator[FunctionCost]:
    yield price_function(function, links, part)


def _length(key: Key) -> int:
    """About how many values a function reads."""
    return len(key[1]) if isinstance(key[1], tuple) else 0


def _write_cost(function: ir.Operation, cost: FunctionCost) -> None:
    context = function.context
    with ir.Location.unknown(context):
        f64 = ir.F64Type.get(context)
        seconds = ir.DictAttr.get({name: ir.FloatAttr.get(f64, s) for name, s in cost.seconds_of}, context)
        working = alpa.i64(ceil(cost.working_bytes), context)
        function.attributes[alpa.COST] = ir.DictAttr.get({"seconds": seconds, "working_bytes": working}, context)


def _set_seconds(op: ir.Operation, seconds: float, start: float = 0.0) -> None:
    """Seconds of an op of `@main`, and how many of them pass before the link is in use."""
    with ir.Location.unknown(op.context):
        f64 = ir.F64Type.get(op.context)
        figures = {"seconds": seconds} | ({"start": start} if start else {})
        entries = {name: ir.FloatAttr.get(f64, value) for name, value in figures.items()}
        op.attributes[alpa.COST] = ir.DictAttr.get(entries, op.context)


def _write_stages(module: ir.Module, main: PlanMain, costs: Mapping[str, FunctionCost]) -> None:
    """Seconds of one run of each part, by stage; what runs once per step is counted at the submesh's first stage."""
    context, entries = module.context, []
    with ir.Location.unknown(context):
        f64 = ir.F64Type.get(context)
        for number, before in enumerate(stage_entries(module)):
            entry = {before[i].name: before[i].attr for i in range(len(before)) if before[i].name != ESTIMATE}
            for part in PARTS:
                calls = [s for s in main.steps if isinstance(s, Fragment) and (s.stage, s.phase) == (number, part)]
                if calls:
                    seconds = sum(costs[c.function].seconds for c in calls)
                    entry[f"{part}_seconds"] = ir.FloatAttr.get(f64, seconds)
            entries.append(ir.DictAttr.get(dict(sorted(entry.items())), context))
        module.operation.attributes[alpa.STAGES] = ir.ArrayAttr.get(entries, context)
