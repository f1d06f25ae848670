"""Ctrl-C that arrives where Python drops exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from alpa_mlir.tools.diagnostics import interruptible

IN_A_CALLBACK = """
import gc, os, signal, sys, time
from alpa_mlir.tools.diagnostics import guarded

def callback(phase, _):
    if phase == "start" and callback in gc.callbacks:
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

def main(argv):
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(60)
    return 0

sys.exit(guarded("test", main))
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_of_the_garbage_collector_ends_the_command(ignored: bool) -> None:
    """Also in a job that a shell has put in the background with SIGINT ignored."""
    command = [sys.executable, "-c", IN_A_CALLBACK]
    if ignored:
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    start = time.monotonic()
    found = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (found.returncode, found.stderr) == (130, "")
    assert time.monotonic() - start < 30


def test_an_interrupt_of_a_finalizer_is_raised_later() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)

    with pytest.raises(KeyboardInterrupt), interruptible():
        Dying()
        time.sleep(20)
