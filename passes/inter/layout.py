"""Which layers of a module follow one another in the whole program, and which layers the stage search cuts between.

A module that is the whole program is its own layout. A folded one (`fold.py`) holds a layer once that stands for
many; its layout lists the layers in the order of the whole program, a repeated group as often as it occurs, and
gives each place in that order a *search layer*: the grain at which stages are cut.

A range of search layers then costs what its places cost, and values enter it over its two borders: `Layout.sums` adds
up per-layer figures, `Layout.entries` counts how often a value enters each range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions

Ids = npt.NDArray[np.int64]
Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Layers `first` … `last` of a module stand for `copies` more of the same after them."""

    first: int
    last: int
    copies: int

    @property
    def size(self) -> int:
        """Layers of one copy."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Flow:
    """A value between layers: the layer that makes it and those that use it, ascending."""

    made: int
    used: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """`layers` of the module, in `groups` (ascending, disjoint); `cuts`: the first place of each search layer.

    The last layers have no place: what is in them is made once in every search layer that holds one of those that
    use it, which `shared` says for each.
    """

    layers: int
    groups: tuple[Group, ...] = ()
    cuts: tuple[int, ...] = ()
    shared: tuple[tuple[int, ...], ...] = ()

    @property
    def placed(self) -> int:
        """Number of layers that have places."""
        return self.layers - len(self.shared)

    @cached_property
    def order(self) -> Ids:
        """The layer of the module at each place of the whole program."""
        order = list(range(self.placed))
        for group in reversed(self.groups):
            copy = order[group.first : group.last + 1]
            order[group.last + 1 : group.last + 1] = copy * group.copies
        return np.array(order, dtype=np.int64)

    @cached_property
    def search(self) -> Ids:
        """The search layer of each place; without cuts each place is one."""
        places = np.arange(len(self.order))
        if not self.cuts:
            return places
        return np.searchsorted(np.array(self.cuts), places, side="right") - 1

    @property
    def whole(self) -> bool:
        """Whether the module is the whole program and every layer a search layer."""
        return not self.groups and not self.cuts

    @property
    def count(self) -> int:
        """Number of search layers."""
        return len(self.cuts) or len(self.order)

    @cached_property
    def times(self) -> Ids:
        """How often each layer of the module occurs."""
        found: Ids = self.membership.sum(axis=0).astype(np.int64)
        return found

    @cached_property
    def membership(self) -> Table:
        """[search layers, layers]: how often a search layer holds a layer of the module."""
        table = np.zeros((self.count, self.layers))
        np.add.at(table, (self.search, self.order), 1.0)
        for layer, users in enumerate(self.shared, self.placed):
            table[:, layer] = table[:, list(users)].any(axis=1)
        return table

    @cached_property
    def unions(self) -> tuple[Table, Ids]:
        """The distinct sets of layers that ranges of search layers hold, as rows of ones, and [i, j]: that of i … j."""
        held = np.array([self.membership[i : j + 1].any(axis=0) for i in range(self.count) for j in range(self.count)])
        rows, numbers = np.unique(held, axis=0, return_inverse=True)
        return rows.astype(np.float64), numbers.reshape(self.count, self.count)

    def users(self, layer: int) -> tuple[int, ...]:
        """The layers that have places among a layer and those that it is made in."""
        return (layer,) if layer < self.placed else self.shared[layer - self.placed]

    def sums(self, per_layer: Table) -> Table:
        """[i, j]: the sum over search layers i … j of figures given per layer of the module."""
        total = np.concatenate([[0.0], np.cumsum(self.membership @ per_layer)])
        return np.triu(total[None, 1:] - total[:-1, None])

    def entries(self, flow: Flow) -> Table:
        """[i, j]: how many copies of the value enter the search layers i … j from outside."""
        corners = np.zeros((self.count + 1, self.count + 1))
        for made, used in self.copies(flow):
            home = int(self.search[made])
            users = sorted({int(self.search[u]) for u in used})
            _add_ranges(corners, home, [u for u in users if u > home])
            _add_ranges_below(corners, home, [u for u in users if u < home])
        return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]

    def used_within(self, flow: Flow) -> Table:
        """[i, j]: how many copies of the value the search layers i … j make and use."""
        corners = np.zeros((self.count + 1, self.count + 1))
        for _, used in self.copies(flow):
            _add_ranges(corners, -1, sorted({int(self.search[u]) for u in used}))
        found: Table = corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] - self.entries(flow)
        return found

    def used_above(self, flow: Flow) -> Table:
        """[i, j]: how many copies of the value the search layers i … j make and use in higher ones than made them."""
        corners = np.zeros((self.count + 1, self.count + 1))
        for made, used in self.copies(flow):
            home = int(self.search[made])
            user = min((int(self.search[u]) for u in used if self.search[u] > home), default=self.count)
            corners[0, user] += 1
            corners[home + 1, user] -= 1
        found: Table = corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
        return found

    def copies(self, flow: Flow) -> list[tuple[int, tuple[int, ...]]]:
        """The value's copies in the whole program, as places: where each is made and where it is used."""
        found = [(flow.made, flow.used)]
        for group in reversed(self.groups):
            found = [copy for made, used in found for copy in _spread(group, made, used)]
        return found


