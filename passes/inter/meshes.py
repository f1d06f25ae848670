"""The submeshes that a stage may get, and the logical meshes on each.

Within a node any divisor of its devices, beyond it whole nodes, so that submeshes can be packed into the nodes. Of
many nodes not every number is on offer: powers of two, divisors of all nodes, and all of them are. The devices of a
submesh are arranged as one axis, as two, or as three. All links within a node are alike, so there the order of axes
does not matter; across nodes the first axis runs over the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from alpa_mlir.dialect.factors import splittable
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.intra.program import OpKind

USEFUL = 0.5
"""Part of a program's operations that an axis must be able to split to be of use."""
MESH_AXES = 2
"""Axes of a logical mesh at most, unless more are asked for: a third makes each solve several times as long."""
ALL_NODES = 16
"""Nodes up to which every number of them is a submesh."""


def node_sizes(devices: int) -> list[int]:
    """The divisors of a node's devices, ascending."""
    return [n for n in range(1, devices + 1) if devices % n == 0]


def chain_sizes(devices: int) -> list[int]:
    """1 = d1 | d2 | … | devices, each the previous times the smallest prime factor left: these can always be packed."""
    sizes = [1]
    while sizes[-1] < devices:
        rest = devices // sizes[-1]
        sizes.append(sizes[-1] * next(p for p in range(2, rest + 1) if rest % p == 0))
    return sizes


def node_counts(nodes: int) -> list[int]:
    """Numbers of whole nodes beyond one, ascending."""
    if nodes <= ALL_NODES:
        return list(range(2, nodes + 1))
    powers = {2**k for k in range(1, nodes.bit_length()) if 2**k <= nodes}
    return sorted(powers | {n for n in range(2, nodes + 1) if nodes % n == 0})


def submesh_shapes(cluster: Cluster, axes: int = MESH_AXES) -> tuple[tuple[int, ...], ...]:
    """The logical mesh shapes on offer with at most so many axes, by number of devices."""
    within = cluster.devices_per_node
    shapes: list[tuple[int, ...]] = []
    for n in node_sizes(within):
        shapes.extend(_ordered(n, axes))
    for k in node_counts(cluster.nodes):
        shapes.extend(_across(k, within, axes))
    return tuple(shapes)


def idle_axes(shape: Sequence[int], counts: Mapping[OpKind, int]) -> list[int]:
    """The sizes of axes that can split less than `USEFUL` of a program's operations (of products).

    Devices along such an axis do the same work: fewer devices would be as fast.
    """
    work: dict[int, float] = {}
    total = 0.0
    for kind, times in counts.items():
        if kind.compute == "product":
            operations = times * float(prod(kind.factors.sizes))
            total += operations
            for size in set(shape):
                if any(splittable(kind.factors, f, size) for f in range(len(kind.factors.sizes))):
                    work[size] = work.get(size, 0.0) + operations
    return [size for size in shape if size > 1 and work.get(size, 0.0) < USEFUL * total]


def _ordered(n: int, axes: int, least: int = 2) -> list[tuple[int, ...]]:
    """n as a product of at most `axes` ascending factors of at least `least`; (1,) for 1."""
    found: list[tuple[int, ...]] = [(n,)]
    if axes > 1:
        for a in range(least, int(n**0.5) + 1):
            if n % a == 0:
                found.extend((a, *rest) for rest in _ordered(n // a, axes - 1, a))
    return found


def _across(nodes: int, within: int, axes: int) -> list[tuple[int, ...]]:
    """Shapes over whole nodes: one axis; two that split the devices anywhere; nodes and devices split further."""
    n = nodes * within
    found: list[tuple[int, ...]] = [(n,)]
    if axes > 1:
        found.extend((a, n // a) for a in range(2, n) if n % a == 0)
    if axes > 2 and within > 1:
        found.extend((nodes, *pair) for pair in _ordered(within, 2) if len(pair) == 2)
        found.extend((*pair, within) for pair in _ordered(nodes, 2) if len(pair) == 2)
    return found


def pack(sizes: Sequence[int], cluster: Cluster) -> list[tuple[int, ...]] | None:
    """Consecutive devices for submeshes of these sizes that fill the cluster, none within a node straddling two.

    Large ones first, equal ones in order; None where they cannot be packed (nodes of 6 for 4 of 3 and 3 of 4).
    """
    within = cluster.devices_per_node
    order = sorted(range(len(sizes)), key=lambda s: (-sizes[s], s))
    found: dict[int, tuple[int, ...]] = {}
    first = 0
    while order and sizes[order[0]] >= within:
        s = order.pop(0)
        found[s] = tuple(range(first, first + sizes[s]))
        first += sizes[s]
    while order:
        chosen = _fill([sizes[s] for s in order], within)
        if chosen is None:
            return None
        for s in [order[c] for c in chosen]:
            found[s] = tuple(range(first, first + sizes[s]))
            first += sizes[s]
        order = [s for c, s in enumerate(order) if c not in chosen]
    return [found[s] for s in range(len(sizes))] if first == cluster.device_count else None


def _fill(sizes: Sequence[int], space: int) -> tuple[int, ...] | None:
    """Places of sizes (descending) that fill a node: the first and the largest that go with it."""

    def search(start: int, left: int) -> tuple[int, ...] | None:
        if left == 0:
            return ()
        tried = 0
        for c in range(start, len(sizes)):
            if sizes[c] <= left and sizes[c] != tried:
                tried = sizes[c]
                rest = search(c + 1, left - sizes[c])
                if rest is not None:
                    return (c, *rest)
        return None

    rest = search(1, space - sizes[0])
    return None if rest is None else (0, *rest)
