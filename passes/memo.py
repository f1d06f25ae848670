"""Results that are expensive to compute, remembered by a digest of everything that decides them.

A pass is a pure function, so what it computed for equal content may be taken from before: from this planning, or from
a store that outlives it. Passes open no files; who plans says where to remember (`remembering`), a store of bytes by
digest.  Names (of values, meshes, clusters, files) are no content.  The store's `version` stands for the rules by
which results are computed: a digest of the source.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


class Store(Protocol):
    """Bytes by digest."""

    def get(self, digest: str) -> bytes | None:
        """What was put, or None."""

    def put(self, digest: str, value: bytes) -> None:
        """Keep a value."""


_STORE: ContextVar[tuple[Store, str] | None] = ContextVar("store", default=None)
_NOTES: ContextVar[dict[str, list[Any]] | None] = ContextVar("notes", default=None)


@contextmanager
def remembering(store: Store | None, version: str) -> Iterator[None]:
    """Within this context results are kept in `store` (None: nowhere); `version`: by which rules they are computed."""
    token = _STORE.set(None if store is None else (store, version))
    try:
        yield
    finally:
        _STORE.reset(token)


class _Memory:
    """A store that lasts as long as one planning; `fresh`: what was put since it was last asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self.fresh: dict[str, bytes] = {}

    def get(self, digest: str) -> bytes | None:
        return self._kept.get(digest)

    def put(self, digest: str, value: bytes) -> None:
        self._kept[digest] = self.fresh[digest] = value


@contextmanager
def remembering_meanwhile() -> Iterator[None]:
    """Within this context results are kept in memory, where they are not kept in a store already; notes always are."""
    token = _NOTES.set({})
    try:
        with remembering(*(_STORE.get() or (_Memory(), ""))):
            yield
    finally:
        _NOTES.reset(token)


def noted(name: str) -> list[Any]:
    """What was noted under a name (a digest) in this planning, to be added to; outside of one nothing is kept.

    Notes are for results that also answer other questions: whatever an older planning has left, the same planning finds
    the same ones.
    """
    notes = _NOTES.get()
    return [] if notes is None else notes.setdefault(name, [])


def newly_remembered() -> dict[str, bytes]:
    """What was kept in memory since the last call: another process of the same planning may keep it as well.

    Nothing of what a store keeps that outlives the planning: there others find it.
    """
    known = _STORE.get()
    if known is None or not isinstance(known[0], _Memory):
        return {}
    found, known[0].fresh = known[0].fresh, {}
    return found


def remember(entries: Mapping[str, bytes]) -> None:
    """Keep what another process of this planning found."""
    known = _STORE.get()
    if known is not None:
        for name, value in entries.items():
            known[0].put(name, value)


def digest(*parts: object) -> str:
    """SHA-256 of parts: bytes as they are, anything else by its repr, which must tell its content."""
    found = hashlib.sha256()
    for part in parts:
        told = part if isinstance(part, bytes) else repr(part).encode()
        found.update(len(told).to_bytes(8, "little") + told)
    return found.hexdigest()


def remembered(key: Callable[[], str], compute: Callable[[], Arrays]) -> Arrays:
    """What `compute` gives, from the store where it holds it; what cannot be read is computed again."""
    known = _STORE.get()
    if known is None:
        return compute()
    store, version = known
    name = digest(version, key())
    kept = store.get(name)
    if kept is not None:
        try:
            with np.load(io.BytesIO(kept), allow_pickle=False) as file:
                return {entry: file[entry] for entry in file.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
            pass
    made = compute()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **made)
    store.put(name, buffer.getvalue())
    return made
