"""Failure of one rank ends the whole job: at once, with that rank's message and a code other than zero.

A rank that raises must not reach `MPI_Finalize` or jax's shutdown barrier: both wait for ranks that wait for
it.  So a failing rank prints its message and leaves by `os._exit`; mpirun then ends the others and returns
the code.  A rank whose launcher is killed is killed with it (`PR_SET_PDEATHSIG`).  A rank that makes no
progress is ended by its watchdog, with the instruction it hangs in.

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


def guarded(rank: int, body: Callable[[], None]) -> None:
    """Run a rank's work; on any failure print it with the rank's number first and end the whole job."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    try:
        body()
    except CompileError as e:
        sys.stderr.write(f"[rank {rank}] {e}\n")
        leave(FAILED)
    except KeyboardInterrupt:
        leave(INTERRUPTED)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else FAILED
        sys.stderr.write(f"[rank {rank}] left early with code {code}\n")
        leave(code or FAILED)
    except BaseException as e:
        sys.stderr.write(f"[rank {rank}] failed: {type(e).__name__}: {e}\n{traceback.format_exc()}")
        leave(FAILED)
