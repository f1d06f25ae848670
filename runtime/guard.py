"""Failure of one rank ends the whole job: at once, with that rank's message and a code other than zero.

A rank that raises must not reach `MPI_Finalize` or jax's shutdown barrier: both wait for ranks that wait for
it.  So a failing rank prints its message and leaves by `os._exit`; mpirun then ends the others and returns
the code.  A rank whose launcher is killed is killed with it (`PR_SET_PDEATHSIG`).  A rank that makes no
progress is ended by its watchdog, with the instruction it hangs in.  When a rank ends, collectives of its peers fail
too: such a rank waits a little before it speaks, so that the cause is said first, and mostly alone.
Ranks that cannot speak (killed, stopped) are missed by the others: see `alpa_mlir.runtime.heartbeat`.

| event | exit code |
|---|---|
| a located error in the input | 1 |
| any other exception | 1, with its traceback |
| no progress for `--timeout` seconds | 124 |
| Ctrl-C | 130 |
| SIGTERM | 143 |
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TextIO

from alpa_mlir.dialect.diagnostics import CompileError

OK, FAILED, STUCK, INTERRUPTED, TERMINATED = 0, 1, 124, 130, 143
_PR_SET_PDEATHSIG = 1
_PRECEDENCE = 1.0
"""Seconds in which mpirun ends a rank whose peer has failed; it takes about 0.4."""
_FAILING = threading.Lock()
_FAREWELLS: list[Callable[[int], None]] = []


@dataclass(frozen=True)
class Activity:
    """What a rank does, for how many seconds, and whether it waits (for a message, or for its devices)."""

    what: str
    seconds: float
    waits: bool


class Watchdog(threading.Thread):
    """Ends the process when `beat` was not called for `limit` seconds; `limit` 0 never does.

    `beat` is three attribute writes, cheap enough for every instruction.  Compiling is not an instruction: it is done
    before `watching`.  A rank that waits is not to blame: with `peers` the heartbeat judges it.
    """

    def __init__(self, rank: int, limit: float) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.rank, self.limit, self.peers = rank, limit, False
        self._what, self._since, self._waits, self._active = "starting", time.monotonic(), False, False

    def beat(self, what: str) -> None:
        """Say that the rank makes progress and what it does now."""
        self._what, self._since, self._waits = what, time.monotonic(), False

    def wait(self, what: str) -> None:
        """Say that the rank makes progress and what it waits for now."""
        self._what, self._since, self._waits = what, time.monotonic(), True

    @property
    def activity(self) -> Activity:
        """What the rank does."""
        return Activity(self._what, time.monotonic() - self._since, self._waits and self._active)

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
            now = self.activity
            if self._active and now.seconds > self.limit and not (now.waits and self.peers):
                sys.stderr.write(f"{label(self.rank)} no progress for {self.limit:g} s in: {now.what}\n")
                faulthandler.dump_traceback(file=sys.stderr)
                leave(STUCK)


def label(rank: int, host: str | None = None) -> str:
    """How messages name a rank; `host` None is this one."""
    return f"[rank {rank} on {host or socket.gethostname()}]"


def claim_end() -> None:
    """Return to the first thread that is about to end this process, and to no other one."""
    _FAILING.acquire()


def terminated(rank: int) -> None:
    """Leave because of SIGTERM, unless the process is about to end and has something else to say.

    The rank says so itself: mpirun passes on nothing that others say once a rank has ended with a code.
    """
    if _FAILING.acquire(blocking=False):
        sys.stderr.write(f"{label(rank)} ended by signal 15 (SIGTERM)\n")
        leave(TERMINATED)


class StopRequest:
    """Set by SIGTERM or SIGUSR2 (mpirun passes the second one on to its ranks): end after this step."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Take these signals."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


def at_leaving(call: Callable[[int], None]) -> None:
    """Have `call(code)` called when this process is about to end by `leave`."""
    _FAREWELLS.append(call)


def leave(code: int) -> NoReturn:
    """End this process now, without exit handlers and without MPI_Finalize."""
    sys.stdout.flush()
    sys.stderr.flush()
    for call in _FAREWELLS:
        call(code)
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
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout = _part(1, sys.stdout, nowhere)
    os.close(nowhere)


def divert_stderr(target: int) -> None:
    """Let Python's messages go where they went, and what native code writes to standard error to the file `target`."""
    if sys.stderr is not None:
        sys.stderr.flush()
        sys.stderr = _part(2, sys.stderr, target)


def _part(number: int, stream: TextIO, target: int) -> TextIO:
    """Put `target` in the place of file `number`; the stream of Python that writes where that went before."""
    own = os.fdopen(os.dup(number), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)
    os.dup2(target, number)
    return own


def guarded(rank: int, body: Callable[[], None]) -> None:
    """Run a rank's work; on any failure print it with the rank's number first and end the whole job.

    Threads of one rank may each be guarded: the first that fails speaks.
    """
    try:
        body()
    except BaseException as e:
        claim_end()
        if _is_echo(e):
            time.sleep(_PRECEDENCE)
        _fail(rank, e)


def show_crashes() -> None:
    """Print the stack on a fatal signal, and on SIGUSR1 without ending."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)


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
        sys.stderr.write(f"{label(rank)} left early with code {code}\n")
        leave(code or FAILED)
    if isinstance(error, CompileError):
        sys.stderr.write(f"{label(rank)} {error}\n")
        leave(FAILED)
    trace = "".join(traceback.format_exception(error))
    sys.stderr.write(f"{label(rank)} failed: {type(error).__name__}: {error}\n{trace}")
    leave(FAILED)
