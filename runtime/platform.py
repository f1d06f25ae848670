"""Where a rank computes and what carries values between ranks: asked for, or what is there.

CPUs and MPI (or copies, in one process) by default; GPUs where jax can use them and the driver shows some, and then
NCCL.  What is asked for and cannot be is refused, with the reason: nothing is replaced in silence.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from alpa_mlir.dialect.diagnostics import CompileError

PLATFORMS = ("auto", "cpu", "cuda")
TRANSPORTS = ("auto", "mpi", "nccl", "local")
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
INSTALL = "install alpa_mlir[gpu]"


@dataclass(frozen=True)
class Choice:
    """The platform (`cpu`, `cuda`) and the transport (`mpi`, `nccl`, `local`) of a run."""

    platform: str
    transport: str


@dataclass(frozen=True)
class Surroundings:
    """What a rank finds: how many GPUs the driver shows (or why none), whether a package is there, whether NCCL is."""

    gpus: Callable[[], int | str]
    has: Callable[[str], bool]
    nccl: Callable[[], bool]


def choose(platform: str, transport: str, ranks: int, around: Surroundings | None = None) -> Choice:
    """What a job of so many ranks uses; CompileError where it cannot be what was asked for."""
    around = around or Surroundings(visible_gpus, _has, lambda: bool(nccl_modules()[1].available))
    chosen = _platform(platform, around)
    if transport == "auto":
        transport = "local" if ranks == 1 else "nccl" if chosen == "cuda" else "mpi"
    if transport == "local" and ranks > 1:
        raise CompileError(f"--transport local moves values within one process, and these are {ranks} ranks: use mpi")
    if transport == "nccl" and chosen != "cuda":
        raise CompileError("--transport nccl moves values between GPUs, and the platform is cpu: use --platform cuda")
    if chosen == "cuda" and transport != "mpi":
        _check_cupy(transport, around)
    return Choice(chosen, transport)


def _platform(asked: str, around: Surroundings) -> str:
    if asked == "cpu":
        return asked
    plugged = any(around.has(name) for name in _PLUGINS)
    if asked == "auto" and not plugged:
        return "cpu"
    gpus = around.gpus()
    if asked == "auto":
        return "cuda" if isinstance(gpus, int) and gpus else "cpu"
    if isinstance(gpus, str) or not gpus:
        raise CompileError(f"--platform cuda: {gpus or 'the driver shows no GPU'}")
    if not plugged:
        raise CompileError(f"--platform cuda: jax has no CUDA plugin here: {INSTALL}")
    return "cuda"


def _check_cupy(transport: str, around: Surroundings) -> None:
    if not around.has("cupy"):
        raise CompileError(f"--transport {transport} on GPUs works with CuPy, which is not here: {INSTALL}, or use mpi")
    if transport == "nccl" and not around.nccl():
        raise CompileError(f"--transport nccl: CuPy finds no NCCL library here: {INSTALL}, which brings it, or use mpi")


def _has(package: str) -> bool:
    return find_spec(package) is not None


def visible_gpus() -> int | str:
    """How many GPUs the driver shows this process, asked without starting CUDA's runtime; else why it cannot tell."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    for status in (driver.cuInit(0), driver.cuDeviceGetCount(ctypes.byref(count))):
        if status:
            return f"the NVIDIA driver refuses: error {status}"
    return count.value


def bind(gpus: int, here: int, among: int, per_rank: int) -> tuple[int, ...]:
    """The GPUs of the rank that is number `here` of `among` on its host, where it sees `gpus` of them.

    A rank that sees just as many as it needs was bound by the launcher (`srun --gpus-per-task`, CUDA_VISIBLE_DEVICES).
    """
    if gpus >= among * per_rank:
        return tuple(range(here * per_rank, (here + 1) * per_rank))
    if gpus == per_rank:
        return tuple(range(per_rank))
    raise CompileError(f"{among} ranks of {per_rank} GPUs each need {among * per_rank} on their host, which has {gpus}")


def nccl_modules() -> tuple[Any, Any]:
    """CuPy and its NCCL."""
    import cupy
    from cupy.cuda import nccl

    return cupy, nccl
