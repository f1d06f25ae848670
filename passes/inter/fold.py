"""A program of many equal layers made small: all but a few of the equal layers taken out.

Between the units `low` … `high` of a stack (`units.py`) the program is shift-invariant, so the units m+1 … m+n can
be cut out and what is left joined: an op that read a value of a unit that is gone reads the value's image under
τⁿ (or τ⁻ⁿ) instead. What remains is a complete program of the same kind with n layers less: passes and cost models
work on it as on any other. Ops of unit m carry `alpa.repeats = n`: each stands for 1+n of the whole program. Stacks
are folded one after the other until nothing repeats.

A fold serves to *decide*; the whole program is what is planned and run. So a stack for which a rule does not hold
stays as it is:

    (F1) what is not of a unit reads nothing that is cut out
    (F2) a value of a unit is read within half of the kept units of it, by the image rule, or by all units alike
    (F3) a result that replaces an argument of a unit counts as read by that unit; all others read nothing that goes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, func, functions
from alpa_mlir.dialect.sharding import (
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)
from alpa_mlir.passes.inter.listing import Ids, Listing, list_block
from alpa_mlir.passes.inter.units import NONE, Units, find_units

KEPT = 4
"""Sound units that stay of each stack: enough that a layer in the middle sees only equal neighbours."""


def fold(module: ir.Module) -> ir.Module:
    """A level-1 program with its repeated layers folded; the module itself where nothing repeats."""
    while True:
        smaller = _fold_once(module)
        if smaller is None:
            return module
        module = smaller


@dataclass(frozen=True, eq=False)
class _Cut:
    """What goes (flags of ops and arguments), what is read instead (op, operand, value), the values returned, and
    the ops of the unit that stands for `copies` more."""

    listing: Listing
    ops: npt.NDArray[np.bool_]
    arguments: npt.NDArray[np.bool_]
    joints: tuple[tuple[int, int, int], ...]
    returned: tuple[int, ...]
    repeated: Ids
    copies: int


def _fold_once(module: ir.Module) -> ir.Module | None:
    main = functions(module)["main"]
    listing = list_block(main.regions[0].blocks[0])
    units = find_units(listing)
    if units is None or units.high - units.low < KEPT:
        return None
    cut = _plan_cut(units, _replaced(main))
    return _without(module, cut) if cut is not None else None


def _replaced(main: ir.Operation) -> Ids:
    """For each argument the result that replaces it (-1: none)."""
    entries = argument_attributes(main)
    return np.array([int(ir.IntegerAttr(e[alpa.UPDATES]).value) if alpa.UPDATES in e else NONE for e in entries])


def _plan_cut(units: Units, replaced: Ids) -> _Cut | None:
    """The cut, or None where a rule (F1 to F3) forbids it."""
    listing = units.listing
    last = units.low + KEPT // 2 - 1
    copies = units.high - units.low + 1 - KEPT

    def gone(unit: Ids) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (unit > last) & (unit <= last + copies)
        return found

    ops, arguments = gone(units.unit), gone(units.argument_unit)
    reader = np.repeat(np.arange(len(listing.ops)), np.diff(listing.start))
    stale = np.flatnonzero(gone(units.value_unit(listing.operands)) & ~ops[reader])
    step = _Step.of(units, last, copies, KEPT // 2)
    joints = step.joints(reader[stale], stale)
    returned = step.returned(replaced, arguments)
    if joints is None or returned is None:
        return None
    return _Cut(listing, ops, arguments, joints, returned, np.flatnonzero(units.unit == last), copies)


@dataclass(frozen=True, eq=False)
class _Step:
    """τ and its inverse on ops and values, and τ to the power of `copies` up to unit `last`, of -`copies` beyond."""

    units: Units
    after: Ids
    before: Ids
    value_after: Ids
    value_before: Ids
    last: int
    copies: int
    near: int
    """How far from its own unit a value may be read."""

    @staticmethod
    def of(units: Units, last: int, copies: int, near: int) -> _Step:
        """The step of sound units."""
        image = units.value_after(np.arange(len(units.listing.maker)))
        return _Step(units, units.after, _inverse(units.after), image, _inverse(image), last, copies, near)

    def joints(self, reader: Ids, where: Ids) -> tuple[tuple[int, int, int], ...] | None:
        """(op, operand, value read instead) for operands (numbers `where`) that go; None where F1 or F2 is broken."""
        listing, unit = self.units.listing, self.units.unit[reader]
        values, place = listing.operands[where], where - listing.start[reader]
        captured = place >= np.array([len(listing.ops[t].operands) for t in reader.tolist()], dtype=np.int64)
        neighbour = np.where(unit <= self.last, self.after[reader], self.before[reader])
        if (neighbour < 0).any() or captured.any():
            return None
        new = self._moved(values, listing.operands[listing.start[neighbour] + place], unit)
        return None if new is None else tuple(zip(reader.tolist(), place.tolist(), new.tolist(), strict=True))

    def returned(self, replaced: Ids, arguments: npt.NDArray[np.bool_]) -> tuple[int, ...] | None:
        """The values returned after the cut; None where F3 is broken."""
        units, listing = self.units, self.units.listing
        owner = np.full(len(listing.returned), NONE)
        owner[replaced[replaced != NONE]] = np.flatnonzero(replaced != NONE)
        kept = np.flatnonzero((owner < 0) | ~arguments[owner])
        values, unit = listing.returned[kept].copy(), np.where(owner >= 0, units.argument_unit[owner], NONE)[kept]
        of_value = units.value_unit(values)
        stale = np.flatnonzero((of_value > self.last) & (of_value <= self.last + self.copies))
        below = unit[stale] <= self.last
        neighbour = np.where(
            below, units.argument_after[owner[kept][stale]], self._argument_before()[owner[kept][stale]]
        )
        if stale.size and ((unit[stale] < 0).any() or (neighbour < 0).any() or (replaced[neighbour] < 0).any()):
            return None
        moved = self._moved(values[stale], listing.returned[replaced[neighbour]], unit[stale])
        if moved is None:
            return None
        values[stale] = moved
        return tuple(values.tolist())

    def _argument_before(self) -> Ids:
        return _inverse(self.units.argument_after)

    def _moved(self, values: Ids, neighbours: Ids, unit: Ids) -> Ids | None:
        """The images of values under τ^±copies, read in `unit`; None where F2 is broken (`neighbours`: what the
        readers' images one step on read: their own value's image, and not the same value)."""
        below = unit <= self.last
        distance = abs(unit - self.units.value_unit(values))
        step = np.where(below, self.value_after[values], self.value_before[values])
        low, high = self.units.low, self.units.high
        if ((unit < low) | (unit > high) | (distance > self.near) | (step != neighbours)).any():
            return None
        for _ in range(self.copies):
            values = np.where(below, self.value_after[values], self.value_before[values])
            if (values < 0).any():
                return None
        return values


def _inverse(image: Ids) -> Ids:
    before = np.full(len(image), NONE)
    before[image[image >= 0]] = np.flatnonzero(image >= 0)
    return before


def _without(module: ir.Module, cut: _Cut) -> ir.Module:
    """A copy of the module after the cut."""
    copy = clone_module(module)
    main = functions(copy)["main"]
    block = main.regions[0].blocks[0]
    ops = [view.operation for view in block.operations]
    value = _Values(block, ops, cut.listing)
    for t, operand, new in cut.joints:
        ops[t].operands[operand] = value.of(new)
    repeats = alpa.i64(cut.copies, copy.context)
    for t in cut.repeated.tolist():
        ops[t].attributes[alpa.REPEATS] = repeats
    returned = [value.of(v) for v in cut.returned]
    with ir.InsertionPoint(ops[-1]), ops[-1].location:
        func.ReturnOp(returned)
    ops[-1].erase()
    for t in np.flatnonzero(cut.ops)[::-1].tolist():
        ops[t].erase()
    _shorten(main, block, cut)
    return copy


@dataclass(frozen=True, eq=False)
class _Values:
    """The values of a block by their numbers in its listing."""

    block: ir.Block
    ops: list[ir.Operation]
    listing: Listing

    def of(self, number: int) -> ir.Value:
        """The value of a number."""
        maker = int(self.listing.maker[number])
        if maker < 0:
            return self.block.arguments[number]
        return self.ops[maker].results[number - int(self.listing.first[maker])]


def _shorten(main: ir.Operation, block: ir.Block, cut: _Cut) -> None:
    """Arguments, results and their attributes without those that go."""
    entries, leaving = argument_attributes(main), result_attributes(main)
    gone = {
        int(ir.IntegerAttr(entries[a][alpa.UPDATES]).value)
        for a in np.flatnonzero(cut.arguments).tolist()
        if alpa.UPDATES in entries[a]
    }
    stay = [r for r in range(len(leaving)) if r not in gone]
    place = {r: alpa.i64(n, main.context) for n, r in enumerate(stay)}
    for number in np.flatnonzero(cut.arguments)[::-1].tolist():
        block.erase_argument(number)
        del entries[number]
    for entry in entries:
        if alpa.UPDATES in entry:
            entry[alpa.UPDATES] = place[int(ir.IntegerAttr(entry[alpa.UPDATES]).value)]
    inputs = [argument.type for argument in block.arguments]
    outputs = [v.type for v in list(block.operations)[-1].operation.operands]
    kind = ir.FunctionType.get(inputs, outputs, context=main.context)
    main.attributes["function_type"] = ir.TypeAttr.get(kind, context=main.context)
    set_argument_attributes(main, entries)
    set_result_attributes(main, [leaving[r] for r in stay])
