"""How one sharding becomes another inside a mesh: a chain of slices and collectives.

The chain is both priced by the cost model and emitted by the localiser, so that what was planned is
what runs.  Partial sums end first (reduce-scatter where the target splits a dimension over these axes
next, else all-reduce), slices come as early as they can; several axes of a dimension take one step.  So a mesh
of two axes can do all that a single axis of as many devices can (rule C1).  What is left is a shortest road over the
moves that come closer to the target, its length being the bytes that a device sends:

    all-to-all   axes leave the end of one dimension for the end of another that wants them
    permute      tiles of the same shape change places: axes of a dimension change order, or are replaced
    all-gather   axes leave the end of a dimension

Compare GSPMD (Xu et al. 2021, §4.5) and Shardy's explicit reshards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding

ALL_REDUCE = "all_reduce"
REDUCE_SCATTER = "reduce_scatter"
ALL_GATHER = "all_gather"
ALL_TO_ALL = "all_to_all"
PERMUTE = "collective_permute"
SLICE = "slice"


Dims = tuple[tuple[str, ...], ...]
Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Step:
    """One step of a reshard over `axes` (major first).

    `dim` is the dimension that is scattered, gathered, sliced, or (all-to-all) the one that loses the
    axes; `to_dim` the one that gains them.  All-reduce and permute have no dimension (-1).  `before`/`after` are
    the shardings around the step.
    """

    kind: str
    axes: tuple[str, ...]
    dim: int
    to_dim: int
    before: Sharding
    after: Sharding


@lru_cache(maxsize=65536)
def reshard_steps(source: Sharding, target: Sharding, mesh: Mesh) -> tuple[Step, ...]:
    """The chain of steps from `source` to `target` (same rank).

    ValueError where `target` would be partial over an axis that `source` is not.
    """
    steps = ending_steps(source, target)
    current = steps[-1].after if steps else source
    for move in _road(current.dims, target.dims, mesh.axes)[1]:
        after = Sharding(move.dims, current.partial)
        steps.append(Step(move.kind, move.axes, move.dim, move.to_dim, current, after))
        current = after
    return tuple(steps)


def ending_steps(source: Sharding, target: Sharding) -> list[Step]:
    """The steps that end the sums over axes which `source` is partial over and `target` is not.

    ValueError where `target` would be partial over an axis that `source` is not.
    """
    if set(target.partial) - set(source.partial):
        raise ValueError(f"a whole value cannot become partial over {target.partial}")
    steps: list[Step] = []
    current = source
    for kind, axis in _endings(source, target):
        current = _emit(steps, current, kind, axis, target)
    return _merge(steps)


def _endings(source: Sharding, target: Sharding) -> list[tuple[str, str]]:
    """Which partial axes are scattered (first, they shrink the value) and which are all-reduced."""
    scattered: list[str] = []
    for held, axes in zip(source.dims, target.dims, strict=True):
        for axis in axes[len(held) :] if axes[: len(held)] == held else ():
            if axis not in source.partial or axis in target.partial:
                break
            scattered.append(axis)
    rest = [a for a in source.partial if a not in scattered and a not in target.partial]
    return [(REDUCE_SCATTER, a) for a in scattered] + [(ALL_REDUCE, a) for a in rest]


def _emit(steps: list[Step], current: Sharding, kind: str, axis: str, target: Sharding) -> Sharding:
    partial = tuple(a for a in current.partial if a != axis)
    dims = [list(d) for d in current.dims]
    dim = -1
    if kind == REDUCE_SCATTER:
        dim = next(d for d, axes in enumerate(target.dims) if axis in axes)
        dims[dim].append(axis)
    after = Sharding(tuple(tuple(d) for d in dims), partial)
    steps.append(Step(kind, (axis,), dim, -1, current, after))
    return after


@dataclass(frozen=True)
class _Move:
    """One step of the road: what it is and how the dimensions are split after it."""

    kind: str
    axes: tuple[str, ...]
    dim: int
    to_dim: int
    dims: Dims


@lru_cache(maxsize=1 << 20)
def _road(dims: Dims, target: Dims, axes: Axes) -> tuple[tuple[float, int], tuple[_Move, ...]]:
    """((bytes sent by a device / bytes of the value, number of moves), the moves) of a shortest road."""
    if dims == target:
        return (0.0, 0), ()
    size = dict(axes)
    best: tuple[tuple[float, int], tuple[_Move, ...]] | None = None
    for move in _moves(dims, target, size):
        (length, count), rest = _road(move.dims, target, axes)
        total = (round(length + _length(move, dims, size), 12), count + 1)
        if best is None or total < best[0]:
            best = total, (move, *rest)
    assert best is not None, "a dimension that holds no wrong axis can be sliced"
    return best


def _length(move: _Move, dims: Dims, size: dict[str, int]) -> float:
    """Bytes that a device sends, as a part of the whole value's."""
    if move.kind == SLICE:
        return 0.0
    n = _extent(move.axes, size)
    held = prod(_extent(d, size) for d in (move.dims if move.kind == ALL_GATHER else dims))
    return (1.0 if move.kind == PERMUTE else (n - 1) / n) / held


