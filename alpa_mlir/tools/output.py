"""Write a command's result: all of it or nothing.

A file is written beside its final name and renamed over it, so that no reader ever sees half of it and
an error leaves what was there before.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from alpa_mlir.dialect.diagnostics import CompileError


def write_output(path: str, content: bytes) -> None:
    """Write `content` to the file `path`, or to standard output for "-".

    Raises `CompileError` at the path where it cannot be written. Devices and pipes such as /dev/stdout are
    written directly.
    """
    if path == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    target = Path(path).resolve()
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace(target, content)
    except OSError as e:
        raise CompileError(f"cannot write the file: {e.strerror or e}", f"{path}:1:1") from None


def _replace(target: Path, content: bytes) -> None:
    if target.exists():
        mode = target.stat().st_mode & 0o777
    else:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
