"""Every rank knows within seconds when another one is killed, stops or hangs, and says which one and where.

mpirun notices a rank that dies, though it speaks late and not of the cause; one that is stopped, hangs, or whose host
is gone it does not notice.  So the ranks watch one another over TCP: a star with rank 0 in the middle, because two
ranks can watch each other only if both live, and every rank is watched by some other.  Each end sends a beat five times
in `limit` seconds, with what it does.  Every way to leave but one has last words (`guard.leave`; a crash writes its
stack into the connection), so a connection that ends without any is that of a killed process.

What native code writes to standard error goes through the connection too, and the peer prints it a moment later, or
never where another rank has failed: jax aborts the ranks that shared a stage with that one, loudly and at once.

| what comes from a rank | what happened | exit code of the job |
|---|---|---|
| last words | it has failed, and has said why itself: the others leave silently | its own |
| a stack, and the end | a fatal signal, such as a segmentation fault | 128 + signal |
| the end | killed by signal 9: `kill -9`, or the kernel when memory is short | 137 |
| nothing for the limit | stopped, its host gone, or the network | 124 |
| nothing for six times the limit | it runs on this host, but does not let Python run | 124 |
| every rank waits for `--timeout` seconds | they wait for one another | 124 |

The thread needs Python's lock to beat: what holds it for long (parsing a large plan) is done under `quiet`.
"""

from __future__ import annotations

import faulthandler
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from alpa_mlir.runtime.guard import (
    FAILED,
    STUCK,
    Watchdog,
    at_leaving,
    claim_end,
    divert_stderr,
    guarded,
    leave,
    terminated,
)
from alpa_mlir.runtime.links import Link, Who, exit_status, link_up, state_of, this_rank

KILLED = 128 + signal.SIGKILL
BEATS = 5
"""Beats in one limit."""
NOTICE = 0.7
"""Share of the limit after which a silent rank is given up: what follows needs the rest."""
_STOPPED, _RUNS = ("T", "t"), ("R", "S", "D")
_BUSY = 6.0
"""Limits that a silent rank gets which is seen to run."""
_DEFERENCE = 0.2
"""Seconds that a rank waits where another one is to speak, or to end, first."""
_LINGER = 1.0
_HOLD = 0.3
"""Seconds until the text of another rank's native code is printed."""


