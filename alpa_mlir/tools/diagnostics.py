"""What all commands share about errors: one form on stderr, one meaning for each exit status.

| status | meaning | stderr |
|---|---|---|
| 0 | done | remarks, `file:line:col: remark: …` |
| 1 | the program is at fault | `file:line:col: error: …`, then notes |
| 2 | wrong usage | `alpa-mlir-…: error: …` |
| 130 | Ctrl-C | nothing |
| 141 | the reader of our output went away (128 + SIGPIPE) | nothing |

MLIR's parser calls every text `-`; the commands put the file's name back when they print.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.passes.registry import PipelineError

_AGAIN = 0.02
"""Seconds until a lost Ctrl-C is repeated."""


class UsageError(Exception):
    """The command line asks for something that cannot be: exit status 2."""


def guarded(name: str, main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and return the exit status of the command `name` as the table above has it.

    A console script is `sys.exit(guarded("alpa-mlir-opt", main))`.
    """
    try:
        with interruptible():
            status = main(argv)
        sys.stdout.flush()
    except CompileError as e:
        print(e, file=sys.stderr)
        return 1
    except (UsageError, PipelineError) as e:
        print(f"{name}: error: {e} (see {name} --help)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it something that accepts the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


@contextmanager
def interruptible() -> Iterator[None]:
    """While the body runs, no Ctrl-C gets lost.

    A shell that starts us in the background (`nohup … &`) has SIGINT ignored, and Python then installs no handler:
    whoever sends the signal all the same means it.  And Python drops an exception that is raised in a finalizer or in
    a callback of its garbage collector (jax has one), and so the KeyboardInterrupt of a signal that arrives there.  It
    is then raised once more, by the alarm clock.
    """
    before = sys.unraisablehook
    alarm = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = before


def source_name(path: str) -> str:
    """The name by which messages call an input: `<stdin>` for "-"."""
    return "<stdin>" if path == "-" else path


def relocated(location: str, filename: str) -> str:
    """A location in the text that the parser calls `-` with the name of the file it came from."""
    if location in ("-", "-:0:0"):
        return f"{filename}:1:1"
    return filename + location[1:] if location.startswith("-:") else location


def in_file(error: CompileError, filename: str) -> CompileError:
    """The same error with the file's name in its location and in those of its notes."""
    notes = [replace(n, location=relocated(n.location, filename)) if isinstance(n, Remark) else n for n in error.notes]
    return CompileError(error.message, relocated(error.location, filename), notes)


def print_remarks(remarks: Iterable[Remark], filename: str) -> None:
    """Print remarks to stderr as `file:line:col: remark: …`, each once, in order."""
    for remark in dict.fromkeys(remarks):
        print(replace(remark, location=relocated(remark.location, filename)), file=sys.stderr)
