"""Ranks that are stopped before they know of one another, or when they do no longer, are missed all the same.

Until the ranks are linked (`alpa_mlir.runtime.heartbeat`) they wait in MPI_Init, which holds Python's lock: no thread
of theirs could look for one that is stopped. So each has a small process beside it that does, and ends with the link
or with the rank. It sees the ranks of its own host, which have the same parent. The one beside the lowest rank that
runs tells of a stopped one and kills it; then mpirun ends the job, with status 137. Where all are stopped
(Ctrl-Z of the job) nobody is missed. Another one watches while the ranks part: MPI_Finalize waits for all of them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
LOOKS = 5
"""Looks in one limit."""
NOTICE = 0.7
"""Share of the limit after which a stopped rank is given up, as with the heartbeat."""


class Sentry:
    """The process beside this one; `limit` seconds may pass, 0: there is none; `when` is what the ranks do."""

    def __init__(self, limit: float, when: str = "started") -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(limit), when]
        # Python's standard error: what native code writes there may go elsewhere by now.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=sys.stderr) if limit > 0 else None

    def end(self) -> None:
        """The ranks watch one another from now on."""
        if self._process is not None:
            self._process.communicate()


def stopped_ranks(pid: int) -> tuple[dict[int, int], bool]:
    """The stopped ranks beside a process, by rank their pids, and whether the process is the lowest that runs."""
    parent = _state(pid)[1]
    beside = {int(p.name): _state(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    ranks = {_rank(p): (p, state) for p, (state, above) in beside.items() if above == parent and _rank(p) >= 0}
    stopped = {rank: p for rank, (p, state) in ranks.items() if state in ("T", "t")}
    running = [p for rank, (p, _) in sorted(ranks.items()) if rank not in stopped]
    return stopped, running[:1] == [pid]


def _state(pid: int) -> tuple[str, int]:
    """Letter and parent of a process; none where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", -1
    return fields[0], int(fields[1])


def _rank(pid: int) -> int:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return -1
    found = dict(e.partition(b"=")[::2] for e in entries)
    return next((int(found[n.encode()]) for n in RANK_VARIABLES if n.encode() in found), -1)


def watch(pid: int, limit: float, when: str) -> None:
    """Look until standard input ends."""
    since: dict[int, float] = {}
    while not select.select([sys.stdin], [], [], limit / LOOKS)[0]:
        now = time.monotonic()
        stopped, lowest = stopped_ranks(pid)
        since = {rank: since.get(rank, now) for rank in stopped}
        for rank, first in since.items():
            if lowest and now - first > NOTICE * limit:
                where = f"[rank {rank} on {socket.gethostname()}]"
                print(f"{where} was stopped for {now - first:.1f} s while it {when}: ended", file=sys.stderr)
                os.kill(stopped[rank], signal.SIGKILL)
                return


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
