"""Look-ups in a cluster's table (TOML, or `alpa.cluster`): each figure of its kind, within limits, or an error.

What is wrong is told by its dotted key (`link.node.bandwidth`), at the place where that stands in the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from alpa_mlir.dialect.diagnostics import CompileError

MOST_BYTES = 2**60
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """`16GB`, `512MiB`, `1e9` as bytes; CompileError otherwise."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*(|[kKMGT]i?)[bB]?\s*", text)
    amount = float(found[1]) * _UNITS[found[2].upper()] if found and re.search("[0-9]", found[1]) else 0.0
    if not 1 <= amount <= MOST_BYTES:
        raise CompileError(f"not an amount of memory: {text!r} (write for example 16GB or 512MiB)")
    return int(amount)


def position(text: str, key: str) -> str:
    """`line:column` of a dotted key in TOML text: where its last part that is there stands, after the parts before."""
    code = re.sub(r"#.*", lambda comment: " " * len(comment.group()), text)
    at = end = 0
    for part in key.split("."):
        found = re.compile(rf"(?<![\w-]){re.escape(part)}\s*[=\].]").search(code, end)
        if found is None:
            break
        at, end = found.start(), found.start() + len(part)
    return f"{text.count(chr(10), 0, at) + 1}:{at - text.rfind(chr(10), 0, at)}"


@dataclass(frozen=True)
class ClusterTable:
    """Typed look-ups in a parsed table; errors name the key and stand where `where(dotted key)` says."""

    entries: Mapping[str, Any]
    where: Callable[[str], str]
    prefix: str = ""

    def only(self, known: Collection[str]) -> ClusterTable:
        """The table itself; CompileError at a key that is not one of the known ones."""
        for key in self.entries:
            if key not in known:
                dotted, alike = self.prefix + key, difflib.get_close_matches(key, known, 1)
                hint = f": did you mean {self.prefix}{alike[0]}?" if alike else f" (it has {', '.join(known)})"
                raise CompileError(f"a cluster has no {dotted}{hint}", self.where(dotted))
        return self

    def number(self, key: str, default: float | None = None, most: float = 1e30) -> float:
        value = self.entries.get(key, default)
        minimum = 0 if default is not None else 1e-30
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not (value > 0 or (value == 0 and minimum == 0)):
            raise self._wrong("positive number", key, value)
        if not minimum <= value <= most:
            raise self._wrong(f"number from {minimum:g} to {most:g} as", key, value)
        return float(value)

    def part(self, key: str) -> float:
        """A number up to 1, which is what is meant where it is not there."""
        value = self.number(key, 1.0)
        if not 0 < value <= 1:
            raise self._wrong("number above 0 and up to 1 as", key, value)
        return value

    def switch(self, key: str) -> bool:
        """0 or 1, or false or true; false where it is not there."""
        value = self.entries.get(key, False)
        if value not in (0, 1):
            raise self._wrong("true or false as", key, value)
        return bool(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of at least one positive number."""
        value = self.entries.get(key)
        if not isinstance(value, list) or not value:
            raise self._wrong("list of positive numbers", key, value)
        return tuple(ClusterTable({key: v}, self.where, self.prefix).number(key) for v in value)

    def count(self, key: str, most: int) -> int:
        value = self.entries.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._wrong(f"whole number from 1 to {most} as", key, value)
        return value

    def memory(self, key: str) -> int:
        value = self.entries.get(key)
        if not isinstance(value, str):
            return int(self.number(key)) if isinstance(value, float) else self.count(key, MOST_BYTES)
        try:
            return parse_bytes(value)
        except CompileError as e:
            raise CompileError(e.message, self.where(self.prefix + key)) from None

    def text(self, key: str) -> str:
        value = self.entries.get(key)
        if not isinstance(value, str):
            raise self._wrong("text", key, value)
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.entries.get(key)
        if not isinstance(value, dict):
            raise self._wrong("table", key, value)
        return value

    def _wrong(self, kind: str, key: str, value: object) -> CompileError:
        dotted = self.prefix + key
        got = f", got {value!r}" if key in self.entries else ""
        return CompileError(f"a cluster needs a {kind} {dotted}{got}", self.where(dotted))
