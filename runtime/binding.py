"""Cores for the ranks of a host: each gets its own, so that their threads do not fight for caches and cores.

Ranks of a host share its cores evenly, in the order of the ranks, whole physical cores of one package after the other.
`auto` binds where every rank gets at least two cores and one for each of its devices: with fewer, a rank that waits (in
a pipeline one often does) had better leave its core to the others.  A rank whose launcher has bound it already
(`srun --cpu-bind`, `mpirun --bind-to`, taskset) keeps what it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HOW = ("auto", "yes", "no")


def bind_cores(how: str, world: Any, devices: int) -> tuple[int, ...] | None:
    """Bind this rank, which has so many devices, to its share of its host's cores; these, or None if it stays free.

    All ranks call it, before XLA counts cores.
    """
    if how == "no" or not hasattr(os, "sched_setaffinity"):
        return None
    from mpi4py import MPI

    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    everyone = host.allgather(sorted(os.sched_getaffinity(0)))
    mine = share(everyone, host.rank, how, devices, _place)
    host.Free()
    if mine is not None:
        os.sched_setaffinity(0, mine)
    return mine


def share(
    allowed: Sequence[Sequence[int]], here: int, how: str, devices: int, place: Callable[[int], tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The cores of rank `here` of a host, None for no binding.

    allowed: the cores that each rank of the host may run on now; place: a sort key of cores, by package and core.
    """
    if any(other != allowed[0] for other in allowed):
        return None  # the launcher has bound them
    least = 1 if how == "yes" else max(2, devices)
    cores = sorted(allowed[0], key=place)
    count = len(cores) // len(allowed)
    if len(allowed) == 1 or count < least:
        return None
    return tuple(sorted(cores[here * count : (here + 1) * count]))


def _place(core: int) -> tuple[int, ...]:
    """Package, physical core, number: hyperthreads of one core side by side."""
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    try:
        package, inner = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return (0, core, core)
    return (package, inner, core)
