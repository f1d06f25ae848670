"""Which layers run again where a finished plan is too large: one more of each stage on the submeshes that are."""

from __future__ import annotations

from collections.abc import Sequence

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.passes.number_list import number_text
from alpa_mlir.passes.settings import FULL, NONE

MORE = 3
"""How often that is tried for a program at most."""


def more_again(module: ir.Module, crowded: Sequence[str]) -> str:
    """The layers that run again in a staged module, and the next one of each stage on the `crowded` submeshes, as the
    option `remat` names them."""
    attributes = module.operation.attributes
    found = {*ir.DenseI64ArrayAttr(attributes[alpa.REMAT])} if alpa.REMAT in attributes else set[int]()
    count = 0
    for entry in stage_entries(module):
        first, last = ir.DenseI64ArrayAttr(entry["layers"])
        left = [k for k in range(first, last + 1) if k not in found]
        found.update(left[:1] if ir.StringAttr(entry["mesh"]).value in crowded else [])
        count = max(count, last + 1)
    return layers_text(sorted(found), count)


def layers_text(layers: Sequence[int], count: int) -> str:
    """Some of `count` layers, ascending, as the option `remat` names them."""
    return FULL if len(layers) == count else number_text(layers) if layers else NONE
