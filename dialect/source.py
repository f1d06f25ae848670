"""The identity of this program: a digest of its own source, for caches and for ranks that must be the same."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path


@cache
def digest_of_source(*wings: str) -> str:
    """SHA-256 of all Python files of the packages `alpa_mlir.<wing>`, with their paths."""
    found = hashlib.sha256()
    for wing in wings:
        root = Path(str(files(f"alpa_mlir.{wing}")))
        for path in sorted(root.rglob("*.py")):
            found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()
