"""Functions that are equal but for their own name and that of their mesh, as those of equal stages are.

A pipeline of many stages has few different functions: what is made of one of them holds for the others, under other
names. Functions are compared as numbers (which op each is, what it reads): their text would take five times as long.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.sharding import (
    SHARDING,
    argument_attributes,
    read_sharding,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
    sharding_attribute,
)

_BOUNDARY = ("in_shardings", "out_shardings")


Key = tuple[object, ...]


class Anonymous:
    """Keys of functions without their own names and those of their meshes: equal for equal functions."""

    def __init__(self) -> None:
        self._signatures: dict[Key, int] = {}
        self._attributes: dict[tuple[str, ir.Attribute], object] = {}

    def key(self, function: ir.Operation, mesh: str) -> Key:
        """The key of a function on a mesh."""
        numbers: dict[ir.Value, int] = {}
        own = [(k, self._attribute(a, mesh)) for k, a in function.attributes.items() if k != "sym_name"]
        return tuple(own), tuple(self._region(function.regions[0], mesh, numbers))

    def _region(self, region: ir.Region, mesh: str, numbers: dict[ir.Value, int]) -> list[int]:
        """Each op's signature and the values that it reads, block by block; values are numbered in order."""
        found: list[int] = []
        for block in region.blocks:
            for argument in block.arguments:
                numbers[argument] = len(numbers)
            arguments: Key = ("block", *[argument.type for argument in block.arguments])
            found.append(self._signature(arguments))
            for view in block.operations:
                op = view.operation
                found += [numbers[v] for v in op.operands]
                inside = [self._region(r, mesh, numbers) for r in op.regions] if len(op.regions) else ()
                results = list(op.results)
                key: Key = (op.name, self._of(op, mesh), tuple([r.type for r in results]), *map(tuple, inside))
                found.append(self._signature(key))
                for result in results:
                    numbers[result] = len(numbers)
        return found

    def _signature(self, key: Key) -> int:
        """A number for a key: below 0, as no value has."""
        return self._signatures.setdefault(key, -1 - len(self._signatures))

    def _of(self, op: ir.Operation, mesh: str) -> Key:
        """The attributes of an op."""
        return tuple([(name, self._attribute(attribute, mesh)) for name, attribute in op.attributes.items()])

    def _attribute(self, attribute: ir.Attribute, mesh: str) -> object:
        """An attribute that says nothing of the mesh, or else its text without the mesh's name."""
        found = self._attributes.get((mesh, attribute))
        if found is None:
            text = str(attribute)
            named = f"@{mesh}," in text
            found = self._attributes[mesh, attribute] = text.replace(f"@{mesh},", "@,") if named else attribute
        return found


def replace_by_copy(function: ir.Operation, mesh: str, other: ir.Operation, other_mesh: str) -> None:
    """Put a copy of a localized function in the place of one that was equal to it, on a mesh of another name."""
    copy = other.clone(ip=ir.InsertionPoint(function)).operation
    copy.attributes["sym_name"] = function.attributes["sym_name"]
    for read, write in ((argument_attributes, set_argument_attributes), (result_attributes, set_result_attributes)):
        entries = read(copy)
        for entry in entries:
            if SHARDING in entry:
                entry[SHARDING] = sharding_attribute(read_sharding(entry[SHARDING])[1], mesh, copy.context)
        write(copy, entries)
    for op in copy.regions[0].blocks[0].operations:
        for name in _BOUNDARY:
            if name in op.attributes:
                text = str(op.attributes[name]).replace(f"@{other_mesh},", f"@{mesh},")
                op.attributes[name] = ir.Attribute.parse(text, copy.context)
    function.erase()
