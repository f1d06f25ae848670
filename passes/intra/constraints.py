"""What users decide about shardings: a small language, and what stands in the program itself.

    arg3=[{x},{}]           argument 3 of @main: dimension 0 split over x, dimension 1 whole
    out0=[{},{y,?}]         result 0: dimension 1 split over y, perhaps over more axes (minor to y)
    value(mlp/dot)=[{?},{!x}]   a named value: anything, but x not on dimension 1
    arg(*experts*)=[{x},{},{}]  arguments of @main by their names, as many as have three dimensions
    x=data                  axis x holds the batch: data parallelism
    x=zero1, zero2, zero3   and optimizer state (gradients; parameters) are split over x as well
    y=tensor                axis y never holds the batch: products are split over it in other ways

Constraints are separated by `;`.  Arguments may be lists of numbers, `arg0-5,7=…`.  A value is named by its
location: the name that the frontend gave it (`*` and `?` match as in file names), or `line:N` of the file.
In a dimension, axes go from major to minor; `?` leaves it open to more, `!x` open but for x.
The program may say the same with `sdy.sharding` and `sdy.sharding_constraint`; both become `Pin`s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.number_list import number_ranges

MOST_VALUES = 10**6
"""Argument and result numbers are less than this."""

MODES = ("data", "zero1", "zero2", "zero3", "tensor")


@dataclass(frozen=True)
class DimPattern:
    """What a dimension may be split over: `axes` first; more only if `open`; never those in `without`."""

    axes: tuple[str, ...]
    open: bool = False
    without: tuple[str, ...] = ()

    def allows(self, axes: tuple[str, ...]) -> bool:
        """Whether a dimension split over `axes` (major first) is as wanted."""
        if axes[: len(self.axes)] != self.axes or any(a in self.without for a in axes):
            return False
        return self.open or len(axes) == len(self.axes)

    def __str__(self) -> str:
        left = ["?"] if self.open and not self.without else []
        return "{" + ",".join([*self.axes, *(f"!{a}" for a in self.without), *left]) + "}"


@dataclass(frozen=True)
class Pattern:
    """What a sharding must be like, dimension by dimension; a partial value is like none."""

    dims: tuple[DimPattern, ...]

    def allows(self, sharding: Sharding) -> bool:
        """Whether a sharding is as wanted."""
        if len(sharding.dims) != len(self.dims) or sharding.partial:
            return False
        return all(p.allows(axes) for p, axes in zip(self.dims, sharding.dims, strict=True))

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes that are named."""
        return tuple(a for d in self.dims for a in (*d.axes, *d.without))

    def __str__(self) -> str:
        return "[" + ",".join(map(str, self.dims)) + "]"


@dataclass(frozen=True)
class Pin:
    """A sharding wanted of a value. `what` is arg (with `number` or `name`), out (`number`), value (`name`) or op.

    For op, `number` is that of the op in the program and `index` the number of its result.
    """

    text: str
    where: str
    what: str
    pattern: Pattern
    number: int = -1
    index: int = -1
    name: str = ""
    written: bool = False
    """Whether it stands in the program; where no strategy obeys such a pin by itself it is left out, with a warning."""


@dataclass(frozen=True)
class AxisMode:
    """How a mesh axis is to be used: one of MODES."""

    text: str
    where: str
    axis: str
    mode: str


Constraint = Pin | AxisMode


def parse_constraints(text: str) -> tuple[Constraint, ...]:
    """The constraints of an option; CompileError at `constrain:1:COLUMN` for what cannot be read."""
    found: list[Constraint] = []
    start = 0
    for part in text.split(";"):
        if part.strip():
            where = f"constrain:1:{start + 1 + len(part) - len(part.lstrip())}"
            found.extend(_parse(part.strip(), where))
        start += len(part) + 1
    return tuple(found)


_SUBJECT = re.compile(r"(?P<what>arg|out)(?P<numbers>[\d, -]+)|(?P<named>arg|value)\((?P<name>.+)\)")
_PATTERN = re.compile(r"\[\s*(\{[^{}]*\}(?:\s*,\s*\{[^{}]*\})*)?\s*\]")


def _parse(text: str, where: str) -> list[Constraint]:
    subject, equals, wanted = (s.strip() for s in text.rpartition("="))
    if not equals:
        raise CompileError(f"a constraint is written subject=what, for example arg0=[{{x}},{{}}], got '{text}'", where)
    if re.fullmatch(r"[a-z]", subject):
        if wanted not in MODES:
            raise CompileError(f"an axis may be {', '.join(MODES)}, got '{text}'", where)
        return [AxisMode(text, where, subject, wanted)]
    found = _SUBJECT.fullmatch(subject)
    if found is None:
        raise CompileError(f"'{subject}' is no arg0, out0, arg(name), value(name) or axis, in '{text}'", where)
    pattern = parse_pattern(wanted, text, where)
    if found["name"] is not None:
        return [Pin(text, where, found["named"], pattern, name=found["name"])]
    return [Pin(text, where, found["what"], pattern, number=n) for n in _numbers(found["numbers"], text, where)]


def _numbers(text: str, whole: str, where: str) -> list[int]:
    ranges = number_ranges(text) or []
    if not ranges or any(not first <= last < MOST_VALUES for first, last in ranges):
        raise CompileError(f"{text} is no list of numbers such as 3,5-7, in '{whole}'", where)
    return [n for first, last in ranges for n in range(first, last + 1)]


def parse_pattern(text: str, whole: str, where: str) -> Pattern:
    """`[{x},{?}]` as a pattern."""
    if not _PATTERN.fullmatch(text):
        raise CompileError(f"a sharding is written [{{x}},{{}}], one pair of braces a dimension, got '{whole}'", where)
    dims = [_dimension(d, whole, where) for d in re.findall(r"\{([^{}]*)\}", text)]
    axes = [a for d in dims for a in d.axes]
    if len(set(axes)) < len(axes):
        raise CompileError(f"an axis splits one dimension only, in '{whole}'", where)
    return Pattern(tuple(dims))


def _dimension(text: str, whole: str, where: str) -> DimPattern:
    axes: list[str] = []
    without: list[str] = []
    is_open = False
    for word in filter(None, (w.strip().strip('"') for w in text.split(","))):
        name = word.removeprefix("!")
        if word == "?":
            is_open = True
        elif not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise CompileError(f"'{word}' is no axis, in '{whole}'", where)
        elif word != name:
            without.append(name)
        elif is_open or without:
            raise CompileError(f"axes stand before '?' and '!', in '{whole}'", where)
        else:
            axes.append(name)
    return DimPattern(tuple(axes), is_open or bool(without), tuple(without))
