"""Rematerialisation stage by stage: prices of ranges of layers of which only the first run again.

A stage with s stages from itself to the end holds s microbatches under 1F1B: late stages may keep activations where
early ones must make them again. From the prices X of all ranges without rematerialisation (x⁰) and of all layers (x¹),
those of layers i … j of which the first r run again follow, as both are sums over layers:

    x[i, j; r] = x¹[i, j] + x⁰[i + r, j] - x¹[i + r, j]

but for what arrives over a range's borders: as for its first layers from below, as for its last ones from above.
It is the first that run again: then what the last ones keep is gone before the first are made. So while a microbatch
works, layers hold what they would if none, or if all ran again, at most: the larger of both.
The dynamic program takes for every range the r that is quickest within memory (`tables.py`, as another offer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest

import numpy as np

from alpa_mlir.passes.inter.layout import Table
from alpa_mlir.passes.inter.pricing import RangePrices
from alpa_mlir.passes.inter.skeleton import PARTS
from alpa_mlir.passes.inter.tables import Tables

ADDED = tuple(f.name for f in fields(RangePrices) if f.name != "working")
CONTINUED = {"kept": "continued", "least_kept": "least_continued"}
"""What to take of layers behind others in one stage."""


@dataclass(frozen=True, eq=False)
class Mixed(RangePrices):
    """Prices of ranges whose first `again` layers run again; infinite for ranges that have no more layers."""

    again: int


def mixed(kept: RangePrices, repeated: RangePrices, again: int) -> Mixed:
    """From prices without rematerialisation and of all layers, on one mesh."""
    layers = len(kept.stored)
    rest = slice(0, layers - again), slice(again, layers)
    impossible = ~np.triu(np.ones((layers, layers), dtype=bool), again)

    def added(name: str) -> Table:
        behind = CONTINUED.get(name, name)
        none, full = getattr(kept, behind), getattr(repeated, behind)
        found: Table = getattr(repeated if again else kept, name).copy()
        if again:
            found[..., rest[0], :] += none[..., rest[1], :] - full[..., rest[1], :]
        found[..., impossible] = np.inf
        return found

    working = np.maximum(kept.working, repeated.working) if again else kept.working
    values = {name: added(name) for name in ADDED}
    for part, rows in (("receive_forward", repeated if again else kept), ("receive_backward", kept)):
        number = PARTS.index(part)
        values["seconds"][number] = np.where(impossible, np.inf, rows.seconds[number])
    return Mixed(**values, working=np.where(impossible, np.inf, working), again=again)


def mixtures(kept: Sequence[RangePrices], repeated: Sequence[RangePrices], longest: int) -> Iterator[Mixed]:
    """What is between prices without rematerialisation and those of all layers, on one mesh, for ranges of at most so
    many layers: the first of both, the second of both, …; the last of those of which there are fewer again and again.
    """
    for without, every in zip_longest(kept, repeated):
        none, full = without or kept[-1], every or repeated[-1]
        yield from (mixed(none, full, again) for again in range(longest))


def offer_mixtures(table: Tables, kept: Tables) -> None:
    """Offer what is between the prices of two tables of the same layers: `table`, all of which run again, and `kept`,
    none of which do. Ranges without interest even where none does are left out."""
    for option in table.search.options:
        none, full = ([o.prices for o in t.offers if o.option == option] for t in (kept, table))
        for prices in mixtures(none, full, kept.longest(option, table.unlimited)):
            table.offer(option, prices)


def layers_again(prices: RangePrices, first: int, last: int) -> range:
    """Which of the layers first … last run again where they were chosen at these prices."""
    return range(first, first + prices.again if isinstance(prices, Mixed) else last + 1)