def read_layout(module: ir.Module) -> Layout:
    """The layout of a level-3 module: what `alpa.layout` says, or else its layers as they are."""
    if alpa.LAYOUT not in module.operation.attributes:
        return Layout(count_layers(module))
    entry = ir.DictAttr(module.operation.attributes[alpa.LAYOUT])
    groups = tuple(Group(*ir.DenseI64ArrayAttr(g)) for g in ir.ArrayAttr(entry["groups"]))
    shared = tuple(tuple(ir.DenseI64ArrayAttr(s)) for s in ir.ArrayAttr(entry["shared"]))
    layers = int(ir.IntegerAttr(entry["layers"]).value)
    return Layout(layers, groups, tuple(ir.DenseI64ArrayAttr(entry["cuts"])), shared)


def write_layout(module: ir.Module, layout: Layout) -> None:
    """Write `alpa.layout`."""
    context = module.context
    groups = [ir.DenseI64ArrayAttr.get([g.first, g.last, g.copies], context=context) for g in layout.groups]
    shared = [ir.DenseI64ArrayAttr.get(list(users), context=context) for users in layout.shared]
    entries = {
        "layers": alpa.i64(layout.layers, context),
        "shared": ir.ArrayAttr.get(shared, context=context),
        "groups": ir.ArrayAttr.get(groups, context=context),
        "cuts": ir.DenseI64ArrayAttr.get(list(layout.cuts), context=context),
    }
    module.operation.attributes[alpa.LAYOUT] = ir.DictAttr.get(entries, context=context)


def count_layers(module: ir.Module) -> int:
    """Number of layers of a level-3 module: the highest `alpa.layer` of @microbatch plus one."""
    body = functions(module)["microbatch"].regions[0].blocks[0]
    return 1 + max((alpa.get_int(op, alpa.LAYER) or 0 for op in body.operations), default=0)


def _spread(group: Group, made: int, used: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """One value once a group has been written out.

    What a copy of the group makes, it and its neighbours use. What is made outside is used by the copy next to it,
    or by all copies alike: so it is if the group and the layers beyond it use it at the same place.
    """
    size, shift = group.size, group.size * group.copies

    def place(layer: int) -> int:
        return layer + shift if layer > group.last else layer

    if group.first <= made <= group.last:
        near = [u for u in used if group.first - size <= u <= group.last + size]
        found = []
        for t in range(group.copies + 1):
            far = [u for u in used if u not in near and (t == 0 if u < group.first else t == group.copies)]
            moved = [u + t * size for u in near] + [place(u) for u in far]
            found.append((made + t * size, tuple(sorted(moved))))
        return found
    below = made < group.first
    inside = [u for u in used if group.first <= u <= group.last]
    places = {place(u) for u in used if u not in inside}
    for u in inside:
        everywhere = (u + size if below else u - size) in used
        places.update(
            u + t * size for t in range(group.copies + 1) if everywhere or t == (0 if below else group.copies)
        )
    return [(place(made), tuple(sorted(places)))]


def _add_ranges(corners: Table, home: int, users: Sequence[int]) -> None:
    """Ranges above `home` that hold a user: counted at the first user from i on, i in (previous user or home, user]."""
    before = home
    for user in users:
        corners[before + 1, user] += 1
        corners[user + 1, user] -= 1
        before = user


def _add_ranges_below(corners: Table, home: int, users: Sequence[int]) -> None:
    """Ranges below `home` that hold a user: j in [user, next user or home), i up to the user."""
    after = home
    for user in reversed(users):
        corners[0, user] += 1
        corners[0, after] -= 1
        corners[user + 1, user] -= 1
        corners[user + 1, after] += 1
        after = user
