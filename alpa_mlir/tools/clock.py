"""The phases of a command with their seconds, printed to stderr while it works."""

from __future__ import annotations

import os
import re
import sys
import time

LINE = re.compile(r" *(?P<wall>\d+\.\d+) s *(?P<cpu>\d+\.\d+) CPU s  (?P<text>.*)")
"""What `Clock` prints of a phase."""


class Clock:
    """One line per phase: seconds that passed, seconds of CPU (all threads and ended processes), and what was done."""

    def __init__(self, printing: bool) -> None:
        self.printing = printing
        self.text = ""
        self.wall = self.cpu = 0.0

    def begin(self, text: str) -> None:
        """A phase begins; the one before ends."""
        self.end()
        self.text, self.wall, self.cpu = text, time.perf_counter(), _cpu()

    def end(self) -> None:
        """The phase ends."""
        if self.text and self.printing:
            wall, cpu = time.perf_counter() - self.wall, _cpu() - self.cpu
            print(f"{wall:8.2f} s {cpu:8.2f} CPU s  {self.text}", file=sys.stderr)
        self.text = ""


def _cpu() -> float:
    """Seconds of CPU of this process and of those that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
