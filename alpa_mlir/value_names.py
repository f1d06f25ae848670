"""Find the values that users call `%name`, and give their ops that name, which outlives every pass.

MLIR forgets the names of values when it reads a text.  An op that has its position in that text is found by what
stands before it (`%name =`), others (a text with locations of its own, bytecode) by the name that MLIR prints.  The
op's location is then wrapped in the name; passes keep locations, so `alpa-explain` finds the op however deep.
"""

from __future__ import annotations

import re

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import BYTECODE_MAGIC, functions
from alpa_mlir.dialect.diagnostics import CompileError

_NAME = re.compile(r"%[\w$.-]+")
_RESULT = re.compile(r"(%[\w$.-]+)(?::\d+)?\s*=\s*$")


def name_values(module: ir.Module, raw: bytes, only: str) -> str:
    """Name the ops of the values `%name` in a list of patterns; the list with arguments of @main as `argN`.

    A name that several functions have means @main's. CompileError for a name that there is not.
    """
    lines = [] if raw.startswith(BYTECODE_MAGIC) else raw.decode(errors="replace").splitlines()
    known = functions(module)
    order = sorted(known, key=lambda name: name != "main")
    patterns = []
    for pattern in (p.strip() for p in only.split(";")):
        if _NAME.fullmatch(pattern):
            argument = _argument(known["main"], lines, pattern) if "main" in known else -1
            if argument < 0 and not any(_name_ops(known[f], lines, pattern) for f in order):
                raise CompileError(f"no value is called {pattern}", module.operation.location)
            pattern = f"arg{argument}" if argument >= 0 else pattern
        patterns.append(pattern)
    return "; ".join(patterns)


def _argument(function: ir.Operation, lines: list[str], name: str) -> int:
    """The number of the argument of that name, or -1."""
    for number, argument in enumerate(function.regions[0].blocks[0].arguments):
        after = _NAME.match(_text(argument.location, lines)[1])
        if name == (after.group() if after else f"%arg{number}"):
            return number
    return -1


def _name_ops(function: ir.Operation, lines: list[str], name: str) -> bool:
    """Wrap the locations of the ops whose results have that name; whether there are any."""
    state = ir.AsmState(function)
    found = False
    for op in alpa.walk(function):
        if len(op.results):
            before = _RESULT.search(_text(op.location, lines)[0])
            if name == (before.group(1) if before else op.results[0].get_name(state).partition("#")[0]):
                found = True
                with op.context:
                    op.location = ir.Location.name(name, op.location)
    return found


def _text(location: ir.Location, lines: list[str]) -> tuple[str, str]:
    """What stands before and after a position in the text that was read; nothing for positions elsewhere."""
    if isinstance(location, ir.FileLineColLoc) and location.filename == "-" and location.start_line <= len(lines):
        line, column = lines[location.start_line - 1], location.start_col - 1
        return line[:column], line[column:]
    return "", ""
