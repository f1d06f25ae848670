"""What a mesh axis is made of: bandwidth and latency of the slowest link that a collective over it crosses.

A stage lies on consecutive device numbers, its mesh in row-major order over them. The ring of a
collective along one axis visits devices at distance `stride`; where they all sit in one node it runs on
the device link, else on the node link. The node link is shared: with r rings crossing out of a node at
once, each has 1/r of it (p3.16xlarge: an axis of stride 8 has eight rings on one network card). A ring
is never faster than the device link if it also walks inside the nodes. Over several axes together there are
fewer, longer rings: over all axes a single one, which has the whole link. Where the devices of a node are joined one to
one, without a switch, few devices among one another have only some of a device's links, and to those that they are not
joined to only a slow way through the host (rule C17). A cluster file may give the links of the axes themselves instead:
the α-β model of the literature, on rings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster, Link


@dataclass(frozen=True)
class AxisLink:
    """Bandwidth (bytes/s per device), start seconds of a collective, seconds per hop of its ring.

    `ring`: devices are joined to their neighbours alone, so that what is for others is handed on.
    `pair`: bytes/s to a single other device, where not all have the whole bandwidth (rule C17). `apart`: how many of
    the others a device is not joined to, and the bytes/s to these.
    """

    bandwidth: float
    start: float
    hop: float = 0.0
    ring: bool = False
    pair: float = 0.0
    apart: tuple[int, float] = (0, 0.0)


@dataclass(frozen=True)
class MeshLinks:
    """The links of a mesh: one per axis, in mesh order, those to another stage, and a device's own memory."""

    mesh: Mesh
    axes: tuple[AxisLink, ...]
    outside: AxisLink
    memory_bandwidth: float
    joints: tuple[tuple[tuple[str, ...], AxisLink], ...] = ()
    """The links of rings over several axes (in mesh order)."""

    def joint(self, axes: tuple[str, ...]) -> AxisLink:
        """The link of one ring over several axes (rule C1)."""
        if len(axes) == 1:
            return self.axes[self.mesh.axis_names.index(axes[0])]
        return dict(self.joints)[tuple(a for a in self.mesh.axis_names if a in axes)]

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for meshes on which everything costs the same (the mesh's name does not matter)."""
        return self.mesh.axes, self.axes, self.outside, self.joints


def mesh_links(mesh: Mesh, cluster: Cluster, first_device: int = 0) -> MeshLinks:
    """The links of a mesh laid on consecutive devices from `first_device`.

    `outside` prices transfers to another stage: within the node if the whole cluster is one node, else
    the node link shared by the stage's devices in one node. A cluster with links per axis says them itself.
    """
    if cluster.axes:
        return _given_links(mesh, cluster)
    cluster = cluster.part_of(first_device)
    per_node = cluster.devices_per_node
    offset = (first_device - cluster.first) % per_node
    axes = tuple(_ring_link(mesh, (name,), cluster, offset) for name in mesh.axis_names)
    joints = tuple((several, _ring_link(mesh, several, cluster, offset)) for several in _several(mesh))
    inside, between = cluster.device_link, cluster.node_link
    if cluster.nodes == 1 and cluster.alone:
        outside = pair_link(inside)
    else:
        bandwidth = min(inside.bandwidth, between.bandwidth / min(per_node, mesh.device_count))
        outside = AxisLink(bandwidth, between.start, between.hop)
    return MeshLinks(mesh, axes, outside, cluster.memory_speed, joints)


def border_links(mesh: Mesh, cluster: Cluster, first_device: int = 0) -> MeshLinks:
    """The links of a stage that does not know its neighbours: where several such stages share a node, `outside` takes
    as long as half within the node and half beyond. (The slowest stages have one neighbour in their node, and one
    elsewhere.)"""
    links, part = mesh_links(mesh, cluster, first_device), cluster.part_of(first_device)
    if cluster.axes or (part.nodes == 1 and part.alone) or 2 * mesh.device_count > part.devices_per_node:
        return links
    near, far = pair_link(part.device_link), links.outside
    bandwidth = 2 / (1 / near.bandwidth + 1 / far.bandwidth)
    return replace(links, outside=AxisLink(bandwidth, (near.start + far.start) / 2, (near.hop + far.hop) / 2))


def links_from(links: MeshLinks, devices: Sequence[int], cluster: Cluster) -> MeshLinks:
    """The links of a mesh to a stage that it receives from: on the device link where both ends, which have these
    devices, lie in one node."""
    if cluster.axes or len({cluster.node_of(d) for d in devices}) > 1:
        return links
    return replace(links, outside=pair_link(cluster.part_of(devices[0]).device_link))


def _several(mesh: Mesh) -> list[tuple[str, ...]]:
    names = mesh.axis_names
    return [axes for count in range(2, len(names) + 1) for axes in combinations(names, count)]


def _ring_link(mesh: Mesh, axes: tuple[str, ...], cluster: Cluster, offset: int) -> AxisLink:
    per_node = cluster.devices_per_node
    inside, between = cluster.device_link, cluster.node_link
    crossing = []
    walks_inside = False
    for group in mesh.groups(axes):
        nodes = {(offset + d) // per_node for d in group}
        if len(nodes) > 1:
            crossing.append(nodes)
            walks_inside |= len(nodes) < len(group)
    if not crossing:
        return _group_link(inside, mesh.extent(axes))
    rings = max(Counter(node for nodes in crossing for node in nodes).values())
    bandwidth = between.bandwidth / rings
    return AxisLink(min(bandwidth, inside.bandwidth) if walks_inside else bandwidth, between.start, between.hop)


def pair_link(link: Link) -> AxisLink:
    """The link from each device of a stage to one of another stage in the same node."""
    return AxisLink(link.pair, link.start, link.hop)


def _group_link(link: Link, devices: int) -> AxisLink:
    """The link of so many devices of a node (rule C17)."""
    if not link.neighbours:
        return AxisLink(link.bandwidth, link.start, link.hop)
    apart = max(0, devices - 1 - link.neighbours)
    return AxisLink(link.within(devices), link.start, link.hop, pair=link.pair, apart=(apart, link.far))


def _given_links(mesh: Mesh, cluster: Cluster) -> MeshLinks:
    """Rings with the links that the cluster gives for its first, second, … axis."""
    if len(cluster.axes) < len(mesh.axes):
        raise CompileError(
            f"cluster {cluster.name} gives links for {len(cluster.axes)} mesh axes, "
            f"the mesh {'x'.join(map(str, mesh.shape))} has {len(mesh.axes)}"
        )
    axes = tuple(AxisLink(k.bandwidth, k.start, k.hop, ring=True) for k in cluster.axes[: len(mesh.axes)])
    link = dict(zip(mesh.axis_names, axes, strict=True))
    joints = tuple((several, _slowest([link[a] for a in several])) for several in _several(mesh))
    between = cluster.node_link
    outside = AxisLink(between.bandwidth, between.start, between.hop)
    return MeshLinks(mesh, axes, outside, cluster.memory_speed, joints)


def _slowest(links: Sequence[AxisLink]) -> AxisLink:
    return AxisLink(
        min(k.bandwidth for k in links),
        max(k.start for k in links),
        max(k.hop for k in links),
        any(k.ring for k in links),
    )
