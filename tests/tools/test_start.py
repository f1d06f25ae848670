"""Ctrl-C while a command is still loading its libraries."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def loads_jaxlib(pid: int) -> bool:
    """Whether a process has begun to load its libraries."""
    return "jaxlib" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("command", ["opt", "plan", "export", "solve"])
def test_ctrl_c_while_loading(command):
    child = subprocess.Popen(
        [BIN / f"alpa-mlir-{command}", "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while child.poll() is None and not loads_jaxlib(child.pid):
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert "Traceback" not in err
    assert child.returncode in (0, 130)


@pytest.mark.parametrize("command", ["opt", "plan", "run", "export", "solve"])
def test_help_is_there(command):
    found = subprocess.run([BIN / f"alpa-mlir-{command}", "--help"], capture_output=True, text=True, check=True)
    assert f"alpa-mlir-{command}" in found.stdout
