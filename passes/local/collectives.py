"""Reshard steps as StableHLO collectives inside a one-device program.

Device `i` of a mesh is partition `i` of its executable; its coordinate along an axis is
`(partition_id / stride) mod size`.  A collective over axes joins `Mesh.groups(axes)`: members in order of
their coordinates, major axis first, so that what an all-gather lays side by side, and what a reduce-scatter
deals out, is in the order in which the axes split the dimension.  All groups are written as global device
ids with a channel of their own (StableHLO specification: `all_reduce`, "flattened ids").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import ClassVar

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.local.steps import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, PERMUTE, REDUCE_SCATTER, SLICE, Step

COLLECTIVES = (ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, ALL_TO_ALL, PERMUTE)

_COMBINERS = {
    "add": stablehlo.AddOp,
    "max": stablehlo.MaxOp,
    "min": stablehlo.MinOp,
    "mul": stablehlo.MulOp,
    "and": stablehlo.AndOp,
    "or": stablehlo.OrOp,
}


@dataclass
class DeviceProgram:
    """Emits collectives at `ip`, the end of one device's program; remembers coordinates already computed."""

    mesh: Mesh
    ip: ir.InsertionPoint
    channels: Iterator[int] = field(default_factory=lambda: count(1))
    _coordinates: dict[tuple[str, ...], ir.Value] = field(default_factory=dict)
    _devices: dict[object, ir.Attribute] = field(default_factory=dict)
    """Groups of devices by axes, and pairs by shardings: thousands of numbers each on a large mesh."""

    def run(self, steps: Sequence[Step], value: ir.Value, kind: str = "add") -> ir.Value:
        """`value` after the steps; partial sums are combined by `kind`."""
        for step in steps:
            if self.mesh.extent(step.axes) > 1:
                value = self._EMIT[step.kind](self, step, value, kind)
        return value

    def coordinate(self, axes: tuple[str, ...]) -> ir.Value:
        """The device's position along `axes` (major first), a scalar i32."""
        if axes not in self._coordinates:
            if not axes:
                self._coordinates[axes] = self.scalar(0)
            elif len(axes) == 1:
                self._coordinates[axes] = self._single(axes[0])
            else:
                major = stablehlo.multiply(
                    self.coordinate(axes[:-1]), self.scalar(self.mesh.size(axes[-1])), ip=self.ip
                )
                self._coordinates[axes] = stablehlo.add(major, self.coordinate(axes[-1:]), ip=self.ip)
        return self._coordinates[axes]

    def _single(self, axis: str) -> ir.Value:
        i32 = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
        number = stablehlo.convert(i32, stablehlo.partition_id(ip=self.ip), ip=self.ip)
        if self.mesh.stride(axis) > 1:
            number = stablehlo.divide(number, self.scalar(self.mesh.stride(axis)), ip=self.ip)
        return stablehlo.remainder(number, self.scalar(self.mesh.size(axis)), ip=self.ip)

    def offset(self, axes: tuple[str, ...], part: int) -> ir.Value:
        """Where the device's part of size `part` starts in a dimension split over `axes`, a scalar i32."""
        if part == 1:
            return self.coordinate(axes)
        return stablehlo.multiply(self.coordinate(axes), self.scalar(part), ip=self.ip)

    def scalar(self, value: int) -> ir.Value:
        """A constant `tensor<i32>`."""
        return stablehlo.constant(ir.DenseElementsAttr.get(np.array(value, np.int32)), ip=self.ip)

    def _all_reduce(self, step: Step, value: ir.Value, kind: str) -> ir.Value:
        op = stablehlo.AllReduceOp([value.type], [value], self._groups(step.axes), **self._channel(), ip=self.ip)
        _combiner(op.operation, value, kind)
        return op.results[0]

    def _reduce_scatter(self, step: Step, value: ir.Value, kind: str) -> ir.Value:
        kept = _resized(value, {step.dim: -self.mesh.extent(step.axes)})
        op = stablehlo.ReduceScatterOp(kept, value, step.dim, self._groups(step.axes), **self._channel(), ip=self.ip)
        _combiner(op.operation, value, kind)
        return op.results[0]

    def _all_gather(self, step: Step, value: ir.Value, kind: str) -> ir.Value:
        whole = _resized(value, {step.dim: self.mesh.extent(step.axes)})
        op = stablehlo.AllGatherOp([whole], [value], step.dim, self._groups(step.axes), **self._channel(), ip=self.ip)
        return op.results[0]

    def _all_to_all(self, step: Step, value: ir.Value, kind: str) -> ir.Value:
        parts = self.mesh.extent(step.axes)
        moved = _resized(value, {step.dim: parts, step.to_dim: -parts})
        channel = self._channel()["channel_handle"]
        op = stablehlo.AllToAllOp(
            [value], step.to_dim, step.dim, parts, self._groups(step.axes),
            channel_handle=channel, results=[moved], ip=self.ip,
        )  # fmt: skip
        return op.results[0]

    def _permute(self, step: Step, value: ir.Value, kind: str) -> ir.Value:
        key = (step.before, step.after)
        if key not in self._devices:
            pairs = exchanges(step.before, step.after, self.mesh)
            self._devices[key] = ir.DenseElementsAttr.get(np.array(pairs, np.int64))
        channel = self._channel()["channel_handle"]
        return stablehlo.collective_permute(value, self._devices[key], channel_handle=channel, ip=self.ip)

    def _slice(self, step: Step, value: ir.Value, kind: str) -> ir.Value:
        part = _resized(value, {step.dim: -self.mesh.extent(step.axes)})
        shape = ir.RankedTensorType(part).shape
        zero = self.scalar(0)
        starts = [self.offset(step.axes, shape[d]) if d == step.dim else zero for d in range(len(shape))]
        return stablehlo.dynamic_slice(value, starts, list(shape), ip=self.ip)

    def _groups(self, axes: tuple[str, ...]) -> ir.Attribute:
        if axes not in self._devices:
            self._devices[axes] = ir.DenseElementsAttr.get(np.array(self.mesh.groups(axes), np.int64))
        return self._devices[axes]

    def _channel(self) -> dict[str, object]:
        handle = stablehlo.ChannelHandle.get(next(self.channels), 1)
        return {"channel_handle": handle, "use_global_device_ids": True}

    _EMIT: ClassVar[dict[str, Callable[[DeviceProgram, Step, ir.Value, str], ir.Value]]] = {
        ALL_REDUCE: _all_reduce,
        REDUCE_SCATTER: _reduce_scatter,
        ALL_GATHER: _all_gather,
        ALL_TO_ALL: _all_to_all,
        PERMUTE: _permute,
        SLICE: _slice,
    }


