"""What carries values between the submeshes of a run: by platform, transport, and number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.platform import Choice, nccl_modules
from alpa_mlir.runtime.program import Program, paths_of
from alpa_mlir.runtime.shares import device_side, host_side, lines_of
from alpa_mlir.runtime.transfers import Transfers
from alpa_mlir.runtime.transport.base import Transport


def transfers_for(
    choice: Choice,
    part: Program,
    submeshes: Submeshes,
    rank_of: Sequence[int],
    watchdog: Watchdog,
    world: Any = None,
    peers: Transport | None = None,
) -> Transfers:
    """The transfers of one rank; `world` is MPI's communicator, `peers` its transport, None where one process is all.

    All ranks call it together: with NCCL they connect their GPUs.
    """
    if choice.platform == "cpu" or choice.transport == "mpi":
        return Transfers.on_host(submeshes, rank_of, peers, part.routes, watchdog)
    from alpa_mlir.runtime.transport.gpu import Gpu
    from alpa_mlir.runtime.transport.nccl import NcclTransport

    rank = submeshes.rank
    own = [d for d, r in enumerate(rank_of) if r == rank]
    gpu = Gpu(*nccl_modules(), {d: submeshes.device(d) for d in own})
    between = None
    if peers is not None:
        watchdog.beat("connecting GPUs by NCCL")
        lines = lines_of(paths_of(part.plan.main), submeshes.places, part.routes, rank_of)
        between = NcclTransport(gpu, lines, own, world.bcast)
    side = device_side(gpu, between, len(rank_of), own)
    return Transfers(submeshes, side, host_side(rank, rank_of, peers), part.routes, watchdog)
