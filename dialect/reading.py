"""Read a file that a user names: whole and soon, or an error that says why not.

| what is there | what happens |
|---|---|
| a file | read whole; refused above 4 GiB, the most that MLIR's parser can place |
| a pipe, a terminal, standard input | read to its end; refused above 1 GiB, for it may have none |
| a named pipe that nobody writes to | refused after 5 s |
| a device (`/dev/zero`), a folder | refused; `/dev/null` is an empty file |
"""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path
from typing import BinaryIO

from alpa_mlir.dialect.diagnostics import CompileError

LARGEST_FILE, LARGEST_STREAM = 2**32, 2**30
SECONDS_FOR_A_WRITER = 5.0
_POLL = 0.02
_PART = 2**22


def read_file(path: str | Path, what: str = "file") -> bytes:
    """The content of a file; `CompileError` at it, "cannot read the {what}: …", where it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            begun = _begin(handle) if stat.S_ISFIFO(os.fstat(handle).st_mode) else b""
            os.set_blocking(handle, True)
            return read_open(file, begun)
    except Unreadable as e:
        why, location = str(e), f"{path}:1:1"
    except OSError as e:
        why, location = e.strerror or str(e), f"{path}:1:1"
    except ValueError as e:  # a NUL in the name
        why, location = str(e), f"{str(path)!r}:1:1"
    raise CompileError(f"cannot read the {what}: {why}", location)


def read_text(path: str | Path, what: str = "file", kind: str = "not a text file") -> str:
    """The same as text; `kind` is what is said of a file that is not UTF-8."""
    raw = read_file(path, what)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise CompileError(f"cannot read the {what}: {kind}", f"{path}:1:1") from None


class Unreadable(Exception):
    """Why what is there is not read."""


def read_open(file: BinaryIO, begun: bytes = b"") -> bytes:
    """What is in an open file to its end, `begun` before it. Raises `OSError` and `Unreadable`."""
    kind = os.fstat(file.fileno()).st_mode
    if stat.S_ISCHR(kind) and not file.isatty():
        if file.read(1):
            raise Unreadable("this is a device, not a file")
        return b""
    limit = LARGEST_FILE if stat.S_ISREG(kind) else LARGEST_STREAM
    size = os.fstat(file.fileno()).st_size
    parts = [begun]
    while size <= limit and (part := file.read(_PART)):
        parts.append(part)
        size = max(size, sum(map(len, parts)))
    if max(size, len(begun)) > limit:
        raise Unreadable(f"it is longer than {limit // 2**30} GiB")
    return b"".join(parts)


def _begin(pipe: int) -> bytes:
    """Wait until somebody has a named pipe open for writing; what was read of it meanwhile."""
    look = select.poll()
    look.register(pipe, 0)
    end = time.monotonic() + SECONDS_FOR_A_WRITER
    while True:
        try:
            begun = os.read(pipe, _PART)
        except BlockingIOError:  # there is a writer, who has not written yet
            return b""
        # Nothing to read is the end only of a pipe that had a writer since we opened it.
        if begun or look.poll(0):
            return begun
        if time.monotonic() > end:
            raise Unreadable(f"a pipe that nobody opened for writing in {SECONDS_FOR_A_WRITER:g} s")
        time.sleep(_POLL)
