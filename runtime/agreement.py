"""Before any work the ranks compare what they are: the same program, versions, options and plan on every host.

Ranks that differ would not fail at once: they would wait for messages that nobody sends, or compute something else.
What is compared is therefore everything that decides what a rank does: versions of this package, of jax and jaxlib,
the source text of the parts that run here (two checkouts have one version), the command's options, and the plan.  The
plan that runs is rank 0's in any case; a rank that sees another file under its name says so.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jaxlib

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.reading import read_file
from alpa_mlir.dialect.source import digest_of_source
from alpa_mlir.runtime.guard import label

Identity = Mapping[str, str]
"""What a rank is, by the name of each thing that must be the same on all."""


def identity(plan: str, options: Mapping[str, object]) -> Identity:
    """This rank's; `plan` is the file's path, `options` the rest of the command."""
    return {
        "host": socket.gethostname(),
        "alpa_mlir": _version("alpa_mlir"),
        "jax": _version("jax"),
        "jaxlib": str(jaxlib.__version__),
        "the source of alpa_mlir": source_digest()[:12],
        "the plan": _digest(Path(plan)),
        **{f"the option {name}": str(value) for name, value in options.items()},
    }


def disagreement(everyone: list[Identity]) -> str | None:
    """The first difference between rank 0 and another rank as a sentence, or None."""
    first = everyone[0]
    for rank, other in enumerate(everyone):
        for name in first:
            # A host that does not see the plan's file gets the plan from rank 0.
            unseen = name == "the plan" and "" in (first[name], other[name])
            if name != "host" and other[name] != first[name] and not unseen:
                return (
                    f"{label(rank, other['host'])} differs from rank 0 on {first['host']} in {name}:"
                    f" {other[name]}, not {first[name]}"
                )
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _digest(path: Path) -> str:
    """SHA-256 of a file's bytes, shortened; "" where it cannot be read, or not twice."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()[:12] if path.is_file() else ""
    except (CompileError, OSError):
        return ""


def source_digest() -> str:
    """SHA-256 of the source of what runs on a rank."""
    return digest_of_source("dialect", "runtime")
