"""Failure of one rank ends the whole job: at once, with that rank's message and a code other than zero.

A rank that raises must not reach `MPI_Finalize` or jax's shutdown barrier: both wait for ranks that wait for
it.  So a failing rank prints its message and leaves by `os._exit`; mpirun then ends the others and returns
the code.  A rank whose launcher is killed is killed with it (`PR_SET_PDEATHSIG`).  A rank that makes no
progress is ended by its watchdog, with the instruction it hangs in.  When a rank ends, collectives of its peers fail
too: such a rank waits a little before it speaks, so that the cause is said first, and mostly alone.

| event | exit code |
|---|---|
| a located error in the input | 1 |
| any other exception | 1, with its traceback |
| no progress for `--timeout` seconds | 124 |
| Ctrl-C | 130 |
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from alpa_mlir.dialect.diagnostics import CompileError

OK, FAILED, STUCK, INTERRUPTED = 0, 1, 124, 130
_PR_SET_PDEATHSIG = 1
_PRECEDENCE = 1.0
"""Seconds in which mpirun ends a rank whose peer has failed; it takes about 0.4."""
_FAILING = threading.Lock()


class Watchdog(threading.Thread):
    """Ends the process when `beat` was not called for `limit` seconds; `limit` 0 never does.

    `beat` is two attribute writes, cheap enough for every instruction.  Compiling is not an instruction: it runs
    under `paused`.
    """

    def __init__(self, rank: int, limit: float) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.rank, self.limit = rank, limit
        self._what, self._since, self._active = "starting", time.monotonic(), False

    def beat(self, what: str) -> None:
        """Say that the rank makes progress and what it does now."""
        self._what, self._since = what, time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch over the body."""
        if self.limit > 0 and not self.is_alive():
            self.start()
        self.beat("starting")
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def run(self) -> None:
        """The thread: look every so often."""
        while True:
            time.sleep(min(1.0, self.limit / 10))
            if self._active and time.monotonic() - self._since > self.limit:
                sys.stderr.write(f"[rank {self.rank}] no progress for {self.limit:g} s in: {self._what}\n")
                faulthandler.dump_traceback(file=2)
                leave(STUCK)


def leave(code: int) -> NoReturn:
    """End this process now, without exit handlers and without MPI_Finalize."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_stdout() -> None:
    """Leave standard output to Python: native code (gloo, of every group of ranks) has no results to write there."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = own


def guarded(rank: int, body: Callable[[], None]) -> None:
    """Run a rank's work; on any failure print it with the rank's number first and end the whole job.

    Threads of one rank may each be guarded: the first that fails speaks.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    try:
        body()
    except BaseException as e:
        _FAILING.acquire()  # for good: the process ends
        if _is_echo(e):
            time.sleep(_PRECEDENCE)
        _fail(rank, e)


def _is_echo(error: BaseException) -> bool:
    """Whether a collective between ranks failed, as it does when a peer of this rank goes away.

    The text must tell: jax raises its own error or ValueError, by where the failure surfaces.
    """
    return "Gloo " in str(error) and not isinstance(error, CompileError)


def _fail(rank: int, error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        leave(INTERRUPTED)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else FAILED
        sys.stderr.write(f"[rank {rank}] left early with code {code}\n")
        leave(code or FAILED)
    if isinstance(error, CompileError):
        sys.stderr.write(f"[rank {rank}] {error}\n")
        leave(FAILED)
    trace = "".join(traceback.format_exception(error))
    sys.stderr.write(f"[rank {rank}] failed: {type(error).__name__}: {error}\n{trace}")
    leave(FAILED)
