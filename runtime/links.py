"""The connections by which ranks watch one another, and what this host's kernel tells of their processes.

A star over TCP: rank 0 listens and tells all where, the others connect.  A token that came by MPI keeps strangers out.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime.guard import Activity, label

_CONNECT = 30.0
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
class Link:
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


def this_rank(world: Any) -> Who:
    """The process that asks."""
    return Who(world.rank, socket.gethostname(), os.getpid(), _born("self"))


def link_up(world: Any, me: Who) -> list[Link]:
    """This rank's connections: rank 0's with all others, theirs with rank 0.  All ranks call it.

    Raises `CompileError` where rank 0 cannot be reached.
    """
    return _gather_links(world, me) if me.rank == 0 else [_join(world, me)]


def _gather_links(world: Any, me: Who) -> list[Link]:
    """Rank 0: where it listens, told to all; then a link from each."""
    token = secrets.token_hex(16)
    with socket.create_server(("", 0), backlog=world.size) as server:
        server.settimeout(_CONNECT)
        world.bcast((token, _addresses(), server.getsockname()[1], me))
        links: list[Link] = []
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


def _join(world: Any, me: Who) -> Link:
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


def _ready(who: Who, connection: socket.socket) -> Link:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(who, connection, time.monotonic())


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


def state_of(who: Who) -> str:
    """The state of a process of this host as the kernel names it; "X" where it is gone."""
    try:
        fields = Path(f"/proc/{who.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X"
    return fields[0] if fields[19] == who.born else "X"


def exit_status(who: Who, host: str) -> int:
    """What a process that just went away will tell its parent, if it can still be seen; else 0."""
    if who.host != host:
        return 0
    try:
        fields = Path(f"/proc/{who.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[-1]) if fields[19] == who.born else 0
