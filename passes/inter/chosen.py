"""The stages that were chosen, and how a module of level 4 says them (docs/ir.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.mesh import Mesh, declare_mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.inter.estimates import ESTIMATE
from alpa_mlir.passes.intra.stage_cost import StageCost
from alpa_mlir.passes.intra.stage_parts import StageParts


@dataclass(frozen=True)
class Stage:
    """Layers `first` … `last` on `devices`, arranged as `mesh`; what it costs, as far as known."""

    first: int
    last: int
    mesh: Mesh
    devices: tuple[int, ...]
    cost: StageCost | None = None
    parts: StageParts | None = None


def write_chosen(module: ir.Module, cluster: Cluster, stages: Sequence[Stage], seconds: float | None) -> None:
    """Write stages, their submeshes and the cluster; `seconds`: of a step, where stages were searched."""
    context = module.context
    for stage in stages:
        declare_mesh(module, stage.mesh)
    attributes = module.operation.attributes
    attributes[alpa.CLUSTER] = cluster.attribute(context)
    attributes[alpa.STAGES] = ir.ArrayAttr.get([_stage_attribute(s, context) for s in stages], context=context)
    if seconds is not None:
        with ir.Location.unknown(context):
            attributes[alpa.COST] = ir.FloatAttr.get(ir.F64Type.get(context), seconds)
    alpa.set_string(module.operation, alpa.LEVEL, "staged")


def _stage_attribute(stage: Stage, context: ir.Context) -> ir.Attribute:
    entries = {
        "mesh": alpa.string(stage.mesh.name, context),
        "devices": ir.DenseI64ArrayAttr.get(list(stage.devices), context=context),
        "layers": ir.DenseI64ArrayAttr.get([stage.first, stage.last], context=context),
    }
    if stage.cost is not None:
        entries["memory_bytes"] = alpa.i64(ceil(stage.cost.memory_bytes), context)
        with ir.Location.unknown(context):
            for name in ("microbatch_seconds", "step_seconds"):
                entries[name] = ir.FloatAttr.get(ir.F64Type.get(context), getattr(stage.cost, name))
    if stage.parts is not None:
        entries[ESTIMATE] = stage.parts.attribute(context)
    return ir.DictAttr.get(dict(sorted(entries.items())), context=context)
