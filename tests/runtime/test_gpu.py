"""What needs a GPU; skipped, with the reason, where there is none.

Several ranks on one GPU exchange values by NCCL where each calls itself a host of its own (NCCL_HOSTID): the messages
then go through sockets, but all of our code and of NCCL's calls is that of several GPUs.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlp_plan
import numpy as np
import pytest
import ranks

from alpa_mlir.runtime.launch import find_mpirun
from alpa_mlir.runtime.platform import PLUGINS, visible_gpus
from alpa_mlir.runtime.transport.gpu import Gpu

GPUS = visible_gpus()
READY = isinstance(GPUS, int) and find_spec("cupy") is not None and any(find_spec(name) for name in PLUGINS)
WHY = GPUS if isinstance(GPUS, str) else f"{GPUS} GPUs, or CuPy or jax's CUDA plugin is not installed"
ROOT = Path(__file__).parents[2]


def needs_gpus(count: int) -> pytest.MarkDecorator:
    """Skip where there are fewer, and say what there is."""
    there = GPUS if READY and isinstance(GPUS, int) else 0
    return pytest.mark.skipif(there < count, reason=f"needs {count} GPUs: {WHY}")


def finished(command: list[object], **variables: str) -> subprocess.CompletedProcess[str]:
    """A command run in a plain environment, killed at the limit."""
    paths = f"{ROOT}:{Path(__file__).parent}"
    return subprocess.run(
        [str(word) for word in command],
        env={**ranks.environment(), "PYTHONPATH": paths, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ranks.LIMIT,
        check=False,
    )


def under_mpirun(count: int, command: list[object]) -> subprocess.CompletedProcess[str]:
    """So many ranks that all see the first GPU alone, each a host of its own to NCCL."""
    shell = 'NCCL_HOSTID=rank-$OMPI_COMM_WORLD_RANK exec "$0" "$@"'
    return finished(
        [find_mpirun(), "-n", count, "sh", "-c", shell, sys.executable, *command],
        CUDA_VISIBLE_DEVICES="0",
        NCCL_SOCKET_IFNAME="lo",
    )


class First:
    """As much of jax's first GPU as the driver asks for."""

    local_hardware_id = 0


@needs_gpus(1)
def test_a_gpu_sends_to_itself_in_a_group() -> None:
    """What the driver asks of CuPy and NCCL: streams, events, strided copies, a group."""
    import cupy
    from cupy.cuda import nccl

    gpu = Gpu(cupy, nccl, {0: First()})
    end = gpu.communicators(1, gpu.unique_id(), {0: 0})[0]
    with gpu.at(0), end.stream:
        source, target = cupy.arange(64, dtype=np.uint8).reshape(8, 8)[:, 2:4], cupy.zeros((8, 2), np.uint8)
        packed = cupy.ascontiguousarray(source)
    with gpu.group():
        gpu.send(end, packed.data.ptr, packed.nbytes, 0)
        gpu.receive(end, target.data.ptr, target.nbytes, 0)
    done = gpu.event(end.stream)
    end.stream.synchronize()
    assert done()
    np.testing.assert_array_equal(cupy.asnumpy(target), np.arange(64).reshape(8, 8)[:, 2:4])


@needs_gpus(1)
@pytest.mark.parametrize("check", ["boxes", "itself", "steps"])
def test_values_on_a_gpu(check: str) -> None:
    found = finished([sys.executable, Path(__file__).with_name("on_gpu.py"), check], CUDA_VISIBLE_DEVICES="0")
    assert found.returncode == 0, found.stderr


@needs_gpus(1)
def test_every_resharding_of_eight_ranks_on_one_gpu() -> None:
    found = under_mpirun(8, [Path(__file__).with_name("on_gpu.py"), "reshard"])
    assert found.returncode == 0, found.stderr


def trained(stages: Any, folder: Path) -> tuple[list[object], Path, list[np.ndarray]]:
    """A plan's options, its outputs' file, and what they should be."""
    plan, inputs, outputs = (folder / name for name in ("plan.mlir", "in.npz", "out.npz"))
    plan.write_text(mlp_plan.plan_text(2, stages))
    arguments = mlp_plan.arguments()
    np.savez(inputs, **{f"arg{i}": v for i, v in enumerate(arguments)})
    options = [plan, "--platform", "cuda", "--inputs", inputs, "--outputs", outputs, "--steps", 3, "--timeout", 60]
    return options, outputs, mlp_plan.reference(arguments, 3, 2)


def check(outputs: Path, expected: list[np.ndarray]) -> None:
    for i, value in enumerate(expected):
        np.testing.assert_allclose(np.load(outputs)[f"out{i}"], value, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("start", "stages"),
    [
        pytest.param(["--local"], ((0,), (1,)), marks=needs_gpus(1)),
        pytest.param(["--local"], ((0, 1), (2, 3)), marks=needs_gpus(2)),
        pytest.param(["-n", 2, "--transport", "mpi"], ((0,), (1,)), marks=needs_gpus(1)),
        pytest.param(["-n", 2], ((0,), (1,)), marks=needs_gpus(2)),
        pytest.param(["-n", 4], ((0, 1), (2, 3)), marks=needs_gpus(4)),
    ],
)
def test_a_plan_trains_on_gpus(start: list[object], stages: Any, tmp_path: Path) -> None:
    options, outputs, expected = trained(stages, tmp_path)
    found = ranks.run([*start, *options])
    assert found.code == 0, found.err
    check(outputs, expected)


@needs_gpus(1)
@pytest.mark.parametrize("stages", [((0,), (1,)), ((0, 1), (2, 3))], ids=["1+1", "2+2"])
def test_ranks_on_one_gpu_exchange_by_nccl(stages: Any, tmp_path: Path) -> None:
    """With two devices a stage XLA's collectives run between ranks too."""
    options, outputs, expected = trained(stages, tmp_path)
    found = under_mpirun(sum(map(len, stages)), ["-m", "alpa_mlir.tools.run", *options])
    assert found.returncode == 0, found.stderr
    check(outputs, expected)


@needs_gpus(1)
def test_ranks_that_share_a_gpu_are_refused(tmp_path: Path) -> None:
    options, _, _ = trained(((0,), (1,)), tmp_path)
    command = [find_mpirun(), "-n", 2, sys.executable, "-m", "alpa_mlir.tools.run", *options]
    found = finished(command, CUDA_VISIBLE_DEVICES="0")
    assert found.returncode == 1 and "2 ranks share a GPU, which NCCL does not do" in found.stderr, found.stderr
    assert "Traceback" not in found.stderr


@needs_gpus(1)
def test_a_plan_that_needs_more_than_the_gpu_has_is_refused(tmp_path: Path) -> None:
    model, plan = tmp_path / "model.mlir", tmp_path / "plan.mlir"
    size = ["--layers", 2, "--hidden", 1 << 19, "--optimizer", "sgd"]
    made = finished([sys.executable, "-m", "alpa_mlir.tools.export", "mlp", *size, "-o", model])
    assert made.returncode == 0, made.stderr
    one = ["--cluster", "dgx-h100", "--devices-per-node", 1, "--stages", 1, "--microbatches", 1, "--memory", "100TB"]
    made = finished([sys.executable, "-m", "alpa_mlir.tools.plan", model, *one, "-o", plan])
    assert made.returncode == 0, made.stderr
    found = ranks.run(["--local", plan, "--platform", "cuda"])
    assert found.code == 1 and found.err.startswith(f"{plan}:1:1: error: GPU 0 ("), found.err
    assert "its part of the plan needs" in found.err and "Traceback" not in found.err
