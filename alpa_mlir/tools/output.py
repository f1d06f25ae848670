"""Write a command's result: all of it or nothing.

A file is written beside its final name and renamed over it, so that no reader ever sees half of it and
an error leaves what was there before.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alpa_mlir.dialect.diagnostics import CompileError


def write_output(path: str, content: bytes) -> None:
    """Write `content` to the file `path`, or to standard output for "-".

    Raises `CompileError` at the path where it cannot be written. Devices and pipes such as /dev/stdout are
    written directly.
    """
    write_outputs([(path, content)])


def write_outputs(files: Sequence[tuple[str, bytes]]) -> None:
    """Write several results, each as `write_output` does: no file is there before all could be written."""
    ready: list[tuple[str, str, Path]] = []
    streams = [(path, content) for path, content in files if _is_stream(path)]
    try:
        for path, content in files:
            if not _is_stream(path):
                target = Path(path).resolve()
                with _located(path):
                    ready.append((path, _beside(target, content), target))
        for path, content in streams:
            with _located(path):
                _write_stream(path, content)
        while ready:
            path, temporary, target = ready[0]
            with _located(path):
                os.replace(temporary, target)
            del ready[0]
    finally:
        for _, temporary, _ in ready:
            os.unlink(temporary)


@contextmanager
def _located(path: str) -> Iterator[None]:
    """An operating system's refusal as an error at the path; a reader that went away is no error of the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise CompileError(f"cannot write the file: {e.strerror or e}", f"{path}:1:1") from None
    except ValueError as e:  # a NUL in the name
        raise CompileError(f"cannot write the file: {e}", f"{path!r}:1:1") from None


def _is_stream(path: str) -> bool:
    """Standard output, a device, a pipe."""
    return path == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def _write_stream(path: str, content: bytes) -> None:
    if path != "-":
        Path(path).write_bytes(content)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _beside(target: Path, content: bytes) -> str:
    """A temporary file with the content, beside `target` and with its mode; its name."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
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
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary
