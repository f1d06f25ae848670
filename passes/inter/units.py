"""Runs put together into units: the range of a program in which it is the same, layer after layer.

That two ops are alike does not say that they do the same thing: their operands count too. The copies of the
longest run are numbered; the other runs are given a direction (the backward pass runs down) and an offset by
following the data from runs that have their numbers to runs that have not. All ops of one number are a *unit*.

The step τ from unit u to unit u+1 maps ops, their results, and the arguments that they read. It is *sound*
between two units if every op of u has an image, every op of u+1 is one, and each operand of an image is the
image of the op's operand, or the very same value (what all layers share).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alpa_mlir.passes.inter.listing import Ids, Listing, Run, find_runs

NONE = -1


@dataclass(frozen=True, eq=False)
class Units:
    """`unit[t]` of op t (-1: none), `after[t]` its image under τ; `argument_unit`, `argument_after` of arguments.

    τ is sound between all neighbours among the units `low` … `high`.
    """

    listing: Listing
    unit: Ids
    after: Ids
    argument_unit: Ids
    argument_after: Ids
    low: int
    high: int

    def value_unit(self, values: Ids) -> Ids:
        """The units of values."""
        maker = self.listing.maker[values]
        return np.where(maker >= 0, self.unit[maker], self._of_arguments(self.argument_unit, values))

    def value_after(self, values: Ids) -> Ids:
        """The images of values under τ (-1: none)."""
        maker = self.listing.maker[values]
        image = self.after[maker]
        first = self.listing.first
        moved = np.where(image >= 0, values - first[maker] + first[image], NONE)
        return np.where(maker >= 0, moved, self._of_arguments(self.argument_after, values))

    def _of_arguments(self, table: Ids, values: Ids) -> Ids:
        if not len(table):
            return np.full(len(values), NONE)
        return table[np.minimum(values, len(table) - 1)]


def find_units(listing: Listing) -> Units | None:
    """The units of a block; None where it does not repeat itself."""
    runs = find_runs(listing.signature)
    while runs:
        aligned = _Alignment(listing, runs)
        units = aligned.units()
        unsound = _unsound(units)
        bad = aligned.spoilt(unsound)
        if not bad:
            low, high = _longest(unsound, units)
            return Units(listing, units.unit, units.after, units.argument_unit, units.argument_after, low, high)
        runs = [run for run in runs if run not in bad]
    return None


class _Alignment:
    """Directions and offsets of runs, found from the longest one outwards."""

    def __init__(self, listing: Listing, runs: list[Run]) -> None:
        self.listing, self.runs = listing, runs
        count = len(listing.ops)
        self.run = np.full(count, NONE)
        self.copy = np.zeros(count, dtype=np.int64)
        self.place = np.zeros(count, dtype=np.int64)
        for number, run in enumerate(runs):
            here = np.arange(run.first, run.end)
            self.run[here] = number
            self.copy[here], self.place[here] = np.divmod(here - run.first, run.period)
        self.reader = np.repeat(np.arange(count), np.diff(listing.start))
        self.slot = np.arange(len(listing.operands)) - listing.start[self.reader]
        self.source = listing.maker[listing.operands]
        self.argument_unit = np.full(listing.arguments, NONE)
        self.argument_after = np.full(listing.arguments, NONE)
        self.direction: dict[int, int] = {}
        self.offset: dict[int, int] = {}
        self._set(max(range(len(runs)), key=lambda r: (runs[r].end - runs[r].first, -r)), 1, 0)
        while any(self._place(r) for r in range(len(runs)) if r not in self.direction):
            pass

    def _set(self, run: int, direction: int, offset: int) -> None:
        self.direction[run], self.offset[run] = direction, offset
        reads = np.flatnonzero((self.run[self.reader] == run) & (self.source < 0))
        if not reads.size:
            return
        # Arguments that one place of the run reads, copy after copy: different ones belong to their copies.
        order = np.lexsort((self.copy[self.reader[reads]], self.slot[reads], self.place[self.reader[reads]]))
        reads = reads[order]
        t, value = self.reader[reads], self.listing.operands[reads]
        same = (self.place[t][1:] == self.place[t][:-1]) & (self.slot[reads][1:] == self.slot[reads][:-1])
        step = same & (value[1:] != value[:-1]) & (self.copy[t][1:] == self.copy[t][:-1] + 1)
        left, right = np.flatnonzero(step), np.flatnonzero(step) + 1
        if direction < 0:
            left, right = right, left
        unit = direction * self.copy[t] + offset
        for side, numbers in ((left, unit[left]), (right, unit[right])):
            fresh = self.argument_unit[value[side]] == NONE
            self.argument_unit[value[side][fresh]] = numbers[fresh]
        agree = (self.argument_unit[value[left]] == unit[left]) & (self.argument_unit[value[right]] == unit[right])
        self.argument_after[value[left][agree]] = value[right][agree]

    def _place(self, run: int) -> bool:
        """Give a run its direction and offset, if data joins it to runs that have theirs."""
        copies, units, keys = self._links(run)
        if not copies.size:
            return False
        order = np.lexsort((copies, keys))
        copies, units, keys = copies[order], units[order], keys[order]
        next_copy = (keys[1:] == keys[:-1]) & (copies[1:] == copies[:-1] + 1)
        slope = np.diff(units)[next_copy]
        ups, downs = int((slope == 1).sum()), int((slope == -1).sum())
        if not ups + downs:
            return False
        direction = 1 if ups >= downs else -1
        joined = np.flatnonzero(next_copy & (np.diff(units) == direction))
        offsets, counts = np.unique(units[joined] - direction * copies[joined], return_counts=True)
        self._set(run, direction, int(offsets[int(np.argmax(counts))]))
        return True

    def _links(self, run: int) -> tuple[Ids, Ids, Ids]:
        """(copy in the run, unit of what it reads or what reads it, key of the place) of all links to known units."""
        unit = self._unit()
        listing = self.listing
        inner = self.run[self.reader] == run
        from_op = inner & (self.source >= 0) & (unit[self.source] != NONE)
        arguments = np.where(self.source < 0, listing.operands, 0)
        known = self.argument_unit[arguments] if listing.arguments else np.full(len(arguments), NONE)
        from_argument = inner & (self.source < 0) & (known != NONE)
        into = (self.source >= 0) & (self.run[self.source] == run) & (unit[self.reader] != NONE)
        t = self.reader
        key = self.place[t] * 64 + np.minimum(self.slot, 63)
        parts = [
            (self.copy[t[from_op]], unit[self.source[from_op]], key[from_op] * 3),
            (self.copy[t[from_argument]], known[from_argument], key[from_argument] * 3 + 1),
            (self.copy[self.source[into]], unit[t[into]], (self.place[self.source[into]] << 40) + key[into] * 3 + 2),
        ]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    def _unit(self) -> Ids:
        unit = np.full(len(self.listing.ops), NONE)
        for run in self.direction:
            here = np.arange(self.runs[run].first, self.runs[run].end)
            unit[here] = self.direction[run] * self.copy[here] + self.offset[run]
        return unit

    def units(self) -> Units:
        """What has been found, before its soundness is known; all numbers are at least 0."""
        unit, after = self._unit(), np.full(len(self.listing.ops), NONE)
        known = self.run >= 0
        for number in range(len(self.runs)):
            if number not in self.direction:
                known &= self.run != number
        lowest = int(unit[known].min(initial=0))
        for run, direction in self.direction.items():
            first, end, period = self.runs[run].first, self.runs[run].end, self.runs[run].period
            here = np.arange(first, end)
            image = here + direction * period
            after[here] = np.where((image >= first) & (image < end), image, NONE)
        unit = np.where(known, unit - lowest, NONE)
        argument = np.where(self.argument_unit != NONE, self.argument_unit - lowest, NONE)
        return Units(self.listing, unit, after, argument, self.argument_after, 0, 0)

    def spoilt(self, unsound: Ids) -> list[Run]:
        """Runs whose steps are sound in less than half of their copies in a row, and those that nothing joins."""
        found = [run for number, run in enumerate(self.runs) if number not in self.direction]
        for number in sorted(self.direction):
            run = self.runs[number]
            copies = -(-(run.end - run.first) // run.period)
            bad = np.unique(self.copy[unsound[(unsound >= run.first) & (unsound < run.end)]])
            if 2 * int(np.diff(bad, prepend=-1, append=copies).max()) < copies:
                found.append(run)
        return found


def _unsound(units: Units) -> Ids:
    """Ops with an image whose operands are not the images of theirs, nor the same."""
    listing = units.listing
    t = np.repeat(np.arange(len(listing.ops)), np.diff(listing.start))
    image = units.after[t]
    inside = np.flatnonzero(image >= 0)
    place = np.arange(len(listing.operands)) - listing.start[t]
    mine = listing.operands[inside]
    theirs = listing.operands[listing.start[image[inside]] + place[inside]]
    wrong = (theirs != mine) & (theirs != units.value_after(mine))
    return np.unique(t[inside[wrong]])


def _longest(unsound: Ids, units: Units) -> tuple[int, int]:
    """The longest range of units between which τ is sound (low > high: none)."""
    unit, after = units.unit, units.after
    count = int(unit.max(initial=-1)) + 1
    broken = np.zeros(count + 1, dtype=bool)
    broken[[0, count]] = True
    inside = unit >= 0
    broken[unit[inside & (after < 0)] + 1] = True
    broken[unit[unsound] + 1] = True
    reached = np.zeros(len(unit), dtype=bool)
    reached[after[after >= 0]] = True
    broken[unit[inside & ~reached]] = True
    borders = np.flatnonzero(broken)
    widest = int(np.argmax(np.diff(borders))) if len(borders) > 1 else 0
    if len(borders) < 2:
        return 0, -1
    return int(borders[widest]), int(borders[widest + 1]) - 1
