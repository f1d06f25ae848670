"""Whatever a user names as a file is read whole, or refused soon with one error at it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alpa_mlir.dialect import reading
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.reading import read_file, read_text
from alpa_mlir.runtime.inputs import check_writable
from alpa_mlir.tools import solve
from alpa_mlir.tools.diagnostics import guarded

MODULES = {"opt": [], "plan": ["-o", "x.mlir"], "solve": [], "report": ["-o", "x.html"], "run": ["--local"]}


def command(name: str, *words: str) -> list[str]:
    return [str(Path(sys.executable).parent / f"alpa-mlir-{name}"), *words, *MODULES[name]]


@pytest.mark.parametrize("name", MODULES)
def test_every_command_refuses_an_endless_device(name: str) -> None:
    done = subprocess.run(command(name, "/dev/zero"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("/dev/zero:1:1: error: cannot read the ")
    assert done.stderr.endswith(": this is a device, not a file\n")


def test_standard_input_may_be_endless_too() -> None:
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(command("opt", "-"), stdin=endless, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("error:")) == (1, 1)
    assert done.stderr.startswith("<stdin>:1:1: error: ")


def refusal(path: str | Path) -> str:
    with pytest.raises(CompileError) as caught:
        read_file(path)
    return str(caught.value)


def test_a_file_longer_than_memory_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "long.mlir"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert refusal(path) == f"{path}:1:1: error: cannot read the file: it is longer than 4 GiB"


def test_a_folder_and_nothing_are_refused_and_the_null_device_is_empty(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("cannot read the file: Is a directory")
    assert refusal(tmp_path / "none").endswith("No such file or directory")
    assert "error: cannot read the file: " in refusal("a\0b")
    assert read_file("/dev/null") == b""
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(CompileError, match="cannot read the plan: no text"):
        read_text(tmp_path / "bytes", "plan", "no text")


def test_a_pipe_is_read_to_its_end_and_not_awaited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setattr(reading, "SECONDS_FOR_A_WRITER", 0.3)
    assert refusal(path).endswith("a pipe that nobody opened for writing in 0.3 s")

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            time.sleep(0.5)  # longer than a writer is awaited
            for _ in range(3):
                pipe.write(b"x" * 70_000)
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_file(path) == b"x" * 210_000
    writer.join()
    monkeypatch.setattr(reading, "LARGEST_STREAM", 1000)
    writer = threading.Thread(target=lambda: path.write_bytes(b"x" * 2000))
    writer.start()
    assert "it is longer than" in refusal(path)
    writer.join()


def test_a_small_archive_of_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * 10_000))
    monkeypatch.setattr(solve, "LARGEST_FILE", 5_000)
    assert guarded("alpa-mlir-solve", solve.main, [str(path)]) == 1
    assert "when decompressed" in capsys.readouterr().err


def test_a_pipe_to_write_to_is_not_opened_to_see_whether_it_can_be(tmp_path: Path) -> None:
    """Opening waits for a reader, and closing would be the end of the file for that one."""
    os.mkfifo(tmp_path / "pipe")
    done = threading.Thread(target=check_writable, args=(str(tmp_path / "pipe"), "outputs"), daemon=True)
    done.start()
    done.join(5)
    assert not done.is_alive()
