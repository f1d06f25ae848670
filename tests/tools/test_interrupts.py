"""Ctrl-C that arrives where Python drops exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from alpa_mlir.tools.diagnostics import lost_interrupts_repeated

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
    print("still here", flush=True)
    time.sleep(60)
    return 0

sys.exit(guarded("test", main))
"""


def test_an_interrupt_of_the_garbage_collector_ends_the_command() -> None:
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], capture_output=True, text=True, timeout=50)
    assert (found.returncode, found.stdout, found.stderr) == (130, "still here\n", "")
    assert time.monotonic() - start < 30


def test_an_interrupt_of_a_finalizer_is_raised_later() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)

    with pytest.raises(KeyboardInterrupt), lost_interrupts_repeated():
        Dying()
        time.sleep(20)
