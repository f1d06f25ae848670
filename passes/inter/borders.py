"""What crosses the borders of stages that were placed: within a node it takes less time than between nodes.

The search reckons with half of each where several stages share a node (`costs/links.border_links`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.links import border_links, links_from, mesh_links
from alpa_mlir.passes.inter.chosen import Stage


def placed(stages: Sequence[Stage], cluster: Cluster) -> list[Stage]:
    """Stages, in order, with the parts that they have where they lie: what arrives comes from those next to them."""
    last, found = len(stages) - 1, []
    for s, stage in enumerate(stages):
        parts = stage.parts
        if parts is not None:
            forward, backward = (_slower(stage, stages[n], cluster) for n in (max(s - 1, 0), min(s + 1, last)))
            parts = replace(
                parts,
                receive_forward=forward * parts.receive_forward,
                receive_backward=backward * parts.receive_backward,
            )
        found.append(replace(stage, parts=parts))
    return found


def _slower(here: Stage, there: Stage, cluster: Cluster) -> float:
    """How many times as long as the search reckons with it takes from there to here."""
    first = min(here.devices)
    reckoned, far = (links(here.mesh, cluster, first) for links in (border_links, mesh_links))
    if reckoned.outside == far.outside:
        return 1.0
    found = links_from(far, (*here.devices, *there.devices), cluster)
    return reckoned.outside.bandwidth / found.outside.bandwidth
