"""Shardings: per tensor dimension the mesh axes that split it, plus the axes over which it is partial.

Carried by `#sdy.sharding<@mesh, [{"x"}, {}], unreduced={"y"}>`: dimension 0 is split over x, every
device along y holds an addend of the value.  Within a dimension axes go from major to minor.  Only
closed dimensions and whole axes are written; sub-axes are refused by the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh

SHARDING = "sdy.sharding"


@dataclass(frozen=True)
class Sharding:
    """`dims[d]` are the axes that split dimension d, major first; `partial` the unreduced axes, sorted."""

    dims: tuple[tuple[str, ...], ...]
    partial: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Shardings are looked up far more often than they are made."""
        return hash((self.dims, self.partial))

    @staticmethod
    def replicated(rank: int) -> Sharding:
        """Every device holds the whole value."""
        return Sharding(((),) * rank)

    @property
    def is_replicated(self) -> bool:
        """True where no axis splits a dimension and nothing is partial."""
        return not self.partial and not any(self.dims)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """All axes that split some dimension, in order of dimension."""
        return tuple(a for d in self.dims for a in d)

    def local_shape(self, shape: Sequence[int], mesh: Mesh) -> tuple[int, ...]:
        """The shape one device holds; CompileError where an extent does not divide."""
        local = []
        for size, axes in zip(shape, self.dims, strict=True):
            n = mesh.extent(axes)
            if size % n:
                raise CompileError(f"dimension of size {size} is not divisible by {n} (axes {axes})")
            local.append(size // n)
        return tuple(local)

    def divides(self, shape: Sequence[int], mesh: Mesh) -> bool:
        """Whether every dimension is divisible by the extent of its axes."""
        return all(s % mesh.extent(axes) == 0 for s, axes in zip(shape, self.dims, strict=True))

    def text(self, mesh_name: str) -> str:
        """The text inside `#sdy.sharding`: `<@mesh, [{"x"}, {}]>`."""
        dims = ", ".join("{" + ", ".join(f'"{a}"' for a in axes) + "}" for axes in self.dims)
        partial = ", ".join(f'"{a}"' for a in self.partial)
        return f"<@{mesh_name}, [{dims}]" + (f", unreduced={{{partial}}}>" if partial else ">")


@lru_cache(maxsize=1)
def _written(context: ir.Context) -> dict[tuple[object, str], ir.Attribute]:
    """The attributes written so far in the context that was last written in, by what they say."""
    return {}


def sharding_attribute(sharding: Sharding, mesh_name: str, context: ir.Context) -> ir.Attribute:
    """`#sdy.sharding<…>` for function arguments and results and for `sdy.reshard`."""
    known, key = _written(context), (sharding, mesh_name)
    if key not in known:
        known[key] = ir.Attribute.parse("#sdy.sharding" + sharding.text(mesh_name), context)
    return known[key]


def op_sharding_attribute(shardings: Sequence[Sharding], mesh_name: str, context: ir.Context) -> ir.Attribute:
    """`#sdy.sharding_per_value<[…]>` for the results of an op."""
    known, key = _written(context), (tuple(shardings), mesh_name)
    if key not in known:
        inner = ", ".join(s.text(mesh_name) for s in shardings)
        known[key] = ir.Attribute.parse(f"#sdy.sharding_per_value<[{inner}]>", context)
    return known[key]


def set_op_shardings(op: ir.Operation | ir.OpView, shardings: Sequence[Sharding], mesh_name: str) -> None:
    """Annotate every result of an op."""
    op = op.operation
    if op.name in ("sdy.reshard", "sdy.sharding_constraint"):
        op.attributes["sharding"] = sharding_attribute(shardings[0], mesh_name, op.context)
    elif len(op.results):
        op.attributes[SHARDING] = op_sharding_attribute(shardings, mesh_name, op.context)


@lru_cache(maxsize=65536)
def read_sharding(attribute: ir.Attribute) -> tuple[str, Sharding]:
    """(mesh name, sharding) of a `#sdy.sharding` attribute."""
    # Attributes are unique in their context and keep it alive, so that they can be told apart by address.
    tensor = sdy.TensorShardingAttr(attribute)
    dims = []
    for d in tensor.dimension_shardings:
        dims.append(tuple(_axis_name(a) for a in sdy.DimensionShardingAttr(d).axes))
    partial = tuple(sorted(_axis_name(a) for a in tensor.unreduced_axes))
    return ir.FlatSymbolRefAttr(tensor.mesh_or_ref).value, Sharding(tuple(dims), partial)


def _axis_name(axis: ir.Attribute) -> str:
    ref = sdy.AxisRefAttr(axis)
    if ref.sub_axis_info is not None:
        raise CompileError(f"sub-axes such as {axis} are not supported: name whole mesh axes")
    name: str = ref.name
    return name


@lru_cache(maxsize=65536)
def _read_per_value(attribute: ir.Attribute) -> tuple[str, tuple[Sharding, ...]]:
    """The mesh name and shardings of a `#sdy.sharding_per_value` attribute."""
    parts = [read_sharding(a) for a in sdy.TensorShardingPerValueAttr(attribute).shardings]
    return parts[0][0], tuple(s for _, s in parts)


def op_shardings(op: ir.Operation | ir.OpView) -> tuple[str, tuple[Sharding, ...]] | None:
    """(mesh name, one sharding per result), or None where the op is not annotated."""
    op = op.operation
    if op.name in ("sdy.reshard", "sdy.sharding_constraint"):
        mesh, sharding = read_sharding(op.attributes["sharding"])
        return mesh, (sharding,)
    attribute = op.attributes.get(SHARDING)
    return None if attribute is None else _read_per_value(attribute)


def value_sharding(value: ir.Value) -> tuple[str, Sharding] | None:
    """(mesh name, sharding) of any SSA value of a function body: block argument or op result."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        function = owner.owner.operation
        number = ir.BlockArgument(value).arg_number
        attributes = argument_attributes(function)[number]
        return read_sharding(attributes[SHARDING]) if SHARDING in attributes else None
    found = op_shardings(owner)
    if found is None:
        return None
    return found[0], found[1][ir.OpResult(value).result_number]


def argument_attributes(function: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """Attribute dictionaries of a function's arguments (copies; write with `set_argument_attributes`)."""
    count = len(function.regions[0].blocks[0].arguments) if len(function.regions[0].blocks) else 0
    return _dictionaries(function, "arg_attrs", count)


def result_attributes(function: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """Attribute dictionaries of a function's results (copies)."""
    kind = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    return _dictionaries(function, "res_attrs", len(kind.results))


def _dictionaries(function: ir.Operation, name: str, count: int) -> list[dict[str, ir.Attribute]]:
    attribute = function.attributes.get(name)
    if attribute is None:
        return [{} for _ in range(count)]
    return [dict(entry) for entry in _read_dictionaries(attribute)]


@lru_cache(maxsize=8)
def _read_dictionaries(attribute: ir.Attribute) -> list[dict[str, ir.Attribute]]:
    """An array of dictionaries: of a function with thousands of arguments it is read many times."""
    found = []
    for inner in ir.ArrayAttr(attribute):
        named = list(ir.DictAttr(inner))
        found.append({entry.name: entry.attr for entry in named})
    return found


def set_argument_attributes(function: ir.Operation, attributes: Sequence[dict[str, ir.Attribute]]) -> None:
    """Replace all argument attribute dictionaries of a function."""
    _set_dictionaries(function, "arg_attrs", attributes)


def set_result_attributes(function: ir.Operation, attributes: Sequence[dict[str, ir.Attribute]]) -> None:
    """Replace all result attribute dictionaries of a function."""
    _set_dictionaries(function, "res_attrs", attributes)


def _set_dictionaries(function: ir.Operation, name: str, attributes: Sequence[dict[str, ir.Attribute]]) -> None:
    context = function.context
    entries = [ir.DictAttr.get(dict(sorted(a.items())), context=context) for a in attributes]
    function.attributes[name] = ir.ArrayAttr.get(entries, context=context)
