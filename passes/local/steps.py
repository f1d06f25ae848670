"""How one sharding becomes another inside a mesh: a chain of slices and collectives.

The chain is both priced by the cost model and emitted by the localiser, so that what was planned is
what runs.  Rules (volumes from small to large): end partial sums first (reduce-scatter where the
target splits a dimension over that axis next, else all-reduce), slice as early as possible, move an
axis between dimensions by all-to-all, gather only what is left.  Compare GSPMD (Xu et al. 2021, §4.5)
and Shardy's explicit reshards.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpa_mlir.dialect.sharding import Sharding

ALL_REDUCE = "all_reduce"
REDUCE_SCATTER = "reduce_scatter"
ALL_GATHER = "all_gather"
ALL_TO_ALL = "all_to_all"
SLICE = "slice"


@dataclass(frozen=True)
class Step:
    """One step of a reshard over `axes` (major first).

    `dim` is the dimension that is scattered, gathered, sliced, or (all-to-all) the one that loses the
    axis; `to_dim` the one that gains it.  All-reduce has no dimension (-1).  `before`/`after` are the
    shardings around the step.
    """

    kind: str
    axes: tuple[str, ...]
    dim: int
    to_dim: int
    before: Sharding
    after: Sharding


def reshard_steps(source: Sharding, target: Sharding) -> tuple[Step, ...]:
    """The chain of steps from `source` to `target` (same rank).

    ValueError where `target` would be partial over an axis that `source` is not.
    """
    if set(target.partial) - set(source.partial):
        raise ValueError(f"a whole value cannot become partial over {target.partial}")
    steps: list[Step] = []
    current = source
    for kind, axis in _endings(source, target):
        current = _emit(steps, current, kind, axis, target)
    while current.dims != target.dims:
        current = _advance(steps, current, target)
    return tuple(_merge(steps))


def _endings(source: Sharding, target: Sharding) -> list[tuple[str, str]]:
    """Which partial axes are scattered (first, they shrink the value) and which are all-reduced."""
    scattered: list[str] = []
    dims = [list(d) for d in source.dims]
    moved = True
    while moved:
        moved = False
        for d, axes in enumerate(target.dims):
            n = len(dims[d])
            if len(axes) > n and list(axes[:n]) == dims[d]:
                axis = axes[n]
                if axis in source.partial and axis not in target.partial and axis not in scattered:
                    scattered.append(axis)
                    dims[d].append(axis)
                    moved = True
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


def _advance(steps: list[Step], current: Sharding, target: Sharding) -> Sharding:
    """One slice, all-to-all or all-gather towards the target."""
    used = set(current.axes) | set(current.partial)
    grow = {d: _next_axis(current.dims[d], target.dims[d]) for d in range(len(target.dims))}
    for d, axis in grow.items():
        if axis is not None and axis not in used:
            return _move(steps, current, SLICE, axis, -1, d)
    wrong = [d for d, axes in enumerate(current.dims) if axes != target.dims[d][: len(axes)]]
    for d in wrong:
        axis = current.dims[d][-1]
        for e, wanted in grow.items():
            if e != d and wanted == axis:
                return _move(steps, current, ALL_TO_ALL, axis, d, e)
    return _move(steps, current, ALL_GATHER, current.dims[wrong[0]][-1], wrong[0], -1)


def _next_axis(now: tuple[str, ...], wanted: tuple[str, ...]) -> str | None:
    return wanted[len(now)] if len(wanted) > len(now) and wanted[: len(now)] == now else None


def _move(steps: list[Step], current: Sharding, kind: str, axis: str, lose: int, gain: int) -> Sharding:
    dims = [list(d) for d in current.dims]
    if lose >= 0:
        dims[lose].remove(axis)
    if gain >= 0:
        dims[gain].append(axis)
    after = Sharding(tuple(tuple(d) for d in dims), current.partial)
    dim = gain if kind == SLICE else lose
    steps.append(Step(kind, (axis,), dim, gain if kind == ALL_TO_ALL else -1, current, after))
    return after


def _merge(steps: list[Step]) -> list[Step]:
    """Neighbouring all-reduces, and all-gathers of one dimension, become one collective."""
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        same = last is not None and (last.kind, last.dim) == (step.kind, step.dim)
        if last is not None and same and step.kind in (ALL_REDUCE, ALL_GATHER):
            axes = (*last.axes, *step.axes) if step.kind == ALL_REDUCE else (*step.axes, *last.axes)
            merged[-1] = Step(step.kind, axes, step.dim, -1, last.before, step.after)
        else:
            merged.append(step)
    return merged
