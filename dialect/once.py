"""What is found out once for each object, known by its identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Found = TypeVar("Found")


class Once(Generic[Key, Found]):
    """What is found out once for each object: all microbatches share long lists, whose hashes would take as long as
    they are."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Key, Found]] = {}

    def of(self, key: Key, find: Callable[[Key], Found]) -> Found:
        """What `find` gives for an object."""
        known = self._known.get(id(key))
        if known is None:
            # The object is kept, so that no other gets its identity.
            known = self._known[id(key)] = key, find(key)
        return known[1]
