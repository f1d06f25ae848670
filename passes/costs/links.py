"""What a mesh axis is made of: bandwidth and latency of the slowest link that a collective over it crosses.

A stage lies on consecutive device numbers, its mesh in row-major order over them. The ring of a
collective along one axis visits devices at distance `stride`; where they all sit in one node it runs on
the device link, else on the node link. The node link is shared: with r rings crossing out of a node at
once, each has 1/r of it (p3.16xlarge: an axis of stride 8 has eight rings on one network card). A ring
is never faster than the device link if it also walks inside the nodes. A cluster file may give the links of
the axes themselves instead: the α-β model of the literature, on rings.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster


@dataclass(frozen=True)
class AxisLink:
    """Bandwidth (bytes/s per device), start seconds of a collective, seconds per hop of its ring.

    `ring`: devices are joined to their neighbours alone, so that what is for others is handed on.
    """

    bandwidth: float
    start: float
    hop: float = 0.0
    ring: bool = False


@dataclass(frozen=True)
class MeshLinks:
    """The links of a mesh: one per axis, in mesh order, those to another stage, and a device's own memory."""

    mesh: Mesh
    axes: tuple[AxisLink, ...]
    outside: AxisLink
    memory_bandwidth: float

    def joint(self, axes: tuple[str, ...]) -> AxisLink:
        """The link of one ring over several axes: the slowest of each figure (rule C1)."""
        links = [self.axes[self.mesh.axis_names.index(a)] for a in axes]
        return AxisLink(
            min(k.bandwidth for k in links),
            max(k.start for k in links),
            max(k.hop for k in links),
            any(k.ring for k in links),
        )


def mesh_links(mesh: Mesh, cluster: Cluster, first_device: int = 0) -> MeshLinks:
    """The links of a mesh laid on consecutive devices from `first_device`.

    `outside` prices transfers to another stage: within the node if the whole cluster is one node, else
    the node link shared by the stage's devices in one node. A cluster with links per axis says them itself.
    """
    if cluster.axes:
        return _given_links(mesh, cluster)
    per_node = cluster.devices_per_node
    axes = tuple(_axis_link(mesh, name, cluster, first_device % per_node) for name in mesh.axis_names)
    inside = cluster.device_link
    if cluster.nodes == 1:
        return MeshLinks(mesh, axes, AxisLink(inside.bandwidth, inside.start, inside.hop), cluster.memory_bandwidth)
    sharing = min(per_node, mesh.device_count)
    bandwidth = min(inside.bandwidth, cluster.node_link.bandwidth / sharing)
    return MeshLinks(
        mesh, axes, AxisLink(bandwidth, cluster.node_link.start, cluster.node_link.hop), cluster.memory_bandwidth
    )


def _axis_link(mesh: Mesh, axis: str, cluster: Cluster, offset: int) -> AxisLink:
    per_node = cluster.devices_per_node
    inside, between = cluster.device_link, cluster.node_link
    nodes = [sorted((offset + d) // per_node for d in group) for group in mesh.groups((axis,))]
    if all(group[0] == group[-1] for group in nodes):
        return AxisLink(inside.bandwidth, inside.start, inside.hop)
    crossing = [g for g in nodes if g[0] != g[-1]]
    rings = max(sum(n in g for g in crossing) for n in sorted({n for g in crossing for n in g}))
    bandwidth = between.bandwidth / rings
    if any(len(g) > len(set(g)) for g in crossing):
        bandwidth = min(bandwidth, inside.bandwidth)
    return AxisLink(bandwidth, between.start, between.hop)


def _given_links(mesh: Mesh, cluster: Cluster) -> MeshLinks:
    """Rings with the links that the cluster gives for its first, second, … axis."""
    if len(cluster.axes) < len(mesh.axes):
        raise CompileError(
            f"cluster {cluster.name} gives links for {len(cluster.axes)} mesh axes, "
            f"the mesh {'x'.join(map(str, mesh.shape))} has {len(mesh.axes)}"
        )
    axes = tuple(AxisLink(k.bandwidth, k.start, k.hop, ring=True) for k in cluster.axes[: len(mesh.axes)])
    between = cluster.node_link
    outside = AxisLink(between.bandwidth, between.start, between.hop)
    return MeshLinks(mesh, axes, outside, cluster.memory_bandwidth)
