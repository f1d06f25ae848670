"""The cluster planned for: devices, memory, speeds and links, as one small value.

A cluster is `nodes` machines with `devices_per_node` equal devices. Devices are numbered node by node.
Two link levels: between the devices of a node (bandwidth per device) and between nodes (bandwidth per
*node*, shared by all its devices that talk at the same time). Or, to study communication by itself, one
link per mesh axis, given by α (seconds to start) and β (seconds per byte). A mixed cluster consists of groups, each a
cluster of equal nodes, joined by the node link; its devices are numbered group by group. It is read from TOML
(docs/clusters.md) and travels through the pipeline as the module's `alpa.cluster` dictionary, so that every later pass
prices with the same figures. Units: seconds, bytes, bytes/s, floating-point operations/s.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.costs.cluster_table import MOST_BYTES, ClusterTable, parse_bytes, position
from alpa_mlir.passes.costs.presets import preset_names, preset_text

MOST_DEVICES = 2**20


@dataclass(frozen=True)
class Link:
    """One link level: bytes/s, seconds to start a collective on it, seconds per hop of a ring.

    Between the devices of a node, `neighbours` others may be joined to each directly, sharing its `bandwidth` (0: all
    are, at the whole of it); the rest are reached at `far` bytes/s.
    """

    bandwidth: float
    start: float
    hop: float
    neighbours: int = 0
    far: float = 0.0

    @property
    def pair(self) -> float:
        """Bytes/s from one device to one that it is joined to."""
        return self.bandwidth / max(1, self.neighbours)

    def within(self, devices: int) -> float:
        """Bytes/s of each of so many devices among one another (rule C17)."""
        return self.bandwidth * min(1.0, (devices - 1) / self.neighbours) if self.neighbours else self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Devices, memory (bytes per device), speeds and links of a cluster.

    `flops` maps a type class (f8, f16, bf16, f32, f64) to peak operations/s; `efficiency` is the part of
    the peak that large products reach, `memory_efficiency` that of `memory_bandwidth` that long reads reach.
    `device_link` joins devices of a node (per device), `node_link` joins nodes (per node).
    `axes`, where not empty, are the links of the first, second, … mesh axis instead.
    `operand_copies`: its compiler copies operands of products into one layout (XLA for CPUs; rule M11).
    Of a mixed cluster `groups` are the parts; its own figures are the least of theirs. `first` is the number of a
    group's first device, and a group is not `alone`.
    """

    name: str
    nodes: int
    devices_per_node: int
    memory: int
    memory_bandwidth: float
    efficiency: float
    flops: tuple[tuple[str, float], ...]
    device_link: Link
    node_link: Link
    axes: tuple[Link, ...] = ()
    memory_efficiency: float = 1.0
    operand_copies: bool = False
    groups: tuple[Cluster, ...] = ()
    first: int = 0
    alone: bool = True

    @property
    def memory_speed(self) -> float:
        """Attainable bytes/s of a device's own memory."""
        return self.memory_efficiency * self.memory_bandwidth

    @property
    def device_count(self) -> int:
        """Devices of the whole cluster."""
        return sum(g.device_count for g in self.groups) if self.groups else self.nodes * self.devices_per_node

    @property
    def parts(self) -> tuple[Cluster, ...]:
        """The groups of equal nodes: the cluster itself unless it is mixed."""
        return self.groups or (self,)

    def part_of(self, device: int) -> Cluster:
        """The group that a device belongs to."""
        return next(g for g in reversed(self.parts) if device >= g.first)

    def node_of(self, device: int) -> tuple[int, int]:
        """The node of a device: the first device of its group, and its number there."""
        part = self.part_of(device)
        return part.first, (device - part.first) // part.devices_per_node

    def speed(self, dtype: str) -> float:
        """Attainable operations/s of products in an element type; unknown types count as f32."""
        table = dict(self.flops)
        kind = "f8" if dtype.startswith("f8") else dtype
        return self.efficiency * table.get(kind, table["f32"])

    def with_sizes(self, nodes: int = 0, devices_per_node: int = 0, memory: int = 0) -> Cluster:
        """The same cluster with other sizes; 0 keeps what is there. CompileError for sizes no cluster has.

        A mixed cluster's groups may have another memory, the same for all, but no other numbers.
        """
        if self.groups:
            if nodes or devices_per_node:
                raise CompileError(f"cluster {self.name} consists of groups: their sizes stand in its file")
            return _mixed(self.name, [g.with_sizes(memory=memory) for g in self.groups], self.node_link)
        changed = replace(
            self,
            nodes=nodes or self.nodes,
            devices_per_node=devices_per_node or self.devices_per_node,
            memory=memory or self.memory,
        )
        for what, size, most in (
            ("nodes", changed.nodes, MOST_DEVICES),
            ("devices_per_node", changed.devices_per_node, MOST_DEVICES),
            ("memory", changed.memory, MOST_BYTES),
        ):
            if not 1 <= size <= most:
                raise CompileError(f"a cluster's {what} must be from 1 to {most}, got {size}")
        if changed.device_count > MOST_DEVICES:
            raise CompileError(f"a cluster may have {MOST_DEVICES} devices, got {changed.device_count}")
        return changed

    def attribute(self, context: ir.Context) -> ir.Attribute:
        """The cluster as the dictionary written to `alpa.cluster`."""
        return _dictionary(self._table(), context)

    def _table(self) -> dict[str, Any]:
        if self.groups:
            groups = [g._table() for g in self.groups]
            return {"name": self.name, "groups": groups, "link": {"node": _link_table(self.node_link)}}
        axes = {"alpha": [k.start for k in self.axes], "beta": [1.0 / k.bandwidth for k in self.axes]}
        return {
            **({"axes": axes} if self.axes else {}),
            **({"operand_copies": 1} if self.operand_copies else {}),
            "name": self.name,
            "nodes": self.nodes,
            "devices_per_node": self.devices_per_node,
            "memory": self.memory,
            "memory_bandwidth": self.memory_bandwidth,
            "memory_efficiency": self.memory_efficiency,
            "efficiency": self.efficiency,
            "flops": dict(self.flops),
            "link": {"device": _link_table(self.device_link), "node": _link_table(self.node_link)},
        }


