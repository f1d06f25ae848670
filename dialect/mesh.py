"""Meshes: a logical arrangement of a stage's devices, named axes from major to minor.

Carried by the upstream `sdy.mesh` op (`sdy.mesh @stage_0 = <["x"=2, "y"=4]>`).  Device `i` of a stage
sits at the coordinates of `i` in row-major order over the axes; which physical devices those are is
said by `alpa.stages` (see `alpa_mlir.dialect.alpa`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect.diagnostics import CompileError

AXIS_NAMES = ("x", "y", "z")


def parse_mesh(text: str) -> tuple[int, ...]:
    """`2x4` as (2, 4); CompileError for anything else."""
    shape = tuple(int(n) for n in text.split("x")) if re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", text) else ()
    if not 1 <= len(shape) <= len(AXIS_NAMES) or min(shape) < 1:
        raise CompileError(f"a mesh is written as 2x4 (up to {len(AXIS_NAMES)} positive axis sizes), got '{text}'")
    return shape


@dataclass(frozen=True)
class Mesh:
    """A named logical mesh; `axes` are (name, size) pairs, major first."""

    name: str
    axes: tuple[tuple[str, int], ...]

    @staticmethod
    def from_shape(name: str, shape: tuple[int, ...]) -> Mesh:
        """A mesh with axes x, y, z of the given sizes (size-one axes are kept)."""
        if not 1 <= len(shape) <= len(AXIS_NAMES) or any(n < 1 for n in shape):
            raise CompileError(f"a mesh has 1 to {len(AXIS_NAMES)} positive axes, got {shape}")
        return Mesh(name, tuple(zip(AXIS_NAMES, shape, strict=False)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis sizes, major first."""
        return tuple(size for _, size in self.axes)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Axis names, major first."""
        return tuple(name for name, _ in self.axes)

    @property
    def device_count(self) -> int:
        """Number of devices."""
        return prod(self.shape)

    def size(self, axis: str) -> int:
        """Size of one axis; KeyError if the mesh has no such axis."""
        return self._sizes[axis]

    def extent(self, axes: tuple[str, ...]) -> int:
        """Product of the sizes of several axes."""
        found = self._extents.get(axes)
        if found is None:
            found = self._extents[axes] = prod(self.size(a) for a in axes)
        return found

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return dict(self.axes)

    @cached_property
    def _extents(self) -> dict[tuple[str, ...], int]:
        """The extents asked for so far: the cost model asks millions of times for few."""
        return {}

    def stride(self, axis: str) -> int:
        """Distance in device numbers between neighbours along an axis (row-major)."""
        position = self.axis_names.index(axis)
        return prod(self.shape[position + 1 :])

    def groups(self, axes: tuple[str, ...]) -> list[list[int]]:
        """Device groups that a collective over `axes` (major first) joins; deterministic order.

        Members of a group are ordered by their coordinates along `axes` in the order given.
        """
        others = tuple(a for a in self.axis_names if a not in axes)
        return [[outer + inner for inner in self._offsets(axes)] for outer in self._offsets(others)]

    def _offsets(self, axes: tuple[str, ...]) -> list[int]:
        offsets = [0]
        for axis in axes:
            step = self.stride(axis)
            offsets = [o + step * i for o in offsets for i in range(self.size(axis))]
        return offsets

    def attribute(self, context: ir.Context) -> ir.Attribute:
        """The `#sdy.mesh<…>` attribute."""
        inner = ", ".join(f'"{name}"={size}' for name, size in self.axes)
        return ir.Attribute.parse(f"#sdy.mesh<[{inner}]>", context)


def meshes_of(module: ir.Module) -> dict[str, Mesh]:
    """The meshes a module declares, by symbol name, in order."""
    found: dict[str, Mesh] = {}
    for op in module.body.operations:
        if op.operation.name == "sdy.mesh":
            name = ir.StringAttr(op.operation.attributes["sym_name"]).value
            found[name] = mesh_of_attribute(name, op.operation.attributes["mesh"])
    return found


def mesh_of_attribute(name: str, attribute: ir.Attribute) -> Mesh:
    """The mesh that a `#sdy.mesh<…>` attribute describes."""
    axes = [sdy.MeshAxisAttr(a) for a in sdy.MeshAttr(attribute).axes]
    return Mesh(name, tuple((a.name, a.size) for a in axes))


def declare_mesh(module: ir.Module, mesh: Mesh) -> None:
    """Add (or replace) the `sdy.mesh` op of `mesh` at the top of the module."""
    for op in list(module.body.operations):
        named = op.operation.name == "sdy.mesh" and "sym_name" in op.operation.attributes
        if named and ir.StringAttr(op.operation.attributes["sym_name"]).value == mesh.name:
            op.operation.erase()
    first = ir.InsertionPoint.at_block_begin(module.body)
    for op in module.body.operations:
        if op.operation.name != "sdy.mesh":
            first = ir.InsertionPoint(op)
            break
    with module.context, ir.Location.unknown():
        sdy.MeshOp(mesh.name, mesh.attribute(module.context), ip=first)
