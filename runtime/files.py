"""Files that a run writes: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alpa_mlir.dialect.diagnostics import CompileError


@contextmanager
def written_whole(path: str, what: str) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` at the end, if it is complete.

    Where something else than a file is there, a pipe or a device, it gets the bytes.  Raises `CompileError` where it
    cannot be written.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        if target.exists() and not target.is_file():
            with tempfile.TemporaryFile() as file, target.open("wb") as special:
                yield file
                file.seek(0)
                shutil.copyfileobj(file, special)
            return
        with part.open("wb") as whole:
            yield whole
        part.replace(target)
    except OSError as e:
        raise CompileError(f"cannot write the {what}: {e.strerror or e}", f"{path}:1:1") from None
    finally:
        part.unlink(missing_ok=True)
