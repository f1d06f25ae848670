"""The order in which a rank starts its halves of transfers, for transports that match messages by order alone.

Transfers are numbered in one total order of all ranks (`order.total_order`).  When every rank starts its gives and
expects in the order of their numbers, the lowest transfer that is not finished never waits for a higher one: a value
that is sent depends on lower transfers only.  So nothing waits in a circle, even if a device moves one thing at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from alpa_mlir.runtime.actions import Action, Expect, Give, Take


def in_order(actions: Sequence[Action]) -> tuple[Action, ...]:
    """The same with `Expect`s moved, so that all halves of transfers come in the order of their numbers.

    A rank's sends are in that order already, and it receives a transfer only after its own sends of lower numbers.  So
    an `Expect` fits after those, and before the sends of higher numbers.
    """
    rest = [a for a in actions if not isinstance(a, Expect)]
    places: dict[int, tuple[int, Expect]] = {}
    seen = 0
    for action in actions:
        if isinstance(action, Expect):
            places[action.transfer] = (seen, action)
        else:
            seen += 1
    gives = [(i, a.transfer) for i, a in enumerate(rest) if isinstance(a, Give)]
    takes = {a.transfer: i for i, a in enumerate(rest) if isinstance(a, Take)}
    found: dict[int, list[Expect]] = {}
    latest = len(rest)
    for number, (place, expect) in sorted(places.items(), reverse=True):
        least = max((i + 1 for i, n in gives if n <= number), default=0)
        most = min((i for i, n in gives if n > number), default=len(rest))
        latest = min(max(place, least), most, takes[number], latest)
        found.setdefault(latest, []).insert(0, expect)
    return tuple(a for i in range(len(rest) + 1) for a in [*found.get(i, ()), *rest[i : i + 1]])
