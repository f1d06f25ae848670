"""What was computed once and is expensive to compute again, kept in files by digest.

A `Store` maps a digest of everything that decides a result to the bytes of the result.  A file appears whole or not at
all, so any number of processes may share a folder; one that was damaged is recognised by its checksum, deleted, and
counts as missing.  A store never makes a command fail: where the folder cannot be written, nothing is kept, and
`trouble` says why.  What is kept may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from alpa_mlir.dialect.source import digest_of_source

VARIABLE = "ALPA_MLIR_CACHE_DIR"
LIMIT = 2 << 30
"""Bytes that one folder may hold; when a process adds its first entry, the longest unused ones go."""


def cache_directory() -> Path:
    """`$ALPA_MLIR_CACHE_DIR`, else `$XDG_CACHE_HOME/alpa_mlir`, else `~/.cache/alpa_mlir`."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alpa_mlir"


def planning_version() -> str:
    """SHA-256 of the source of all that prices and decides, and the versions of the solvers."""
    found = hashlib.sha256(digest_of_source("dialect", "passes").encode())
    for name in ("numpy", "scipy", "cvxpy", "highspy", "jaxlib"):
        found.update(f"{name} {version(name)}\0".encode())
    return found.hexdigest()


class Store:
    """Bytes by digest, in a folder that need not exist yet."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder, self._limit, self._trimmed = folder, limit, False
        self.trouble: str | None = None

    def get(self, digest: str) -> bytes | None:
        """What was put under this digest, or None."""
        path = self._folder / digest
        try:
            content = path.read_bytes()
        except OSError:
            return None
        checksum, value = content[:32], content[32:]
        if hashlib.sha256(value).digest() != checksum:
            self.drop(digest)
            return None
        with suppress(OSError):
            os.utime(path)
        return value

    def put(self, digest: str, value: bytes) -> None:
        """Keep a value; one that is there already is replaced."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                try:
                    file.write(hashlib.sha256(value).digest() + value)
                    file.close()
                    os.replace(file.name, self._folder / digest)
                except BaseException:
                    Path(file.name).unlink()
                    raise
            if not self._trimmed:
                self._trimmed = True
                self._trim()
        except OSError as e:
            self.trouble = f"nothing is kept in {self._folder}: {e.strerror or e}"

    def drop(self, digest: str) -> None:
        """Forget a value that is of no use."""
        with suppress(OSError):
            (self._folder / digest).unlink()

    def _trim(self) -> None:
        """Delete the entries that were not used for longest, until the rest is within the limit."""
        entries = []
        for path in self._folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path.name))
        total = sum(size for _, size, _ in entries)
        for _, size, name in sorted(entries):
            if total <= self._limit:
                break
            self.drop(name)
            total -= size
