"""The stage search of the Alpa paper on a given table, by its own rules (OSDI'22, §5.2; `training_dp` in its code).

    T* = min over partitions of  Σ t_i + (M-1)·max_j t_j

A table `cost[i, k, m, c]` prices layers i … k on submesh m under configuration c, and
`max_n_succ_stages[i, k, m, c]` says how many stages may follow it before its memory runs out (1F1B keeps one more
microbatch in flight per following stage; -1: never fits).  Any number of stages may be used, all devices must be.
The original enumerates caps on max t in steps of at least 1e-6 and sums in f32; here the optimum is exact, so a cost
may come out lower than the original's by that much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import ArrayLike

from alpa_mlir.passes.inter.dp import Partition, StageTables, partition_layers


@dataclass(frozen=True)
class PaperStage:
    """Layers `first` … `last` on submesh choice `submesh` under configuration `config`."""

    first: int
    last: int
    submesh: int
    config: int


def training_dp(
    devices: int,
    microbatches: int,
    submeshes: Sequence[Sequence[int] | int],
    cost: ArrayLike,
    max_n_succ_stages: ArrayLike,
) -> tuple[float, tuple[PaperStage, ...]]:
    """The least T* and a partition that has it; (inf, ()) where nothing fits.

    `submeshes[m]` is a shape (hosts, devices per host) or a number of devices. Both tables have the shape
    (layers, layers, submeshes, configurations). ValueError for shapes that do not go together.
    """
    seconds, successors = _checked(submeshes, cost, max_n_succ_stages)
    layers, _, _, configs = seconds.shape
    flat = seconds.reshape(layers, layers, -1)
    follow = np.arange(layers)[:, None, None, None]
    latency = np.where(follow <= successors.reshape(layers, layers, -1)[None], flat[None], np.inf)
    waits = np.where(np.isfinite(latency), latency, 0.0) * (microbatches - 1)
    sizes = tuple((_size(s),) for s in submeshes for _ in range(configs))
    found = partition_layers(StageTables(latency, waits, sizes), (devices,), range(1, layers + 1))
    return (found.cost, _stages(found, configs)) if found is not None else (float("inf"), ())


def _stages(found: Partition, configs: int) -> tuple[PaperStage, ...]:
    return tuple(PaperStage(c.first, c.last, *divmod(c.option, configs)) for c in found.stages)


def _size(submesh: Sequence[int] | int) -> int:
    return int(submesh) if isinstance(submesh, (int, np.integer)) else prod(int(n) for n in submesh)


def _checked(
    submeshes: Sequence[Sequence[int] | int], cost: ArrayLike, successors: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    seconds, follow = np.asarray(cost, dtype=float), np.asarray(successors, dtype=float)
    if seconds.ndim != 4 or seconds.shape[0] != seconds.shape[1] or seconds.shape[2] != len(submeshes):
        raise ValueError(
            f"the costs must have the shape (layers, layers, {len(submeshes)} submeshes, configurations), "
            f"got {seconds.shape}"
        )
    if follow.shape != seconds.shape:
        raise ValueError(f"max_n_succ_stages has the shape {follow.shape}, the costs {seconds.shape}")
    return seconds, follow
