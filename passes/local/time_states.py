"""What a value is along the time axis, and where that axis sits in a dimension.

Running a step as M microbatches is partitioning over a mesh axis of size M that is laid out in time.
Every value of the program is then in one of these states (GSPMD's tiled / partial / replicated, Xu et
al. 2021 §3, with one more for what can only be known after the last microbatch):

* ``invariant``  the same for every microbatch; ``zero``: moreover a constant zero (so also a partial sum);
* ``split``      dimension `dim`, seen as [outer, M, inner], belongs to the microbatches one by one;
* ``partial``    each microbatch holds a part; `combine` (add, max, min) of the parts is the value;
* ``statistic``  each microbatch uses its own estimate of the value (batch norm), averaged at the end;
* ``finished``   known only when all microbatches are through: it belongs to the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from alpa_mlir.dialect.factors import Mapping


@dataclass(frozen=True)
class State:
    """The state of one value; `dim`, `outer` of a split one, `combine` of a partial one."""

    kind: str
    dim: int = -1
    outer: int = 1
    combine: str = ""

    @property
    def is_split(self) -> bool:
        return self.kind == "split"

    @property
    def is_partial(self) -> bool:
        return self.kind == "partial"

    @property
    def is_fixed(self) -> bool:
        """Known whole in every microbatch without looking at any example."""
        return self.kind in ("invariant", "zero")


INVARIANT = State("invariant")
ZERO = State("zero")
STATISTIC = State("statistic")
FINISHED = State("finished")


def split(dim: int, outer: int = 1) -> State:
    """Split along `dim`, below `outer` other positions."""
    return State("split", dim=dim, outer=outer)


def partial(combine: str) -> State:
    """A part of a sum (or maximum, minimum)."""
    return State("partial", combine=combine)


@dataclass(frozen=True)
class Place:
    """The axis inside one factor of an op: the factor, seen as [outer, M, inner]."""

    factor: int
    outer: int


def locate(dim: Sequence[int], sizes: Sequence[int], outer: int, parts: int) -> Place | None:
    """Where the axis at [outer, parts, inner] of a dimension made of factors `dim` lies, None if across two.

    `dim` lists the factors major first, `sizes` are the sizes of all factors.
    """
    if len(dim) == 1:
        return Place(dim[0], outer)
    rest = outer
    for factor in dim:
        size = sizes[factor]
        if size == 1:
            continue
        if rest < size:
            return Place(factor, rest) if size % (rest * parts) == 0 else None
        if rest % size:
            return None
        rest //= size
    return Place(dim[0], 1) if parts == 1 and dim else None


def standing(mapping: Mapping, sizes: Sequence[int], place: Place) -> State | None:
    """The split of a tensor whose dimensions are made of factors as `mapping` says; None if untouched."""
    for d, factors in enumerate(mapping):
        if place.factor in factors:
            before = factors[: factors.index(place.factor)]
            return split(d, place.outer * prod(sizes[f] for f in before))
    return None


def join(start: State, back: State) -> State | None:
    """The state of a loop's carried value from its start and what the body gives back; None: no such state."""
    if start == back:
        return start
    if start.kind == "zero" or back.kind == "zero":
        return back if start.kind == "zero" else start
    for one, other in ((start, back), (back, start)):
        if one.kind in ("invariant", "statistic") and other.is_split:
            return other
        if one.kind == "invariant" and (other.kind == "statistic" or other.combine in ("max", "min")):
            return other
    return None


def local_shape(shape: Sequence[int], state: State, parts: int) -> tuple[int, ...]:
    """The shape of one microbatch's piece of a value of `shape`."""
    return tuple(n // parts if state.is_split and d == state.dim else n for d, n in enumerate(shape))