def _extent(axes: tuple[str, ...], size: dict[str, int]) -> int:
    return prod(size[a] for a in axes)


def _moves(dims: Dims, target: Dims, size: dict[str, int]) -> Iterator[_Move]:
    """The moves worth a look: a slice alone where one is possible, else whatever comes closer."""
    used = {a for d in dims for a in d}
    missing = [target[e][len(d) :] if target[e][: len(d)] == d else () for e, d in enumerate(dims)]
    for e, wanted in enumerate(missing):
        free = wanted[: next((n for n, a in enumerate(wanted) if a in used), len(wanted))]
        if free:
            yield _Move(SLICE, free, e, -1, _with(dims, e, (*dims[e], *free)))
            return
    yield from _exchanges(dims, target, size)
    for d, held in enumerate(dims):
        right = _common(held, target[d])
        for start in range(right, len(held)):
            suffix, left = held[start:], _with(dims, d, held[:start])
            for e, wanted in enumerate(missing):
                if e != d and wanted[: len(suffix)] == suffix:
                    yield _Move(ALL_TO_ALL, suffix, d, e, _with(left, e, (*dims[e], *suffix)))
            yield _Move(ALL_GATHER, suffix, d, -1, left)


def _exchanges(dims: Dims, target: Dims, size: dict[str, int]) -> Iterator[_Move]:
    """Permutes: straight to the target, or one dimension with the axes that it keeps in front."""
    if all(_extent(d, size) == _extent(t, size) for d, t in zip(dims, target, strict=True)):
        yield _permute(dims, target)
        return
    for d, held in enumerate(dims):
        kept = [a for a in target[d] if a in held]
        kept = kept[: _common(tuple(kept), target[d])]
        turned = (*kept, *(a for a in held if a not in kept))
        if turned != held:
            yield _permute(dims, _with(dims, d, turned))


def _permute(dims: Dims, after: Dims) -> _Move:
    changed = {a for d, t in zip(dims, after, strict=True) if d != t for a in (*d, *t)}
    return _Move(PERMUTE, tuple(sorted(changed)), -1, -1, after)


def _common(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """Length of the common prefix."""
    for n, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return n
    return min(len(left), len(right))


def _with(dims: Dims, dim: int, axes: tuple[str, ...]) -> Dims:
    return (*dims[:dim], tuple(axes), *dims[dim + 1 :])


def _merge(steps: list[Step]) -> list[Step]:
    """Neighbouring all-reduces become one collective, neighbouring reduce-scatters onto one dimension another."""
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if last is not None and (last.kind, last.dim) == (step.kind, step.dim):
            merged[-1] = Step(step.kind, (*last.axes, *step.axes), step.dim, -1, last.before, step.after)
        else:
            merged.append(step)
    return merged
