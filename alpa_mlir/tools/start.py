"""Where the console scripts begin: nothing heavy is imported before Ctrl-C is provided for."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from types import FrameType
from typing import NoReturn


def _start(command: str) -> NoReturn:
    # An exception raised in the middle of jaxlib's initialisation crashes the process: leave at once instead.  The
    # entry handles the signal its own way while it works.
    signal.signal(signal.SIGINT, _leave)
    module = import_module(f"alpa_mlir.tools.{command}")
    module.entry()
    raise AssertionError("an entry exits")


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(130)


def opt() -> NoReturn:
    """`alpa-mlir-opt`."""
    _start("opt")


def plan() -> NoReturn:
    """`alpa-mlir-plan`."""
    _start("plan")


def report() -> NoReturn:
    """`alpa-mlir-report`."""
    _start("report")


def run() -> NoReturn:
    """`alpa-mlir-run`."""
    _start("run")


def export() -> NoReturn:
    """`alpa-mlir-export`."""
    _start("export")


def solve() -> NoReturn:
    """`alpa-mlir-solve`."""
    _start("solve")
