"""Passes by name: one pass, one frozen dataclass; its fields are its options.

The command line, the pipeline parser and `docs/passes.md` derive from the declarations here.
A pass changes the module in place; bad input raises `CompileError`, notes to the user are appended
to `remarks`.  (The contract is xDSL's `ModulePass`: a frozen dataclass with a `name`.)

Options are written as MLIR writes them, `alpa-layers{count=4 names=a,b}`: separated by spaces, a value
with spaces or braces of its own in quotes or braces, a boolean may stand alone.  What is printed by
`pass_to_text` reads back equal.
"""

from __future__ import annotations

import difflib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import Remark


class PipelineError(ValueError):
    """A pipeline or option that cannot be understood: wrong usage, not a wrong program."""


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. The docstring of a pass is its specification (IR before, IR after, options).

    Fields are options: `int`, `float`, `str`, `bool`, `tuple[int, ...]`, each with a default, each made by
    `option(default, "what it means")`.  The field `batch_args` is spelt `batch-args` in pipelines.
    """

    name: ClassVar[str]

    @abstractmethod
    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""


def option(default: Any, meaning: str) -> Any:
    """A dataclass field that is an option of a pass, with its help text."""
    return field(default=default, metadata={"help": meaning})


P = TypeVar("P", bound=type[Pass])
_PASSES: dict[str, type[Pass]] = {}


def register(cls: P) -> P:
    """Class decorator: make a pass known by its name."""
    if cls.name in _PASSES:
        raise ValueError(f"two passes are called {cls.name}")
    _PASSES[cls.name] = cls
    return cls


def registered() -> dict[str, type[Pass]]:
    """All registered passes by name, sorted."""
    return dict(sorted(_PASSES.items()))


@dataclass(frozen=True)
class Option:
    """One option of a pass as users see it: `name=default` of a type, with its meaning."""

    name: str
    kind: str
    default: str
    meaning: str


def options_of(cls: type[Pass]) -> tuple[Option, ...]:
    """The options of a pass, in the order of its fields."""
    hints = _hints(cls)
    return tuple(
        Option(_spelling(f.name), _kind(hints[f.name]), _value_text(_default(f)), f.metadata.get("help", ""))
        for f in fields(cls)
    )


def pass_from_text(text: str) -> Pass:
    """The pass written as `name` or `name{option=value …}`; `PipelineError` where it cannot be read."""
    name, brace, rest = text.strip().partition("{")
    if brace and not rest.endswith("}"):
        raise PipelineError(f"'{text}' has no closing brace")
    cls = _PASSES.get(name)
    if cls is None:
        raise PipelineError(f"there is no pass '{name}'{did_you_mean(name, _PASSES)}")
    return cls(**_read_options(cls, rest[:-1] if brace else ""))


def pass_to_text(instance: Pass) -> str:
    """The pass as `pass_from_text` reads it; options at their default are left out."""
    written = []
    for f in fields(instance):
        value = getattr(instance, f.name)
        if value != _default(f):
            written.append(f"{_spelling(f.name)}={_quoted(_value_text(value))}")
    return instance.name + (f"{{{' '.join(written)}}}" if written else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def _spelling(name: str) -> str:
    return name.replace("_", "-")


@cache
def _hints(cls: type[Pass]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _read_options(cls: type[Pass], text: str) -> dict[str, Any]:
    by_name = {_spelling(f.name): f.name for f in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in split_options(text):
        if name not in by_name:
            known = ", ".join(by_name) if by_name else "none"
            raise PipelineError(
                f"{cls.name} has no option '{name}'{did_you_mean(name, by_name)} (its options: {known})"
            )
        if by_name[name] in values:
            raise PipelineError(f"{cls.name}: option '{name}' is given twice")
        try:
            values[by_name[name]] = _convert(_hints(cls)[by_name[name]], value)
        except ValueError:
            kind = _kind(_hints(cls)[by_name[name]])
            shown = "nothing" if value is None else f"'{value}'"
            raise PipelineError(f"{cls.name}: option '{name}' must be {kind}, got {shown}") from None
    return values


def split_options(text: str) -> Iterator[tuple[str, str | None]]:
    """(name, value) of each option in `a=1 b=x,y flag c={d e} f="g h"`; the value is None where there is no `=`."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        end = at
        while end < len(text) and not (text[end].isspace() or text[end] == "="):
            end += 1
        name = text[at:end]
        if end < len(text) and text[end] == "=":
            value, at = _take_value(text, end + 1)
            yield name, value
        else:
            yield name, None
            at = end


def _take_value(text: str, at: int) -> tuple[str, int]:
    """The value that begins at `at` and where it ends; one pair of quotes or braces around it is removed."""
    start, depth, quote = at, 0, ""
    while at < len(text):
        c = text[at]
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "{}":
            depth += 1 if c == "{" else -1
        elif c.isspace() and depth == 0:
            break
        at += 1
    value = text[start:at]
    if quote or depth:
        raise PipelineError(f"'{value}' has an unclosed quote or brace")
    if len(value) >= 2 and (value[0], value[-1]) in (("{", "}"), ('"', '"'), ("'", "'")):
        value = value[1:-1]
    return value, at


def _convert(kind: Any, text: str | None) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        return _boolean(text)
    if text is None:
        raise ValueError
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        return tuple(_convert(element, part.strip()) for part in text.split(",")) if text.strip() else ()
    return kind(text)


def _boolean(text: str | None) -> bool:
    if text not in (None, "true", "false", "1", "0"):
        raise ValueError
    return text in (None, "true", "1")


def _kind(kind: Any) -> str:
    """The type of an option in words."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _kind(next(k for k in typing.get_args(kind) if k is not type(None)))
    if typing.get_origin(kind) is tuple:
        return f"a list of {_PLURAL[typing.get_args(kind)[0]]}"
    return _WORDS[kind]


_WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_PLURAL = {int: "integers", float: "numbers", str: "strings", bool: "booleans"}


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(_value_text(v) for v in value)
    return "" if value is None else str(value)


def _quoted(text: str) -> str:
    needs = not text or any(c.isspace() or c in "{}\"'" for c in text)
    if not needs:
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'
