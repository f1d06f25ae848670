"""Which rank owns which device, and which ranks must know each other to XLA.

A plan for D devices runs on N ranks when N divides D: rank r owns devices r·D/N … (r+1)·D/N - 1.  XLA does the
collectives inside a submesh, so ranks that share a submesh join one `jax.distributed` job.  Ranks are linked
when they share a submesh; each connected *group* of ranks is one such job, and a rank whose submeshes are all
its own needs none.  Separate jobs keep a group's start and end free of barriers with the others.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Plan
from alpa_mlir.runtime.platform import Choice, bind, check_unshared, gpu_names, sharers, visible_gpus

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_KEPT, _MOST_KEPT, _ARENAS = 1 << 30, (1 << 31) - 1, 2
"""Bytes: the most that glibc accepts."""
LONGEST_WAIT = 30.0
"""Seconds until jax is left to find out why its group's first rank does not listen."""
GPU_SHARE = 0.9
"""The part of a GPU's memory that XLA takes at the start; NCCL's buffers and CUDA's contexts need the rest."""


@dataclass(frozen=True)
class Layout:
    """`device_count` devices over `rank_count` ranks; `groups[r]` are the ranks linked with rank r, sorted.

    `submeshes` are the devices of each.
    """

    device_count: int
    rank_count: int
    groups: tuple[tuple[int, ...], ...]
    submeshes: tuple[tuple[int, ...], ...] = ()

    @property
    def per_rank(self) -> int:
        """Devices of each rank."""
        return self.device_count // self.rank_count

    @property
    def rank_of(self) -> tuple[int, ...]:
        """The rank of each device."""
        return tuple(d // self.per_rank for d in range(self.device_count))

    def folded(self, gpus: int) -> int | None:
        """The most of so many GPUs that can be the plan's devices in turn, no submesh twice on one; None where none."""
        fits = (n for n in range(gpus, 0, -1) if all(len({d % n for d in s}) == len(s) for s in self.submeshes))
        return next(fits, None)


def device_count(plan: Plan) -> int:
    """How many devices a plan is for."""
    return 1 + max(d for stage in plan.stages.values() for d in stage.devices)


def arrange(plan: Plan, rank_count: int, location: str) -> Layout:
    """The layout of a plan on `rank_count` ranks; CompileError where the ranks do not divide the devices."""
    devices = device_count(plan)
    if devices % rank_count:
        fits = [n for n in range(1, devices + 1) if devices % n == 0]
        raise CompileError(
            f"the plan is for {devices} devices, which {rank_count} ranks cannot share evenly:"
            f" start {' or '.join(str(n) for n in fits)}",
            location,
        )
    per_rank = devices // rank_count
    submeshes = tuple(stage.devices for stage in plan.stages.values())
    return Layout(devices, rank_count, _groups(plan, rank_count, per_rank), submeshes)


def _groups(plan: Plan, rank_count: int, per_rank: int) -> tuple[tuple[int, ...], ...]:
    group = {r: {r} for r in range(rank_count)}
    for stage in plan.stages.values():
        joined: set[int] = set()
        for device in stage.devices:
            joined |= group[device // per_rank]
        for rank in joined:
            group[rank] = joined
    return tuple(tuple(sorted(group[r])) for r in range(rank_count))


def _keep_pages() -> None:
    """Let malloc keep what XLA frees (glibc): the buffers of a step are those of the next, and to get their pages anew
    from the kernel took a third of a step.

    An arena of its own for each thread keeps nothing above 32 MB, and each keeps for itself; one for all costs more
    than it saves.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
        mallopt(_M_ARENA_MAX, _ARENAS)


def prepare_environment(local_devices: int, gpus: Sequence[int] | None = None, sharing: int = 1) -> None:
    """Say how many CPU devices, or which GPUs, this process has; must come before jax makes its client.

    `sharing` is how many processes share the memory of those GPUs.

    XLA's thread pool must have several threads per CPU device, else programs with collectives starve each other.
    """
    threads = max(8, 4 * local_devices)
    if int(os.environ.get("PJRT_NPROC", "0") or 0) < threads:
        os.environ["PJRT_NPROC"] = str(threads)
    import jax

    if gpus is None:
        _keep_pages()
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", local_devices)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    else:
        # Kernels of several communicators (XLA's and ours) start in the order of the host's calls.
        os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_SHARE / sharing:.3f}")
        jax.config.update("jax_platforms", "cuda,cpu")
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, gpus)))
    # Nobody asks it, and when a rank ends it complains before that rank's own message.
    jax.config.update("jax_enable_preemption_service", False)


def connect(layout: Layout, communicator: Any, choice: Choice | None = None) -> tuple[Any, ...]:
    """Start jax on this rank, joined with its group, and return jax's device for each device of the plan.

    `communicator` is MPI's world, or None for one process.  Devices of other groups are None.  `choice` None: CPUs.
    """
    import jax

    rank = 0 if communicator is None else communicator.rank
    group = layout.groups[rank]
    gpus = None
    if choice is not None and choice.platform == "cuda":
        gpus, sharing = _own_gpus(layout, communicator)
        check_unshared(sharing, choice.transport == "nccl" or len(group) > 1)
        prepare_environment(layout.per_rank, gpus, sharing)
    else:
        prepare_environment(layout.per_rank)
    if communicator is not None:
        inner = communicator.Split(group[0], rank)
        if len(group) > 1:
            address = _meeting_point(inner)
            if inner.rank:
                await_listener(address)
            # jax must not guess: it would give each process one GPU by its number on the host, and to find that number
            # call a collective of all of MPI's ranks, which those of other groups do not join.
            own = None if gpus is None else list(gpus)
            jax.distributed.initialize(
                address,
                inner.size,
                inner.rank,
                local_device_ids=own,
                cluster_detection_method="deactivate",
            )
    found: list[Any] = [None] * layout.device_count
    for position, member in enumerate(group):
        own = [d for d in jax.devices() if d.process_index == position]
        for i in range(layout.per_rank):
            found[member * layout.per_rank + i] = own[i % len(own)]
    return tuple(found)


def _own_gpus(layout: Layout, communicator: Any) -> tuple[tuple[int, ...], int]:
    """This rank's GPUs among those that its process sees, and how many ranks use the same."""
    gpus = visible_gpus()
    assert isinstance(gpus, int), gpus
    if communicator is None:
        few = layout.folded(gpus) if gpus < layout.per_rank else None
        return (tuple(range(few)) if few else bind(gpus, 0, 1, layout.per_rank)), 1
    from mpi4py import MPI

    host = communicator.Split_type(MPI.COMM_TYPE_SHARED)
    own = bind(gpus, host.rank, host.size, layout.per_rank)
    names = gpu_names()
    mine = [names[number] for number in own]
    return own, sharers(mine, host.allgather(mine))


def disconnect() -> None:
    """Leave the group's jax job, if there is one; its members leave together."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def await_listener(address: str, longest: float = LONGEST_WAIT) -> None:
    """Return when somebody listens at `host:port`, or after so many seconds: a client of jax that finds nobody looks
    again after a second."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + longest
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            time.sleep(0.005)
        else:
            return


def _meeting_point(communicator: Any) -> str:
    """`host:port` at which the group's first rank listens; agreed by a broadcast."""
    from mpi4py import MPI

    names: Sequence[str] = communicator.allgather(MPI.Get_processor_name())
    address = None
    if communicator.rank == 0:
        host = "127.0.0.1" if len(set(names)) == 1 else socket.gethostbyname(socket.gethostname())
        with socket.socket() as s:
            s.bind(("", 0))
            address = f"{host}:{s.getsockname()[1]}"
    return str(communicator.bcast(address))
