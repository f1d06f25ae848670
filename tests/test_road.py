"""The whole road through the commands: export, plan, run under mpirun, equal to one device.

Each case is what a user types. Models are the exporter's small defaults or smaller; the run under mpirun compares
three steps with the original program on one device and exits 1 above the tolerance, and the run in one process must
give what the ranks gave. A plan is used by one test alone, so that workers of pytest-xdist make none twice. XLA
compiles without optimisations: half of the seconds of these tests are its compiler's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

BIN = Path(sys.executable).parent
MODELS = {
    "gpt": ["--layers", "2", "--hidden", "256"],
    "mlp": [],
    "moe": ["--layers", "2"],
    "wide_resnet": ["--depth", "14"],
}
STATISTICS = {"wide_resnet": ["--layers", "4", "--allow-per-microbatch-statistics"]}
KINDS = {
    "interleaved": ["--stages", "4", "--schedule", "interleaved", "--microbatches", "4", "--remat", "none"],
    "eager-1f1b": ["--stages", "2", "--schedule", "eager-1f1b", "--microbatches", "8"],
    "zero-bubble": ["--stages", "2", "--schedule", "zero-bubble", "--microbatches", "4", "--remat", "full"],
}
SHAPES = {
    "stages": ["--stages", "2", "--microbatches", "4"],
    "2x2": ["--mesh", "2x2", "--microbatches", "1", "--constrain", "x=data; y=tensor"],
    "1x4": ["--mesh", "1x4", "--microbatches", "1"],
}
CASES = [
    *product(MODELS, ["stages"]),
    *product(["gpt", "mlp"], ["2x2"]),
    *product(["moe", "wide_resnet"], ["1x4"]),
]
"""Collectives along each axis of a mesh, and over all devices: plans free to choose on 2x2 have those of 1x4."""


def call(*words: str | Path, limit: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run one command in its own session; on a time-out the whole session is ended."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    environment |= {"PRTE_MCA_hwloc_default_binding_policy": "none", "OMPI_MCA_btl": "^ofi"}
    environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
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


def run(folder: Path, name: str, shape: str, launch: list[str | Path], options: list[str | Path]) -> str:
    return succeed(*launch, plan(folder, name, shape), "--steps", "3", *options)


def exact_or_not(name: str, shape: str) -> list[str]:
    """Batch statistics of a microbatch differ from those of the batch: that plan is compared loosely."""
    return ["--tolerance", "1.0"] if name in STATISTICS and shape == "stages" else []


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_four_ranks_and_one_process(folder: Path, name: str, shape: str, tmp_path: Path) -> None:
    ranks, alone = tmp_path / "ranks.npz", tmp_path / "alone.npz"
    reference = ["--reference", model(folder, name), *exact_or_not(name, shape)]
    mpirun = [BIN / "mpirun", "-n", "4", BIN / "alpa-mlir-run"]
    assert "difference" in run(folder, name, shape, mpirun, ["--outputs", ranks, *reference])
    run(folder, name, shape, [BIN / "alpa-mlir-run", "--local"], ["--outputs", alone])
    assert largest_difference(ranks, alone) < 1e-4


def largest_difference(first: Path, second: Path) -> float:
    """The largest difference of any result, relative to its largest magnitude."""
    a, b = np.load(first), np.load(second)
    assert a.files == b.files and len(a.files) > 1
    return max(float(np.abs(a[n] - b[n]).max() / max(np.abs(b[n]).max(), 1e-30)) for n in a.files)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules(folder: Path, kind: str) -> None:
    """Stages that share submeshes; a backward pass in two parts with the forward pass in it again."""
    reference = ["--reference", model(folder, "mlp")]
    assert "difference" in run(folder, "mlp", kind, [BIN / "mpirun", "-n", "4", BIN / "alpa-mlir-run"], reference)


def test_two_ranks_with_two_devices_each(folder: Path) -> None:
    reference = ["--reference", model(folder, "mlp")]
    assert "difference" in run(folder, "mlp", "stages", [BIN / "mpirun", "-n", "2", BIN / "alpa-mlir-run"], reference)


def test_the_command_starts_mpirun_itself(folder: Path) -> None:
    reference = ["--reference", model(folder, "mlp")]
    assert "difference" in run(folder, "mlp", "stages", [BIN / "alpa-mlir-run", "-n", "4"], reference)
