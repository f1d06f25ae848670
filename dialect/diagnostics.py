"""Errors for users: a sentence with the op's location, in MLIR's form `file:line:col: error: …`.

Every refusal of bad input anywhere in the compiler is a `CompileError`; the commands print it and
exit 1.  A traceback therefore always means a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from jaxlib.mlir import ir


@dataclass(frozen=True)
class Remark:
    """A note to the user about one op that is not an error (severity `remark`, `warning` or `note`)."""

    message: str
    location: str
    severity: str = "remark"

    def __str__(self) -> str:
        return f"{self.location}: {self.severity}: {self.message}"


class CompileError(Exception):
    """The input cannot be compiled; `location` is `file:line:col` or whatever the op knows of itself.

    A note is text that belongs to the error's place, or a `Remark` with a place of its own.
    """

    def __init__(
        self, message: str, location: ir.Location | str | None = None, notes: Sequence[str | Remark] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.location = location if isinstance(location, str) else location_text(location)
        self.notes = tuple(notes)

    def without_frames(self) -> Self:
        """This error without the frames it came through, to be kept: they hold all that was at work there."""
        self.__context__ = None
        return self.with_traceback(None)

    def __str__(self) -> str:
        head = f"{self.location}: error: {self.message}"
        notes = (n if isinstance(n, Remark) else Remark(n, self.location, "note") for n in self.notes)
        return "\n".join([head, *map(str, notes)])


def location_text(location: ir.Location | None) -> str:
    """`file:line:col` of the innermost known source position, or `-` where none is known."""
    if location is None:
        return "-"
    found = next(_positions(location), None)
    return found if found is not None else "-"


def _positions(location: ir.Location) -> Iterator[str]:
    # Diagnostics hold plain locations; only this way round do the bindings find out their kind.
    loc = ir.Location.from_attr(location.attr, location.context)
    if isinstance(loc, ir.FileLineColLoc):
        yield f"{loc.filename}:{loc.start_line}:{loc.start_col}"
    elif isinstance(loc, ir.NameLoc):
        yield from _positions(loc.child_loc)
    elif isinstance(loc, ir.CallSiteLoc):
        yield from _positions(loc.callee)
        yield from _positions(loc.caller)
    elif isinstance(loc, ir.FusedLoc):
        for child in loc.locations:
            yield from _positions(child)


def location_names(location: ir.Location) -> Iterator[str]:
    """What a location can be called by: the names in it, `line:N` and `FILE:N` of its source positions."""
    loc = ir.Location.from_attr(location.attr, location.context)
    if isinstance(loc, ir.FileLineColLoc):
        yield f"line:{loc.start_line}"
        yield f"{loc.filename}:{loc.start_line}"
    elif isinstance(loc, ir.NameLoc):
        yield loc.name_str
        yield from location_names(loc.child_loc)
    elif isinstance(loc, ir.CallSiteLoc):
        yield from location_names(loc.callee)
        yield from location_names(loc.caller)
    elif isinstance(loc, ir.FusedLoc):
        for child in loc.locations:
            yield from location_names(child)


def from_mlir_error(error: ir.MLIRError, filename: str = "-") -> CompileError:
    """The first diagnostic of an `MLIRError` as a `CompileError`, with the rest as notes."""
    lines: list[str] = []
    where: str | None = None
    for diagnostic in error.error_diagnostics:
        if where is None:
            where = location_text(diagnostic.location)
        lines.append(diagnostic.message)
        lines.extend(n.message for n in diagnostic.notes)
    message = lines[0] if lines else str(error)
    if where in (None, "-"):
        where = f"{filename}:1:1"
    return CompileError(message, where, lines[1:4])