class Heartbeat(threading.Thread):
    """The thread of one rank that beats, listens and judges; made by `connect`."""

    def __init__(self, me: Who, links: Sequence[Link], limit: float, watchdog: Watchdog, heeds_term: bool) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._me, self._links, self._limit, self._watchdog = me, tuple(links), limit, watchdog
        self._heeds_term = heeds_term
        self._quiet, self._over, self._said = False, False, False
        self._lock = threading.RLock()  # a signal's handler may interrupt a beat of the main thread
        self._awake, self._wake = socket.socketpair()
        for end in (self._awake, self._wake):
            end.setblocking(False)
        watchdog.peers = True

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The body may hold Python's lock for long: expect no beats meanwhile."""
        self._quiet = True
        self._beat()
        try:
            yield
        finally:
            self._quiet = False
            self._beat()

    def finish(self) -> None:
        """All ranks have done their work: watch no more."""
        self._over = True
        self.say(0)
        self._pass_on(float("inf"))

    def catch_signals(self) -> None:
        """Hear of signals at once, even where the main thread is in a long call and runs no handler."""
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """The thread."""
        guarded(self._me.rank, self._watch)

    def _watch(self) -> None:
        pause = self._limit / BEATS
        due = last = time.monotonic()
        while not self._over:
            now = time.monotonic()
            if now >= due:
                self._beat()
                due = now + pause
            held = any(link.text for link in self._links)
            self._listen(max(0.0, min(due - now, _HOLD if held else due)))
            now = time.monotonic()
            if now - last > 2 * pause:
                # This thread was stopped itself: what it has not heard meanwhile proves nothing.
                for link in self._links:
                    link.heard = now
            last = now
            self._judge(now)
            self._pass_on(now - _HOLD)

    def _beat(self) -> None:
        now = self._watchdog.activity
        with self._lock:
            for link in self._links:
                link.send(
                    {"alpa": 1, "what": now.what, "seconds": now.seconds, "waits": now.waits, "quiet": self._quiet}
                )

    def say(self, code: int, stacks: bool = False) -> None:
        """Last words, once."""
        with self._lock:
            if self._said:
                return
            self._said = True
            for link in self._links:
                link.send({"alpa": 1, "code": code, "stacks": stacks})

    def _listen(self, seconds: float) -> None:
        reading = [link.socket for link in self._links if not link.closed]
        ready, _, _ = select.select([*reading, self._awake], [], [], seconds)
        now = time.monotonic()
        for link in self._links:
            if link.socket in ready:
                link.read(now)
        if self._awake in ready and signal.SIGTERM in self._awake.recv(1 << 10) and self._heeds_term:
            terminated(self._me.rank)

    def _pass_on(self, until: float) -> None:
        """Print what native code of other ranks had to say before `until`."""
        for link in self._links:
            if link.text and not link.crashed and link.spoken < until:
                sys.stderr.write("".join(f"{link.who} {line}\n" for line in link.text))
                sys.stderr.flush()
                link.text.clear()

    def _judge(self, now: float) -> None:
        # Of ranks that go at the same time, the killed one is the cause: jax aborts those that shared a stage with it.
        for link in sorted(self._links, key=lambda x: x.crashed):
            if link.word:
                self._follow(link)
            elif link.closed and link.word is None:
                self._gone(link)
            elif link.word is None and not link.quiet:
                self._judge_silence(link, now - link.heard)
        self._judge_waiting()

    def _judge_silence(self, link: Link, seconds: float) -> None:
        """Give up a rank that is stopped or cannot be seen; one of this host that runs has more time.

        Its thread does not get its turn: the host is busy, or native code holds Python's lock.
        """
        if seconds <= NOTICE * self._limit:
            return
        state = state_of(link.who) if link.who.host == self._me.host else ""
        if state in _RUNS and seconds <= _BUSY * self._limit:
            return
        why = "it is stopped" if state in _STOPPED else "it hangs" if state else "it is stopped, or its host is gone"
        self._end(link, STUCK, f"gave no sign of life for {seconds:.1f} s: {why}")

    def _judge_waiting(self) -> None:
        """Rank 0 hears of all: where all wait for long, they wait for one another."""
        limit = self._watchdog.limit
        if self._me.rank != 0 or limit <= 0:
            return
        everyone = [(self._me, self._watchdog.activity), *((link.who, link.activity) for link in self._links)]
        if all(now.waits and now.seconds > limit for _, now in everyone):
            lines = [f"{who} no progress for {now.seconds:.0f} s in: {now.what}\n" for who, now in everyone]
            sys.stderr.write("".join(lines))
            faulthandler.dump_traceback(file=sys.stderr)
            self._leave(STUCK, stacks=True)

    def _gone(self, link: Link) -> None:
        status = exit_status(link.who, self._me.host)
        if link.crashed:
            self._end(link, 128 + status if status else FAILED, "crashed", link.text)
        if status >> 8:
            self._end(link, status >> 8, f"ended without a word, with exit status {status >> 8}")
        number = status & 127 or int(signal.SIGKILL)
        self._end(link, 128 + number, f"was killed by signal {number} ({signal.Signals(number).name})")

    def _follow(self, link: Link) -> NoReturn:
        """A rank has failed and speaks for itself; mpirun is to see it end first."""
        assert link.word is not None
        claim_end()
        if link.stacks:
            faulthandler.dump_traceback(file=sys.stderr)
        time.sleep(_DEFERENCE)
        self._leave(link.word, link.stacks)

    def _end(self, link: Link, code: int, what: str, text: Sequence[str] = ()) -> NoReturn:
        """Tell of another rank's end, and end."""
        claim_end()
        if link.who.rank == 0:
            # All others miss rank 0 at once: the first of them speaks, and mpirun ends the job before the next does.
            time.sleep(min(_LINGER, _LINGER * (self._me.rank - 1)))
        lines = [f"{link.who} {what}; last heard in: {link.activity.what}", *text]
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
        self.say(code)
        if code != STUCK:
            # mpirun knows already, ends the job within half a second, and would lose what a rank writes as it exits.
            time.sleep(_LINGER)
        leave(code)

    def _leave(self, code: int, stacks: bool = False) -> NoReturn:
        self.say(code, stacks)
        leave(code)


def connect(world: Any, limit: float, watchdog: Watchdog, heeds_term: bool = True) -> Heartbeat | None:
    """Link this rank with the others and start to beat; None without peers, or where `limit` is 0.

    All ranks call it.  `heeds_term`: leave at once on SIGTERM, whatever the main thread is doing.  Raises
    `CompileError` where rank 0 cannot be reached.
    """
    if world.size == 1 or limit <= 0:
        return None
    me = this_rank(world)
    links = link_up(world, me)
    found = Heartbeat(me, links, limit, watchdog, heeds_term)
    at_leaving(found.say)
    divert_stderr(links[0].socket.fileno())
    faulthandler.enable(file=links[0].socket.fileno())
    found.catch_signals()
    found.start()
    return found
