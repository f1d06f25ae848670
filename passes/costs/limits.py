"""How much memory the devices of a plan's submeshes have, and whether a step fits."""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.passes.costs.cluster import module_cluster


def memory_limits(module: ir.Module, otherwise: float = float("inf")) -> tuple[float, ...]:
    """Bytes per device of each submesh, in order of first use by a stage; `otherwise` where no cluster is known."""
    cluster = module_cluster(module)
    first = {ir.StringAttr(e["mesh"]).value: min(ir.DenseI64ArrayAttr(e["devices"])) for e in stage_entries(module)}
    return tuple(float(cluster.part_of(d).memory) if cluster else otherwise for d in first.values())


def fullest(peaks: Sequence[float], limits: Sequence[float]) -> tuple[float, float]:
    """(bytes needed, bytes there) of the submesh that is fullest for its devices."""
    return max(zip(peaks, limits, strict=True), key=lambda pair: pair[0] / pair[1])
