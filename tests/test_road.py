"""The whole road through the commands: export, plan, run under mpirun, equal to one device.

Each case is what a user types. Models are the exporter's small defaults; every run compares three
steps with the original program on one device and exits 1 above the tolerance.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
MODELS = {
    "gpt": ["--layers", "4", "--hidden", "256"],
    "mlp": [],
    "moe": [],
    "wide_resnet": [],
}
STATISTICS = {"wide_resnet": ["--allow-per-microbatch-statistics"]}
KINDS = {
    "interleaved": ["--stages", "4", "--schedule", "interleaved", "--microbatches", "4", "--remat", "none"],
    "zero-bubble": ["--stages", "2", "--schedule", "zero-bubble", "--microbatches", "4", "--remat", "full"],
}
SHAPES = {
    "stages": ["--stages", "2", "--microbatches", "4"],
    "2x2": ["--mesh", "2x2", "--microbatches", "1"],
    "1x4": ["--mesh", "1x4", "--microbatches", "1"],
}


def call(*words: str | Path, limit: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run one command in its own session; on a time-out the whole session is ended."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    environment |= {"PRTE_MCA_hwloc_default_binding_policy": "none", "OMPI_MCA_btl": "^ofi"}
    environment.pop("XLA_FLAGS", None)
    child = subprocess.Popen(
        [str(w) for w in words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGTERM)
        out, err = child.communicate(timeout=10)
        pytest.fail(f"{words} did not end within {limit} s\n{out}\n{err}")
    return subprocess.CompletedProcess(list(map(str, words)), child.returncode, out, err)


def succeed(*words: str | Path) -> str:
    """The standard output of a command that must exit 0."""
    done = call(*words)
    assert done.returncode == 0, f"{done.args} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("road")


def model(folder: Path, name: str) -> Path:
    path = folder / f"{name}.mlir"
    if not path.exists():
        succeed(BIN / "alpa-mlir-export", name, *MODELS[name], "-o", path)
    return path


def plan(folder: Path, name: str, shape: str) -> Path:
    path = folder / f"{name}_{shape}.plan.mlir"
    if not path.exists():
        options = [*(SHAPES | KINDS)[shape], *STATISTICS.get(name, [])]
        cluster = ["--cluster", "cpu", "--devices-per-node", "4"]
        succeed(BIN / "alpa-mlir-plan", model(folder, name), *cluster, *options, "-o", path)
    return path


def run(folder: Path, name: str, shape: str, launch: list[str | Path], tolerance: list[str]) -> None:
    words = [*launch, plan(folder, name, shape), "--reference", model(folder, name), "--steps", "3", *tolerance]
    out = succeed(*words)
    assert "difference" in out


def exact_or_not(name: str, shape: str) -> list[str]:
    """Batch statistics of a microbatch differ from those of the batch: that plan is compared loosely."""
    return ["--tolerance", "1.0"] if name in STATISTICS and shape == "stages" else []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_four_ranks(folder: Path, name: str, shape: str) -> None:
    launch = [BIN / "mpirun", "-n", "4", BIN / "alpa-mlir-run"]
    run(folder, name, shape, launch, exact_or_not(name, shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_one_process(folder: Path, name: str, shape: str) -> None:
    run(folder, name, shape, [BIN / "alpa-mlir-run", "--local"], exact_or_not(name, shape))


@pytest.mark.parametrize("kind", KINDS)
def test_schedules(folder: Path, kind: str) -> None:
    """Stages that share submeshes; a backward pass in two parts with the forward pass in it again."""
    run(folder, "mlp", kind, [BIN / "mpirun", "-n", "4", BIN / "alpa-mlir-run"], [])


def test_two_ranks_with_two_devices_each(folder: Path) -> None:
    run(folder, "mlp", "stages", [BIN / "mpirun", "-n", "2", BIN / "alpa-mlir-run"], [])


def test_the_command_starts_mpirun_itself(folder: Path) -> None:
    run(folder, "mlp", "stages", [BIN / "alpa-mlir-run", "-n", "4"], [])
