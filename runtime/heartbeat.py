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
import json
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime.guard import (
    FAILED,
    STUCK,
    Activity,
    Watchdog,
    at_leaving,
    claim_end,
    divert_stderr,
    guarded,
    label,
    leave,
    terminated,
)

KILLED = 128 + signal.SIGKILL
BEATS = 5
"""Beats in one limit."""
NOTICE = 0.7
"""Share of the limit after which a silent rank is given up: what follows needs the rest."""
_STOPPED, _RUNS = ("T", "t"), ("R", "S", "D")
_BUSY = 6.0
"""Limits that a silent rank gets which is seen to run."""
_CONNECT = 30.0
_DEFERENCE = 0.2
"""Seconds that a rank waits where another one is to speak, or to end, first."""
_LINGER = 1.0
_HOLD = 0.3
"""Seconds until the text of another rank's native code is printed."""
_CRASH, _MESSAGE = b"Fatal Python error", b'{"alpa": '


@dataclass(frozen=True)
class Who:
    """A rank's process; `born` tells it from a later process of the same number."""

    rank: int
    host: str
    pid: int
    born: str

    def __str__(self) -> str:
        return label(self.rank, self.host)


@dataclass
class _Link:
    """A connection to another rank and what was last heard from it; `word` is the code in its last words,
    `stacks` whether it wants the others' stacks shown; `text` is from native code, the last of it `spoken` then."""

    who: Who
    socket: socket.socket
    heard: float
    activity: Activity = field(default_factory=lambda: Activity("starting", 0.0, False))
    quiet: bool = False
    word: int | None = None
    stacks: bool = False
    closed: bool = False
    unread: bytes = b""
    text: list[str] = field(default_factory=list)
    spoken: float = 0.0
    crashed: bool = False

    def send(self, message: dict[str, Any]) -> None:
        """Say something; a peer that cannot hear it is missed when it is silent itself."""
        try:
            self.socket.send(b"\n" + json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def read(self, now: float) -> None:
        """Take in what has come."""
        try:
            got = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            self.closed = True
            return
        self.heard = now
        *lines, self.unread = (self.unread + got).split(b"\n")
        for line in lines:
            if line.startswith(_MESSAGE):
                self._take(json.loads(line))
            elif line:
                self.crashed = self.crashed or line.startswith(_CRASH)
                self.text.append(line.decode(errors="replace"))
                self.spoken = now

    def _take(self, message: dict[str, Any]) -> None:
        if "code" in message:
            self.word, self.stacks = int(message["code"]), bool(message["stacks"])
        else:
            self.activity = Activity(message["what"], message["seconds"], message["waits"])
            self.quiet = message["quiet"]


class Heartbeat(threading.Thread):
    """The thread of one rank that beats, listens and judges; made by `connect`."""

    def __init__(self, me: Who, links: Sequence[_Link], limit: float, watchdog: Watchdog, heeds_term: bool) -> None:
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

    def _judge_silence(self, link: _Link, seconds: float) -> None:
        """Give up a rank that is stopped or cannot be seen; one of this host that runs has more time.

        Its thread does not get its turn: the host is busy, or native code holds Python's lock.
        """
        if seconds <= NOTICE * self._limit:
            return
        state = _state(link.who) if link.who.host == self._me.host else ""
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

    def _gone(self, link: _Link) -> None:
        status = _exit_status(link.who, self._me.host)
        if link.crashed:
            self._end(link, 128 + status if status else FAILED, "crashed", link.text)
        if status >> 8:
            self._end(link, status >> 8, f"ended without a word, with exit status {status >> 8}")
        number = status & 127 or int(signal.SIGKILL)
        self._end(link, 128 + number, f"was killed by signal {number} ({signal.Signals(number).name})")

    def _follow(self, link: _Link) -> NoReturn:
        """A rank has failed and speaks for itself; mpirun is to see it end first."""
        assert link.word is not None
        claim_end()
        if link.stacks:
            faulthandler.dump_traceback(file=sys.stderr)
        time.sleep(_DEFERENCE)
        self._leave(link.word, link.stacks)

    def _end(self, link: _Link, code: int, what: str, text: Sequence[str] = ()) -> NoReturn:
        """Tell of another rank's end, and end."""
        claim_end()
        if link.who.rank == 0:
            # All others miss rank 0 at once: the first of them speaks.
            time.sleep(min(1.0, _DEFERENCE * (self._me.rank - 1)))
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
    me = Who(world.rank, socket.gethostname(), os.getpid(), _born("self"))
    links = _gather_links(world, me) if me.rank == 0 else [_join(world, me)]
    found = Heartbeat(me, links, limit, watchdog, heeds_term)
    at_leaving(found.say)
    divert_stderr(links[0].socket.fileno())
    faulthandler.enable(file=links[0].socket.fileno())
    found.catch_signals()
    found.start()
    return found


def _gather_links(world: Any, me: Who) -> list[_Link]:
    """Rank 0: where it listens, told to all; then a link from each."""
    token = secrets.token_hex(16)
    with socket.create_server(("", 0), backlog=world.size) as server:
        server.settimeout(_CONNECT)
        world.bcast(
            (token, _addresses(), server.getsockname()[1], Who(0, socket.gethostname(), os.getpid(), _born("self")))
        )
        links: list[_Link] = []
        while len(links) < world.size - 1:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise CompileError(_unreachable(world.size - 1 - len(links))) from None
            said = _hello(connection)
            if said.pop("token", None) == token:
                links.append(_ready(Who(**said), connection))
    return sorted(links, key=lambda link: link.who.rank)


def _hello(connection: socket.socket) -> dict[str, Any]:
    """The first line of a connection; empty from a stranger."""
    connection.settimeout(_CONNECT)
    line = b""
    try:
        while not line.endswith(b"\n") and (byte := connection.recv(1)):
            line += byte  # and not a byte more: beats follow
        said = json.loads(line)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _join(world: Any, me: Who) -> _Link:
    token, addresses, port, hub = world.bcast(None)
    for host in ["127.0.0.1"] if hub.host == me.host else addresses:
        try:
            connection = socket.create_connection((host, port), timeout=5.0)
        except OSError:
            continue
        hello = {"token": token, "rank": me.rank, "host": me.host, "pid": me.pid, "born": me.born}
        connection.sendall(json.dumps(hello).encode() + b"\n")
        return _ready(hub, connection)
    raise CompileError(f"rank 0 on {hub.host} cannot be reached at {', '.join(addresses)}: {_ADVICE}")


_ADVICE = "heartbeats need TCP between the hosts; --heartbeat 0 does without"


def _unreachable(count: int) -> str:
    return f"{count} ranks did not connect to rank 0 within {_CONNECT:g} s: {_ADVICE}"


def _ready(who: Who, connection: socket.socket) -> _Link:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Link(who, connection, time.monotonic())


def _addresses() -> list[str]:
    """This host's addresses as others may know it: its name, and what it resolves to."""
    name = socket.gethostname()
    found = [name]
    try:
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET)]
    except OSError:
        return found
    return list(dict.fromkeys(a for a in found if not a.startswith("127.")))


def _born(pid: int | str) -> str:
    """When a process of this host began, in the kernel's clock ticks; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _state(who: Who) -> str:
    """The state of a process of this host as the kernel names it; "X" where it is gone."""
    try:
        fields = Path(f"/proc/{who.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X"
    return fields[0] if fields[19] == who.born else "X"


def _exit_status(who: Who, host: str) -> int:
    """What a process that just went away will tell its parent, if it can still be seen; else 0."""
    if who.host != host:
        return 0
    try:
        fields = Path(f"/proc/{who.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[-1]) if fields[19] == who.born else 0