def _link_table(link: Link) -> dict[str, float]:
    joined = {"neighbours": link.neighbours, "far": link.far} if link.neighbours else {}
    return {"bandwidth": link.bandwidth, "start": link.start, "hop": link.hop, **joined}


def choose_cluster(module: ir.Module, name: str, nodes: int, devices_per_node: int, memory: str) -> Cluster:
    """The preset `name`, or for "" what the module carries, with some sizes replaced (0 and "" keep them).

    CompileError where there is none, or a size cannot be.
    """
    known = load_cluster(name) if name else module_cluster(module)
    if known is None:
        raise CompileError("no cluster: name one (cluster=cpu)", module.operation.location)
    return known.with_sizes(nodes, devices_per_node, parse_bytes(memory) if memory else 0)


def load_cluster(name: str, nodes: int = 0, devices_per_node: int = 0, memory: int = 0) -> Cluster:
    """A preset by name, with some sizes replaced (0 keeps the preset's). CompileError for unknown names."""
    if name not in preset_names():
        raise CompileError(f"unknown cluster {name!r}: the presets are {', '.join(preset_names())}")
    return parse_cluster(preset_text(name), name).with_sizes(nodes, devices_per_node, memory)


def parse_cluster(text: str, filename: str) -> Cluster:
    """A cluster from TOML text (docs/clusters.md). CompileError at its line of `filename` for what is wrong."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        message, _, place = str(e).partition(" (at ")
        numbers = re.findall(r"[0-9]+", place)
        line, column = numbers if len(numbers) == 2 else (str(text.count("\n") + 1), "1")
        raise CompileError(f"not a cluster file: {message}", f"{filename}:{line}:{column}") from None
    except RecursionError:
        raise CompileError("not a cluster file: nested too deeply", f"{filename}:1:1") from None
    return _from_table(table, lambda key: f"{filename}:{position(text, key)}")


def module_cluster(module: ir.Module) -> Cluster | None:
    """The cluster a module was planned for (`alpa.cluster`), or None."""
    if alpa.CLUSTER not in module.operation.attributes:
        return None
    return _from_table(_plain(module.operation.attributes[alpa.CLUSTER]), lambda key: "-")


_EQUAL_NODES = (
    *("name", "nodes", "devices_per_node", "memory", "memory_bandwidth", "memory_efficiency", "efficiency"),
    *("operand_copies", "flops", "link", "axes"),
)
_LINK, _SWITCHLESS = ("bandwidth", "start", "hop"), ("neighbours", "far")
_ELEMENT_TYPES = ("f4", "f8", "f16", "bf16", "f32", "f64", "i4", "i8", "i16", "i32", "i64")


def _from_table(table: Mapping[str, Any], where: Callable[[str], str]) -> Cluster:
    return _groups(table, where) if "groups" in table else _equal_nodes(table, where)


def _groups(table: Mapping[str, Any], where: Callable[[str], str]) -> Cluster:
    """A mixed cluster: what a group does not say the whole file says for it."""
    read = ClusterTable(table, where).only(("groups", *_EQUAL_NODES))
    entries = table["groups"]
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise CompileError("a cluster's groups must be tables, each [[groups]]", where("groups"))
    if "axes" in table:
        raise CompileError("a cluster of groups cannot have links for mesh axes", where("axes"))
    common = {k: v for k, v in table.items() if k not in ("groups", "name")}
    groups = []
    for number, entry in enumerate(entries):
        name = {"name": f"{read.text('name')}/{number}"}
        made = {**common, **name, **entry}
        for key in ("link", "flops"):
            if isinstance(common.get(key), dict) and isinstance(entry.get(key), dict):
                made[key] = {**common[key], **entry[key]}
        groups.append(_equal_nodes(made, where))
    node = ClusterTable(read.table("link"), where, "link.").table("node")
    return _mixed(read.text("name"), groups, _link(node, where, "link.node."))


def _mixed(name: str, groups: Sequence[Cluster], node_link: Link) -> Cluster:
    """A cluster of groups, numbered on; its own figures are the least of theirs."""
    placed, first = [], 0
    for group in groups:
        placed.append(replace(group, first=first, alone=len(groups) == 1))
        first += group.device_count
    if first > MOST_DEVICES:
        raise CompileError(f"a cluster may have {MOST_DEVICES} devices, got {first}")
    slowest = min(placed, key=lambda g: g.speed("f32"))
    return replace(
        slowest,
        name=name,
        nodes=sum(g.nodes for g in placed),
        devices_per_node=min(g.devices_per_node for g in placed),
        memory=min(g.memory for g in placed),
        memory_bandwidth=min(g.memory_speed for g in placed),
        memory_efficiency=1.0,
        node_link=node_link,
        groups=tuple(placed),
        first=0,
        alone=True,
    )


def _equal_nodes(table: Mapping[str, Any], where: Callable[[str], str]) -> Cluster:
    read = ClusterTable(table, where).only(_EQUAL_NODES)
    flops = ClusterTable(read.table("flops"), where, "flops.").only(_ELEMENT_TYPES)
    if "f32" not in flops.entries:
        raise CompileError("a cluster needs flops.f32", where("flops.f32"))
    axes = _axes(ClusterTable(read.table("axes"), where, "axes.")) if "axes" in table else ()
    links = _links_of(axes) if axes and "link" not in table else read.table("link")
    link = ClusterTable(links, where, "link.").only(("device", "node"))
    return Cluster(
        read.text("name"),
        read.count("nodes", MOST_DEVICES),
        read.count("devices_per_node", MOST_DEVICES),
        read.memory("memory"),
        read.number("memory_bandwidth"),
        read.number("efficiency", most=1.0),
        tuple(sorted((k, flops.number(k)) for k in flops.entries)),
        _device_link(link.table("device"), where),
        _link(link.table("node"), where, "link.node."),
        axes,
        read.part("memory_efficiency"),
        read.switch("operand_copies"),
    )


def _axes(read: ClusterTable) -> tuple[Link, ...]:
    alpha, beta = read.only(("alpha", "beta")).numbers("alpha"), read.numbers("beta")
    if len(alpha) != len(beta):
        raise CompileError(
            f"axes.alpha has {len(alpha)} numbers, axes.beta {len(beta)}: one of each per mesh axis",
            read.where("axes.beta"),
        )
    return tuple(Link(1.0 / b, a, 0.0) for a, b in zip(alpha, beta, strict=True))


def _links_of(axes: tuple[Link, ...]) -> dict[str, Any]:
    """The links between stages where only those of mesh axes are given: like the slowest of them."""
    slowest = _link_table(Link(min(k.bandwidth for k in axes), max(k.start for k in axes), 0.0))
    return {"device": slowest, "node": slowest}


def _link(table: Mapping[str, Any], where: Callable[[str], str], prefix: str) -> Link:
    read = ClusterTable(table, where, prefix).only(_LINK)
    return Link(read.number("bandwidth"), read.number("start", 0.0), read.number("hop", 0.0))


def _device_link(table: Mapping[str, Any], where: Callable[[str], str]) -> Link:
    """The link between devices of a node, which may be without a switch."""
    prefix = "link.device."
    read = ClusterTable(table, where, prefix).only((*_LINK, *_SWITCHLESS))
    link = _link({k: v for k, v in table.items() if k in _LINK}, where, prefix)
    if "neighbours" not in table and "far" not in table:
        return link
    return replace(link, neighbours=read.count("neighbours", MOST_DEVICES), far=read.number("far"))


def _dictionary(value: Any, context: ir.Context) -> ir.Attribute:
    if isinstance(value, dict):
        return ir.DictAttr.get({k: _dictionary(v, context) for k, v in sorted(value.items())}, context=context)
    if isinstance(value, list):
        return ir.ArrayAttr.get([_dictionary(v, context) for v in value], context=context)
    if isinstance(value, str):
        return ir.StringAttr.get(value, context)
    if isinstance(value, int):
        return alpa.i64(value, context)
    with ir.Location.unknown(context):
        return ir.FloatAttr.get(ir.F64Type.get(context), value)


def _plain(attribute: ir.Attribute) -> Any:
    if isinstance(attribute, ir.DictAttr):
        entries = ir.DictAttr(attribute)
        return {entries[i].name: _plain(entries[i].attr) for i in range(len(entries))}
    if isinstance(attribute, ir.ArrayAttr):
        return [_plain(a) for a in ir.ArrayAttr(attribute)]
    if isinstance(attribute, ir.StringAttr):
        return ir.StringAttr(attribute).value
    if isinstance(attribute, ir.IntegerAttr):
        return int(ir.IntegerAttr(attribute).value)
    if isinstance(attribute, ir.FloatAttr):
        return float(ir.FloatAttr(attribute).value)
    raise CompileError(f"unexpected value in {alpa.CLUSTER}: {attribute}")
