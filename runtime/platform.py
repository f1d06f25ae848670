"""Where a rank computes and what carries values between ranks: asked for, or what is there.

CPUs and MPI (or copies, in one process) by default; GPUs where jax can use them and the driver shows some, and then
NCCL.  What is asked for and cannot be is refused, with the reason: nothing is replaced in silence.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from alpa_mlir.dialect.diagnostics import CompileError

PLATFORMS = ("auto", "cpu", "cuda")
TRANSPORTS = ("auto", "mpi", "nccl", "local")
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
INSTALL = "install alpa_mlir[gpu] (CUDA 12) or alpa_mlir[gpu13] (CUDA 13)"


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
    plugged = any(around.has(name) for name in PLUGINS)
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
        raise CompileError(f"--transport nccl: CuPy finds no NCCL library here: {INSTALL}, which bring it, or use mpi")


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


def gpu_names() -> tuple[bytes, ...]:
    """A name of each GPU that the driver shows, which no other GPU has: its UUID."""
    driver, found = ctypes.CDLL("libcuda.so.1"), []
    count = visible_gpus()
    for ordinal in range(count if isinstance(count, int) else 0):
        device, name = ctypes.c_int(0), (ctypes.c_ubyte * 16)()
        driver.cuDeviceGet(ctypes.byref(device), ordinal)
        driver.cuDeviceGetUuid_v2(name, device)
        found.append(bytes(name))
    return tuple(found)


def sharers(own: Sequence[bytes], everyone: Sequence[Sequence[bytes]]) -> int:
    """How many ranks of a host use one of this rank's GPUs; each rank's GPUs by name."""
    return max(sum(name in names for names in everyone) for name in own)


def check_unshared(sharing: int, exchanges: bool) -> None:
    """CompileError where ranks that `exchange` values by NCCL share a GPU.

    NCCL refuses that, but where each rank has an NCCL_HOSTID of its own, as if on a host of its own: slow, for trials.
    """
    if sharing > 1 and exchanges and "NCCL_HOSTID" not in os.environ:
        raise CompileError(
            f"{sharing} ranks share a GPU, which NCCL does not do: use --local, or start one rank for each GPU"
            " (with one device for each rank, --transport mpi works too)"
        )


def bind(gpus: int, here: int, among: int, per_rank: int) -> tuple[int, ...]:
    """The GPUs of the rank that is number `here` of `among` on its host, where it sees `gpus` of them.

    A rank that sees just as many as it needs was bound by the launcher (`srun --gpus-per-task`, CUDA_VISIBLE_DEVICES),
    or shares them.
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
