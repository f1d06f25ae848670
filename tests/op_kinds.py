"""One small program per StableHLO op kind, with the factors expected of its last op (tests only).

The rows stand in `op_kinds.mlir`, each headed by `// name: factors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, parse_module
from alpa_mlir.dialect.factors import FIXED, PASS, Mapping, OpFactors


@dataclass(frozen=True)
class Row:
    name: str
    factors: str
    text: str

    def module(self, context: ir.Context) -> ir.Module:
        return parse_module(self.text, context, self.name)


def _read() -> list[Row]:
    rows = []
    for part in Path(__file__).with_suffix(".mlir").read_text().split("// -----\n"):
        comments = [line for line in part.splitlines() if line.startswith("// ")]
        name, _, factors = comments[-1][3:].partition(": ")
        rows.append(Row(name, factors, part))
    return rows


def last_op(module: ir.Module) -> ir.Operation:
    """The op under test: the one whose results @main returns."""
    return list(functions(module)["main"].regions[0].blocks[0].operations)[-2].operation


def render(factors: OpFactors) -> str:
    """`ij,jk->ik j:add`: a letter per factor, `!` for fixed ones, `1` for size one, (ij) for compound dimensions."""
    names: dict[int, str] = {}
    letters = iter("ijklmnopqrstuvwxyz")

    def name(f: int) -> str:
        if factors.sizes[f] == 1:
            return "1"
        if factors.kinds[f] == FIXED:
            return "!"
        if f not in names:
            names[f] = next(letters)
        return names[f]

    def tensor(mapping: Mapping) -> str:
        dims = ["".join(name(f) for f in d) or "1" for d in mapping]
        return "".join(d if len(d) == 1 else f"({d})" for d in dims)

    text = ",".join(map(tensor, factors.operands)) + "->" + ",".join(map(tensor, factors.results))
    kinds = [f"{n}:{factors.kinds[f]}" for f, n in names.items() if factors.kinds[f] != PASS]
    return " ".join([text, *kinds])


ROWS = _read()
