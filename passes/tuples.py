"""Tuples of values, which only old exporters write: an element read from one is the value that was put there."""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import walk


def take_tuples_apart(main: ir.Operation) -> None:
    """Let readers of tuples that the program itself puts together read the values; tuples of ops stay."""
    for op in list(walk(main)):
        if op.name != "stablehlo.get_tuple_element" or isinstance(op.operands[0].owner, ir.Block):
            continue
        made = op.operands[0].owner.operation
        if made.name == "stablehlo.tuple":
            op.results[0].replace_all_uses_with(made.operands[ir.IntegerAttr(op.attributes["index"]).value])
            op.erase()
    for op in reversed(list(walk(main))):
        if op.name == "stablehlo.tuple" and not any(True for _ in op.results[0].uses):
            op.erase()
