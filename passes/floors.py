"""How long a step takes if memory were no object (its *floor*), by the floors of other numbers of microbatches.

Where the number of stages is the same with all of them, floors follow the curve that a pipeline's do (`along`), through
the two nearest that are known. Else stages differ from one number to another, and floors lie between those of their
neighbours; beyond all that are known, where they rose from one number to the next, they rise as much with each further
one; where they fell, by half as much with each.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp2, log2


def floor(count: int, floors: Mapping[int, float], gain: float = 0.0, stages: int = 0) -> float:
    """About the seconds of a step if memory were no object, by those of other numbers of microbatches; 0: unknown.

    `gain`: the part by which they may fall from one number to the next, where it is not known how they do; with one,
    the least that they may be is asked for. `stages`: how many there are with any number of microbatches; 0: not known.
    """
    if count in floors or not floors:
        return floors.get(count, 0.0)
    fewer = sorted((n for n in floors if n < count), reverse=True)
    more = sorted(n for n in floors if n > count)
    if stages:
        known = [fewer[0], more[0]] if fewer and more else (fewer or more)[:2]
        return along(count, {n: floors[n] for n in known}, gain, stages)
    if fewer and more:
        return min(floors[fewer[0]], floors[more[0]])
    return _beyond(count, fewer or more, floors, gain)


def along(count: int, floors: Mapping[int, float], gain: float, stages: int) -> float:
    """The floor of a number of microbatches by one or two others, of so many stages: about

        f(M) = work + fill / M + each · M

    The work of a step is the same however many microbatches it is split into. `fill / M` is how long the pipeline
    fills and drains, of p stages the part (p - 1) / (M + p - 1) of a step with equal stages, else less. `each` is what
    every microbatch costs besides (sums are added to, weights read); 0 where only one floor is known.
    The more there is to fill, the lower the curve between two floors and above them, and the higher below: there, a
    line through both is the least that it may be.
    """
    least, most = min(floors), max(floors)
    below = gain > 0.0 and count < least
    fill = 0.0 if below and least < most else floors[least] * (stages - 1) / (1 + (stages - 1) / least)
    rise = floors[most] - floors[least] + fill * (1 / least - 1 / most)
    each = max(0.0, rise / (most - least)) if least < most else 0.0
    found = floors[least] + fill * (1 / count - 1 / least) + each * (count - least)
    return found * exp2(log2(least / count) * log2(1 - gain)) if below and least == most else found


def _beyond(count: int, nearest: list[int], floors: Mapping[int, float], gain: float) -> float:
    """A floor beyond all that are known, the `nearest` first."""
    near, steps = nearest[0], abs(log2(count / nearest[0]))
    if len(nearest) == 1 or abs(log2(nearest[1] / near)) > 1:
        return floors[near] * exp2(steps * log2(1 - gain))
    rise = floors[near] - floors[nearest[1]]
    return floors[near] + rise * (steps if rise > 0 else 1 - exp2(-steps))
