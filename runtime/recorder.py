"""When the actions of a rank ran on its devices: the measured side of a trace.

Actions are dispatched without waiting, so the host's clock around a call says nothing of the devices.  A thread looks
every 0.1 ms at what calls have made, and the moment at which it is ready is the call's finish.  A submesh runs its
programs one after the other: a program starts when it was dispatched, the one before has finished, and what it reads
is there.  A receive starts when it was posted, unless the one before was still under way.  An array must not be given
away before it was seen ready, so a program that takes over such a buffer is held back until then; nothing else
changes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from alpa_mlir.runtime import actions
from alpa_mlir.runtime.guard import guarded
from alpa_mlir.runtime.program import Program

PAUSE = 1e-4
KEPT = 20
"""The number of steps that are kept: the last ones."""


@dataclass(frozen=True)
class Span:
    """What ran on a submesh from `start` to `finish` (seconds on this rank's clock); -1 is no microbatch.

    `kind` is "run" for stage functions, else "accumulate" or "receive"; `name` is the stage function, or the kind.
    """

    mesh: str
    kind: str
    name: str
    microbatch: int
    start: float
    finish: float


@dataclass
class _Pending:
    """An action under way: where, when it was dispatched, what it waits for, what shows that it is done."""

    mesh: str
    kind: str
    name: str
    microbatch: int
    dispatched: float
    sources: tuple[_Pending, ...]
    shown: list[Any]
    finish: float | None = None


@dataclass(frozen=True)
class _Shape:
    """What the recorder must know of an action: its lane and name, slots read, made and given away."""

    mesh: str
    kind: str
    name: str
    microbatch: int
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass
class Recorder:
    """Watches the actions of one rank's program."""

    program: Program
    rank: int = 0
    progress: Callable[[], None] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pending: list[_Pending] = field(default_factory=list)
    _free: dict[tuple[str, str], float] = field(default_factory=dict)
    _makers: dict[int, _Pending] = field(default_factory=dict)
    _posted: dict[int, float] = field(default_factory=dict)
    _steps: deque[tuple[float, list[Span]]] = field(default_factory=lambda: deque(maxlen=KEPT))

    def start(self) -> None:
        """Begin to look."""
        look = partial(guarded, self.rank, self._look)
        threading.Thread(target=look, daemon=True, name="recorder").start()

    def _look(self) -> None:
        while True:
            if self._pending:
                self._poll()
            time.sleep(PAUSE)

    def begin(self) -> None:
        """A step begins now."""
        self._makers.clear()
        self._steps.append((time.perf_counter(), []))

    @property
    def steps(self) -> Sequence[tuple[float, Sequence[Span]]]:
        """The last steps: when each began, and its spans."""
        return self._steps

    def watched(self, action: actions.Action, call: Callable[[], None], slots: list[Any]) -> Callable[[], None]:
        """The call, observed."""
        if isinstance(action, actions.Expect):
            return partial(self._post, action.transfer, call)
        transfer = action.transfer if isinstance(action, actions.Take) else -1
        shape = self._shape(action)
        if shape is None:
            return call

        def observed() -> None:
            self._wait_for([slots[i] for i in shape.gives])
            dispatched = self._posted.pop(transfer, time.perf_counter())
            call()
            sources = tuple(self._makers[i] for i in shape.reads if i in self._makers)
            made = [slots[i] for i in shape.makes]
            entry = _Pending(shape.mesh, shape.kind, shape.name, shape.microbatch, dispatched, sources, made)
            self._makers |= dict.fromkeys(shape.makes, entry)
            with self._lock:
                self._pending.append(entry)

        return observed

    def _post(self, transfer: int, call: Callable[[], None]) -> None:
        self._posted[transfer] = time.perf_counter()
        call()

    def _poll(self) -> None:
        """See which actions are done."""
        with self._lock:
            # The last first: what is ready then has causes that are ready when they are looked at.
            ready = [all(array.is_ready() for array in entry.shown) for entry in reversed(self._pending)]
            busy: set[tuple[str, str]] = set()
            left = []
            for entry, done in zip(self._pending, reversed(ready), strict=True):
                lane = (entry.mesh, entry.kind if entry.kind == "receive" else "run")
                if done and lane not in busy:
                    self._done(entry, lane, time.perf_counter())
                else:
                    busy.add(lane)
                    left.append(entry)
            self._pending = left

    def idle(self) -> bool:
        """Whether all that was dispatched is done."""
        return not self._pending

    def _done(self, entry: _Pending, lane: tuple[str, str], now: float) -> None:
        ready = [source.finish for source in entry.sources if source.finish is not None]
        start = min(now, max([entry.dispatched, self._free.get(lane, 0.0), *ready]))
        entry.finish, entry.shown, entry.sources = now, [], ()
        self._free[lane] = now
        self._steps[-1][1].append(Span(entry.mesh, entry.kind, entry.name, entry.microbatch, start, now))

    def _wait_for(self, arrays: Sequence[Any]) -> None:
        """Return when no array of these is one that still has to be seen ready."""
        given = {id(array) for array in arrays}
        while self._shows(given):
            self.progress()
            time.sleep(PAUSE)

    def _shows(self, given: set[int]) -> bool:
        with self._lock:
            return any(id(array) in given for entry in self._pending for array in entry.shown)

    def _shape(self, action: actions.Action) -> _Shape | None:
        if isinstance(action, actions.Call):
            gives = tuple(action.operands[i] for i in self.program.functions[action.function].donated)
            return _Shape(
                action.mesh, "run", action.function, action.microbatch, action.operands, action.results, gives
            )
        if isinstance(action, actions.Add):
            gives = tuple(t for t, d in zip(action.totals, action.donate, strict=True) if d)
            reads = (*action.totals, *action.values)
            return _Shape(action.mesh, "accumulate", "accumulate", -1, reads, action.totals, gives)
        if isinstance(action, actions.Join):
            return _Shape(action.type.mesh, "accumulate", "stack", -1, action.parts, (action.result,), ())
        if isinstance(action, actions.Take):
            return _Shape(action.path.target.mesh, "receive", "receive", -1, (), (action.result,), ())
        return None
