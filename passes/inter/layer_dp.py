"""Cutting a sequence of segments into layers: the dynamic program of the Alpa paper (OSDI'22, §5.2, eq. 7).

    G(k, r) = min over i of max(G(i, r-1), C(i, k))

G(k, r) is the least possible bottleneck when the first k segments are cut into r layers, C(i, k) the
bytes that enter the layer of segments i … k-1 from earlier layers, and a layer may do at most
(1+δ)/L of all work.  Among the cuts that reach the optimal bottleneck the one with the least variance
of work wins; since the number of layers is fixed that is the least sum of squares.  Where stages will be made of
several layers it is not enough that single ones are alike: *evenly* cut, with w_r the part of all work in layer r and
W_r in the first r layers, they have the least

    Σ over r of w_r² + (W_r - r/L)²

so that any n layers in a row do about n/L of the work. A second, additive dynamic program over the layers that
respect the bottleneck finds either exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """A value that may cross layer boundaries: where it is defined, which segments read it, its bytes."""

    defined: int
    used: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Cut:
    """Layers as `starts` (first segment of each), the largest C of a layer in bytes, and the δ it took."""

    starts: tuple[int, ...]
    bottleneck: float
    delta: float


def entering_bytes(crossings: Iterable[Crossing], count: int) -> Matrix:
    """`C[i, k]`: bytes that enter the layer of segments i … k-1; shape (count, count + 1).

    A value defined in segment a enters the layer [i, k) if a < i and some use u lies in [i, k); counted
    at its first such use it covers the rectangle i ∈ (previous use or a, u], k > u, so all values
    together are one two-dimensional prefix sum.
    """
    corners = np.zeros((count + 1, count + 2))
    for value in crossings:
        before = value.defined
        for use in sorted(set(value.used)):
            if use > before:
                corners[before + 1, use + 1] += value.nbytes
                corners[use + 1, use + 1] -= value.nbytes
                before = use
    return corners.cumsum(axis=0).cumsum(axis=1)[:count, : count + 1]


def cut_layers(entering: Matrix, work: Sequence[float], layers: int, delta: float = 0.5, even: bool = False) -> Cut:
    """The best cut of `len(work)` segments into `layers` non-empty layers; `even`: any few in a row do about as much.

    δ is doubled until a cut exists (one always does, at the latest when a layer may do all the work).
    ValueError where there are fewer segments than layers.
    """
    count = len(work)
    if not 1 <= layers <= count:
        raise ValueError(f"{count} segments cannot be cut into {layers} layers")
    total = np.concatenate([[0.0], np.cumsum(np.asarray(work, dtype=float))])
    load = total[None, :] - total[:count, None]
    ordered = np.arange(count)[:, None] < np.arange(count + 1)[None, :]
    while True:
        limit = (1 + delta) * total[-1] / layers
        allowed = ordered & (load <= limit * (1 + 1e-9))
        cost = np.where(allowed, entering, np.inf)
        bottleneck = _least_bottleneck(cost, layers)
        if np.isfinite(bottleneck):
            parts = np.where(cost <= bottleneck, load, np.inf) / max(total[-1], 1.0)
            return Cut(_evenest(parts, total / max(total[-1], 1.0), layers, float(even)), bottleneck, delta)
        delta = max(2 * delta, 0.25)


def _least_bottleneck(cost: Matrix, layers: int) -> float:
    best = np.full(cost.shape[1], np.inf)
    best[0] = 0.0
    for _ in range(layers):
        best = np.maximum(best[:-1, None], cost).min(axis=0)
    return float(best[-1])


def _evenest(parts: Matrix, done: NDArray[np.float64], layers: int, weight: float) -> tuple[int, ...]:
    """The first segment of each layer; `parts[i, k]`: the part of all work in segments i … k-1, infinite where they are
    no layer, `done[k]`: in the first k; `weight`: what (W_r - r/L)² counts."""
    best = np.full(len(done), np.inf)
    best[0] = 0.0
    choices = []
    for layer in range(1, layers + 1):
        sums = best[:-1, None] + parts**2
        choices.append(sums.argmin(axis=0))
        best = sums.min(axis=0) + weight * (done - layer / layers) ** 2
    starts, end = [], len(done) - 1
    for choice in reversed(choices):
        end = int(choice[end])
        starts.append(end)
    return tuple(reversed(starts))
