"""Lists of numbers as users write them: `3,5-7`."""

from __future__ import annotations

import re

_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def number_ranges(text: str) -> list[tuple[int, int]] | None:
    """The ranges (first, last) of `3,5-7`, as written; None where the text is no such list."""
    text = text.replace(" ", "")
    if not _LIST.fullmatch(text):
        return None
    parts = (part.partition("-") for part in text.split(","))
    return [(int(first), int(last or first)) for first, _, last in parts]
