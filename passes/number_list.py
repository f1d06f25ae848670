"""Lists of numbers as users write them: `3,5-7`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def number_ranges(text: str) -> list[tuple[int, int]] | None:
    """The ranges (first, last) of `3,5-7`, as written; None where the text is no such list."""
    text = text.replace(" ", "")
    if not _LIST.fullmatch(text):
        return None
    parts = (part.partition("-") for part in text.split(","))
    return [(int(first), int(last or first)) for first, _, last in parts]


def ascending_ranges(text: str) -> list[tuple[int, int]] | None:
    """The same; None also where a range runs backwards."""
    ranges = number_ranges(text)
    return ranges if ranges is not None and all(first <= last for first, last in ranges) else None


def number_text(numbers: Sequence[int]) -> str:
    """Ascending numbers written as such a list."""
    ranges: list[list[int]] = []
    for n in numbers:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