def exchanges(before: Sharding, after: Sharding, mesh: Mesh) -> list[tuple[int, int]]:
    """(from, to) for every device: whoever holds its tile before the permute; itself wherever it can be."""
    holders: dict[tuple[object, ...], list[int]] = {}
    for device, tile in enumerate(_tiles(before, mesh)):
        holders.setdefault(tile, []).append(device)
    wanted = _tiles(after, mesh)
    givers = {d: d for d, tile in enumerate(wanted) if d in holders[tile]}
    for device, giver in givers.items():
        holders[wanted[device]].remove(giver)
    for device, tile in enumerate(wanted):
        if device not in givers:
            givers[device] = holders[tile].pop(0)
    return sorted((giver, device) for device, giver in givers.items())


def _tiles(sharding: Sharding, mesh: Mesh) -> list[tuple[object, ...]]:
    """What each device holds: the place of its part along each dimension, and which addend."""
    parts = [*sharding.dims, sharding.partial]
    place = [dict.fromkeys(range(mesh.device_count), 0) for _ in parts]
    for number, axes in enumerate(parts):
        for group in mesh.groups(tuple(axes)):
            for position, device in enumerate(group):
                place[number][device] = position
    return [tuple(p[d] for p in place) for d in range(mesh.device_count)]


def _resized(value: ir.Value, factors: dict[int, int]) -> ir.Type:
    """The value's type with dimensions multiplied (positive factor) or divided (negative)."""
    kind = ir.RankedTensorType(value.type)
    shape = list(kind.shape)
    for dim, factor in factors.items():
        shape[dim] = shape[dim] * factor if factor > 0 else shape[dim] // -factor
    return ir.RankedTensorType.get(shape, kind.element_type)


def _combiner(op: ir.Operation, value: ir.Value, kind: str) -> None:
    """Fill the reducer body of a collective."""
    scalar = ir.RankedTensorType.get([], ir.RankedTensorType(value.type).element_type)
    block = ir.Block.create_at_start(op.regions[0], [scalar, scalar], [op.location, op.location])
    with ir.InsertionPoint(block):
        combined = _COMBINERS[kind](block.arguments[0], block.arguments[1])
        stablehlo.ReturnOp([combined.result])


def byte_size(kind: ir.Type) -> int:
    """Bytes of a static tensor; elements below one byte take one, complex numbers two floats."""
    tensor = ir.RankedTensorType(kind)
    element = tensor.element_type
    if isinstance(element, ir.ComplexType):
        each = 2 * int(ir.ComplexType(element).element_type.width) // 8
    else:
        each = max(1, int(element.width) // 8)
    return each * prod(int(n) for n in tensor.shape)
