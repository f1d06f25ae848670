"""`alpa-print-strategies`: all ways in which each op could be run, and why not in others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import Remark, location_names, location_text
from alpa_mlir.dialect.mesh import Mesh, parse_mesh
from alpa_mlir.passes.costs.cluster import load_cluster, module_cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.intra.excluded import exclusions
from alpa_mlir.passes.intra.program import OpRecord
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.intra.words import einsum, factor_names, placement_text, seconds_text, steps_text, strategy_text
from alpa_mlir.passes.registry import Pass, option, register


@register
@dataclass(frozen=True)
class PrintStrategies(Pass):
    """Remark at every op the strategies it has on a mesh, with their seconds, and what was excluded with the reason.

    IR before and after: any of levels 1 to 4; nothing changes. A strategy says which axes lie on which factor, the
    operands' and results' shardings, the seconds of its local piece and of the collectives that end its sums.
    """

    name: ClassVar[str] = "alpa-print-strategies"
    mesh: str = option("4", "logical mesh, for example 2x4")
    cluster: str = option("", "cluster preset; empty: the module's alpa.cluster, else cpu")
    only: str = option("*", "only ops of this name (stablehlo.sort) or with a location so called; * and ? match")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        shape = parse_mesh(self.mesh)
        known = load_cluster(self.cluster) if self.cluster else module_cluster(module) or load_cluster("cpu")
        if known.nodes == 1:
            known = known.with_sizes(devices_per_node=max(prod(shape), known.devices_per_node))
        mesh = Mesh.from_shape("mesh", shape)
        enumerator = Enumerator(mesh_links(mesh, known), known)
        for op in read_program(module).ops:
            if op.result_types and not op.is_source and is_called(op, self.only):
                remarks.extend(_strategies(op, enumerator))


def is_called(op: OpRecord, name: str) -> bool:
    """Whether an op is of a kind, or has a location, of that name."""
    return any(fnmatchcase(text, name) for text in (op.op.name, *location_names(op.op.location)))


def _strategies(op: OpRecord, enumerator: Enumerator) -> Iterator[Remark]:
    where = location_text(op.op.location)
    strategies = enumerator.of_op(op).strategies
    count = f"{len(strategies)} strateg{'y' if len(strategies) == 1 else 'ies'}"
    yield Remark(f"{op.op.name} {einsum(op.factors)}: {count}", where)
    for s in strategies:
        ending = f", {steps_text(s.ending)} {seconds_text(s.communication)}" if s.ending else ""
        text = f"{placement_text(s, op.factors)}: {strategy_text(s)}: compute {seconds_text(s.compute)}{ending}"
        yield Remark(text, where, "note")
    names = factor_names(op.factors)
    without: dict[tuple[str, str], list[str]] = {}
    for factor, axis, why in exclusions(op.factors, enumerator.mesh):
        without.setdefault((axis, why), []).append(names[factor])
    for (axis, why), letters in without.items():
        yield Remark(f"not {axis or 'split'} on {', '.join(letters)}: {why}", where, "note")
