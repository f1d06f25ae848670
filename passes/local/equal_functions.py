"""Functions that are equal but for their own name and that of their mesh, as those of equal stages are.

A pipeline of many stages has few different functions: what is made of one of them holds for the others, under other
names.
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


def anonymous(function: ir.Operation, mesh: str) -> str:
    """The text of a function without its own name and that of its mesh: what equal functions share."""
    name = ir.StringAttr(function.attributes["sym_name"]).value
    return str(function).replace(f"@{name}(", "@(", 1).replace(f"@{mesh},", "@,")


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
