"""The tables of the search for stages: what each range of layers costs on each number of devices, as far as known.

An entry is a range of layers with so many microbatches in flight; it takes the cheapest *offer* that fits: a submesh
option under one labelling of the whole program, or between two (`pricing.py`), or its exact cost, once solved. The
tables ask for labellings that hold less as long as ranges of interest do not fit, and run the dynamic program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.inter.cover import enough
from alpa_mlir.passes.inter.dp import Partition, StageChoice, StageTables, Table, partition_layers
from alpa_mlir.passes.inter.in_flight import InFlight
from alpa_mlir.passes.inter.meshes import chain_sizes
from alpa_mlir.passes.inter.pricing import BETWEEN, RangePrices, between
from alpa_mlir.passes.inter.space import Entry, SearchSpace
from alpa_mlir.passes.inter.through import through
from alpa_mlir.passes.streams import side_by_side

GAP = 1e-3
"""Partitions closer than this part of their cost are not told apart."""
SLACK = 0.02
"""Prices that need this part of the memory too much are tried: the exact stage may fit. (Where the partition that
prices find is the result, only if there is none without.)"""
INTEREST = 2.0
"""Ranges with which a step takes this many times the best without memory may stay without a labelling that fits."""


@dataclass(frozen=True, eq=False)
class Offer:
    """The prices of all ranges on one submesh option under one labelling, or between two."""

    option: int
    prices: RangePrices


class Tables:
    """The tables of the dynamic program, one option per number of devices (of each group): the best offer for each
    entry."""

    def __init__(self, search: SearchSpace, stages: Sequence[int], labellings: Mapping[int, int] | None = None) -> None:
        self.search, self.depth = search, search.in_flight.depth(max(stages))
        depth = self.depth
        self.most_layers = search.layers - min(stages) + 1
        """Of a stage."""
        self.limit = search.memory or float(search.cluster.memory)
        """Bytes per device, of the group that has least."""
        self.allowed = 1.0
        """What an entry's price may need, in parts of what its devices have."""
        self.crowded = np.inf
        self.sizes = sorted({self._size(m) for m in search.options})
        """(first device of the group, number of devices)."""
        firsts = [part.first for part in search.cluster.parts]
        self.takes = tuple(tuple(n if first == group else 0 for first in firsts) for group, n in self.sizes)
        """Of which group a size takes how many devices."""
        shape = (depth, search.layers, search.layers, len(self.sizes))
        self.latency: Table = np.full(shape, np.inf)
        self.bottleneck: Table = np.full(shape, np.inf)
        self.choice = np.full(shape, -1, dtype=np.int32)
        self.offers: list[Offer] = []
        self.labellings = dict.fromkeys(search.options, 1)
        """How many labellings were asked for, by option."""
        self.chosen: dict[Entry, RangePrices] = {}
        self.asked: list[tuple[int, int, RangePrices]] = []
        """(option, microbatches in flight, prices without memory) of all options."""
        self.unlimited = np.inf
        """What the best partition would cost if memory were no object."""
        self.through: Table = np.zeros((len(self.sizes), *shape[1:3]))
        """[sizes, i, j]: seconds of a step at least with that range on so many devices (`through.py`)."""
        self.shareable = True
        """Whether the options' sizes add up to the cluster at all."""
        self._collect(stages, labellings or {})
        if not search.rough:
            self.widen()
        for q, i, j, m in search.evaluated:
            self.correct(StageChoice(i, j, m, q + 1))

    def partition(self, stages: Sequence[int]) -> Partition | None:
        """The best partition for the tables as they are; its options are submesh options."""
        found = self._cheapest(self.latency, self.bottleneck, stages)
        if found is None:
            return None
        chosen = [self.choice[c.in_flight - 1, c.first, c.last, c.option] for c in found.stages]
        self.chosen = {
            (c.in_flight - 1, c.first, c.last, self.offers[o].option): self.offers[o].prices
            for c, o in zip(found.stages, chosen, strict=True)
        }
        options = [self.offers[o].option for o in chosen]
        return replace(found, stages=tuple(replace(c, option=m) for c, m in zip(found.stages, options, strict=True)))

    def _size(self, option: int) -> tuple[int, int]:
        return self.search.groups[option].first, self.search.mesh(option).device_count

    def _cheapest(self, latency: Table, bottleneck: Table, stages: Sequence[int]) -> Partition | None:
        """The cheapest partition over all devices; of a mixed cluster, over all of some groups."""
        tables = StageTables(latency, bottleneck, self.takes)
        counts = [part.device_count for part in self.search.cluster.parts]
        best: Partition | None = None
        for used in product((True, False), repeat=len(counts)):
            total = tuple(n if use else 0 for n, use in zip(counts, used, strict=True))
            found = partition_layers(tables, total, stages, GAP) if any(used) else None
            if found is not None and (best is None or found.cost < best.cost):
                best = found
        return best

    def estimate(self, choice: StageChoice) -> RangePrices:
        """The prices under which a stage of the last partition was chosen."""
        return self.chosen[entry(choice)]

    def useful(self) -> list[int]:
        """Options of which one is the best, or within ALIKE of it, for every range with which a step may take up to
        `INTEREST` times the best without memory: as it is, without memory, or where least memory counts."""
        return sorted(self.asked[k][0] for k in self._covering(self._fitting()))

    def _covering(self, fitting: Table | tuple[()]) -> set[int]:
        """Which of those asked for are `useful`; `fitting`: see there, empty: not known yet."""
        steps = np.array([p.repeated * self.search.in_flight.microbatches + p.once for _, _, p in self.asked])
        least = np.array([p.least_memory(f) for _, f, p in self.asked])
        size = np.array([self.sizes.index(self._size(m)) for m, _, _ in self.asked])
        ordered = np.triu(np.ones(steps.shape[1:], dtype=bool))
        found: set[int] = set()
        for n in np.unique(size):
            members = np.flatnonzero(size == n)
            near = ordered & (self.through[n] <= INTEREST * self.unlimited)
            figures = [(steps[members], near), (least[members], near)]
            if len(fitting):
                own = fitting[members]
                figures.insert(0, (own, near & np.isfinite(own) & (own <= INTEREST * self.unlimited)))
            found.update(int(members[k]) for k in enough(figures))
        return found

    def _fitting(self) -> Table:
        """[options asked, q, i, j]: seconds of a step at the best prices of an option that fit; infinite: none do."""
        number = {m: k for k, (m, _, _) in enumerate(self.asked)}
        found: Table = np.full((len(number), self.depth, *self.latency.shape[1:3]), np.inf)
        ordered = np.triu(np.ones(self.latency.shape[1:3], dtype=bool))
        for offer in self.offers:
            prices, best = offer.prices, found[number[offer.option]]
            step = self.search.in_flight.microbatches * prices.repeated + prices.once
            for q in range(self.depth):
                fits = ordered & (prices.memory(self.search.in_flight.at(q + 1)) <= self._room(offer.option))
                best[q] = np.where(fits, np.minimum(best[q], step), best[q])
        return found

    def ahead(self, stages: Sequence[int], times: int) -> float:
        """About what the best partition would cost if there were so many times as many microbatches: at these prices,
        which are those of microbatches that much larger, and with what prices may be wrong by allowed for."""
        flying = replace(self.search.in_flight, microbatches=times * self.search.in_flight.microbatches)
        shape = (flying.depth(max(stages)), *self.latency.shape[1:])
        latency, bottleneck = np.full(shape, np.inf), np.full(shape, np.inf)
        ordered = np.triu(np.ones(shape[1:3], dtype=bool))
        for offer in self.offers:
            size, prices = self.sizes.index(self._size(offer.option)), offer.prices
            repeated = prices.of_smaller(prices.repeated, times)
            wait = flying.wait(prices, times)
            room = self.search.limit(offer.option) * (1 + SLACK)
            for q in range(shape[0]):
                fits = ordered & (prices.memory(flying.at(q + 1), times) <= room)
                _lower(latency[q, :, :, size], bottleneck[q, :, :, size], fits, repeated, wait)
        found = self._cheapest(latency, bottleneck, stages)
        return found.cost if found is not None else np.inf

    def smallest(self, stages: Sequence[int]) -> tuple[float, StageChoice] | None:
        """Bytes per device of the partition whose fullest stage holds least, and that stage; in a mixed cluster scaled
        to the memory of the group that has least."""
        held: Table = np.full_like(self.latency, np.inf)
        option = np.zeros(held.shape, dtype=np.int64)
        ordered = np.triu(np.ones(held.shape[1:3], dtype=bool))
        tightest = [Offer(m, list(self._prices(m))[-1]) for m, _, _ in self.asked]
        for offer in (*self.offers, *tightest):
            size = self.sizes.index(self._size(offer.option))
            scale = self.limit / self.search.limit(offer.option)
            for q in range(self.depth):
                bytes_held = np.where(ordered, scale * offer.prices.memory(self.search.in_flight.at(q + 1)), np.inf)
                less = bytes_held < held[q, :, :, size]
                held[q, :, :, size][less] = bytes_held[less]
                option[q, :, :, size][less] = offer.option
        limits = np.unique(held[np.isfinite(held)])
        low, high, best = 0, len(limits), None
        while low < high:
            middle = (low + high) // 2
            fits = np.where(held <= limits[middle], 0.0, np.inf)
            found = self._cheapest(fits, fits, stages)
            if found is None:
                low = middle + 1
            else:
                high, best = middle, (found, float(limits[middle]))
        if best is None:
            return None
        fullest = max(best[0].stages, key=lambda c: float(held[entry(c)]))
        return best[1], replace(fullest, option=int(option[entry(fullest)]))

    def correct(self, choice: StageChoice) -> None:
        """Take the exact cost of an entry into account."""
        q, i, j, m = entry(choice)
        size = self.sizes.index(self._size(m))
        self.latency[q, i, j, size] = self.bottleneck[q, i, j, size] = np.inf
        best = np.inf
        for number, offer in enumerate(self.offers):
            if self._size(offer.option) != self.sizes[size]:
                continue
            known = self.search.evaluated.get((q, i, j, offer.option))
            if known is None:
                latency = float(offer.prices.repeated[i, j])
                wait = float(self.search.in_flight.wait(offer.prices)[i, j])
                fits = offer.prices.memory(self.search.in_flight.at(q + 1))[i, j] <= self._room(offer.option)
            else:
                latency, fits = known.microbatch_seconds, known.feasible
                wait = self.search.exact_wait(replace(choice, option=offer.option)) if fits else np.inf
            if fits and latency + wait < best:
                best = latency + wait
                self.latency[q, i, j, size] = latency
                self.bottleneck[q, i, j, size] = wait
                self.choice[q, i, j, size] = number

    def _room(self, option: int) -> float:
        """Bytes per device that a price may need."""
        return self.search.limit(option) * self.allowed

    def keep_chains(self) -> None:
        """Within a node only submeshes of sizes that can always be packed."""
        for part in self.search.cluster.parts:
            sizes, within = chain_sizes(part.devices_per_node), part.devices_per_node
            gone = [k for k, (f, n) in enumerate(self.sizes) if f == part.first and n < within and n not in sizes]
            self.latency[..., gone] = self.bottleneck[..., gone] = np.inf

    def widen(self) -> bool:
        """Allow for what prices may be wrong by; False where that was allowed."""
        if self.allowed > 1:
            return False
        self.allowed = 1 + SLACK
        for number, offer in enumerate(self.offers):
            self._fill(number, offer)
        return True

    def _collect(self, stages: Sequence[int], wanted: Mapping[int, int]) -> None:
        """Ask for prices on every option, as long as there are ranges of interest that do not fit, and under as many
        labellings as are `wanted`."""
        search = self.search
        with side_by_side([partial(self._prices, m) for m in search.options]) as streams:
            for m, free in zip(search.options, streams.advance(range(len(search.options))), strict=True):
                self.asked.append((m, self._flying(m), free))
                self.offer(m, free)
            unlimited = self.without_memory(stages, search.in_flight)
            self.shareable = np.isfinite(unlimited)
            if not self.shareable:
                return
            self.unlimited, self.through = unlimited, self._through()
            tight = {k: free for k, (_, _, free) in enumerate(self.asked)}
            left, few = list(tight), self._covering(())
            while left := self._needing_less(left, tight, stages):
                # As long as nothing fits, plans are only compared with fewer of the options that are alike.
                now = [k for k in left if k in few] if search.rough and not self.chosen else left
                if not now:
                    break
                for k, following in zip(list(now), streams.advance(now), strict=True):
                    if following is None:
                        left.remove(k)
                        continue
                    self._follow(tight, k, following)
            option = [m for m, _, _ in self.asked]
            while more := [k for k in tight if self.labellings[option[k]] < wanted.get(option[k], 0)]:
                for k, following in zip(more, streams.advance(more), strict=True):
                    self._follow(tight, k, following)
        for k, prices in tight.items():
            scale = self.limit / search.limit(self.asked[k][0])
            ordered = np.triu(np.ones_like(prices.repeated, dtype=bool))
            least = scale * prices.least_memory(1)[ordered]
            held = np.where(least > self.limit, least, scale * prices.memory(1)[ordered])
            self.crowded = min([*held[held > self.limit].tolist(), self.crowded])

    def _through(self) -> Table:
        """`through` if memory were no object; in a mixed cluster that of the range itself."""
        step: Table = np.full(self.through.shape, np.inf)
        ordered = np.triu(np.ones(step.shape[1:], dtype=bool))
        for m, _, free in self.asked:
            own = step[self.sizes.index(self._size(m))]
            own[ordered] = np.minimum(own, free.repeated + self.search.in_flight.wait(free))[ordered]
        if len(self.search.cluster.parts) > 1:
            return step
        return through(step, np.array([n for _, n in self.sizes]), self.search.cluster.device_count)

    def _flying(self, option: int) -> int:
        """Microbatches in flight that prices on an option reckon with."""
        return self.search.in_flight.at(self._stages_left(option))

    def _stages_left(self, option: int) -> int:
        """Stages from one on an option to the end that prices reckon with: as in a pipeline of such submeshes."""
        stages = self.search.cluster.device_count // self.search.mesh(option).device_count
        return max(1, min(self.depth, stages))

    def _prices(self, option: int) -> Iterator[RangePrices]:
        search = self.search
        mesh, group = search.mesh(option), search.groups[option]
        share = mesh.device_count / search.cluster.device_count
        return search.pricer.prices(mesh, self._flying(option), share, group)

    def _needing_less(self, options: Sequence[int], tight: dict[int, RangePrices], stages: Sequence[int]) -> list[int]:
        """Those of the options on which a range of interest does not fit at the last prices, but may, and would cost
        less than what fits on as many devices and than the best partition that fits."""
        most = INTEREST * self.unlimited
        needing = [k for k in options if self._needs_less(k, tight[k], most)]
        found = self.partition(stages) if needing else None
        if found is not None and self.search.place(found) is not None:
            needing = [k for k in needing if self._needs_less(k, tight[k], min(most, found.cost))]
        return needing

    def _needs_less(self, number: int, tight: RangePrices, most: float) -> bool:
        option, in_flight, free = self.asked[number]
        limit = self.search.limit(option)
        step = free.repeated + self.search.in_flight.wait(free)
        row, size = self._stages_left(option) - 1, self.sizes.index(self._size(option))
        known = self.latency[row, :, :, size] + self.bottleneck[row, :, :, size]
        ordered = np.triu(np.ones_like(step, dtype=bool))
        wanted = ordered & (step <= np.minimum(most, (1 - GAP) * known)) & (free.least_memory(in_flight) <= limit)
        return bool((tight.memory(in_flight)[wanted] > limit).any())

    def without_memory(self, stages: Sequence[int], flying: InFlight) -> float:
        """What the best partition would cost if memory were no object; infinite where there is none."""
        shape = (1, *self.latency.shape[1:])
        latency, bottleneck = np.full(shape, np.inf), np.full(shape, np.inf)
        for m, _, free in self.asked:
            size, wait = self.sizes.index(self._size(m)), flying.wait(free)
            _lower(latency[0, :, :, size], bottleneck[0, :, :, size], np.isfinite(wait), free.repeated, wait)
        found = self._cheapest(latency, bottleneck, stages)
        return found.cost if found is not None else np.inf

    def longest(self, option: int, best: float) -> int:
        """Layers of the longest range of interest on as many devices as an option has; `best`: seconds of a step."""
        if not np.isfinite(best):
            return self.most_layers
        first, last = np.nonzero(self.through[self.sizes.index(self._size(option))] <= INTEREST * best)
        return min(self.most_layers, int((last - first).max(initial=-1)) + 1)

    def _follow(self, tight: dict[int, RangePrices], number: int, following: RangePrices) -> None:
        """Take the next labelling on an option, by its number, into account, and what is between it and the one before:
        that in `tight`, whose place it takes."""
        option = self.asked[number][0]
        for part in BETWEEN:
            self.offer(option, between(tight[number], following, part))
        self.offer(option, following)
        self.labellings[option] += 1
        tight[number] = following

    def offer(self, option: int, prices: RangePrices) -> None:
        """Take prices on an option into account."""
        self.offers.append(Offer(option, prices))
        self._fill(len(self.offers) - 1, self.offers[-1])

    def _fill(self, number: int, offer: Offer) -> None:
        """Put an offer into the entries where it is the best that fits."""
        search, prices = self.search, offer.prices
        size = self.sizes.index(self._size(offer.option))
        bottleneck = search.in_flight.wait(prices)
        ordered = np.triu(np.ones_like(bottleneck, dtype=bool))
        for q in range(self.depth):
            fits = ordered & (prices.memory(search.in_flight.at(q + 1)) <= self._room(offer.option))
            old = self.latency[q, :, :, size], self.bottleneck[q, :, :, size]
            self.choice[q, :, :, size][_lower(*old, fits, prices.repeated, bottleneck)] = number


def entry(choice: StageChoice) -> Entry:
    """The entry of the tables that a chosen stage is."""
    return (choice.in_flight - 1, choice.first, choice.last, choice.option)


def _lower(
    latency: Table, bottleneck: Table, fits: npt.NDArray[np.bool_], repeated: Table, wait: Table
) -> npt.NDArray[np.bool_]:
    """Put in what fits and costs less than what is there; where that was."""
    better: npt.NDArray[np.bool_] = fits & (repeated + wait < latency + bottleneck)
    latency[better], bottleneck[better] = repeated[better], wait[better]
    return better
