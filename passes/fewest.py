"""The fewest microbatches that fit in memory, looked for by what those need that do not.

A part of what a step needs is the same for all numbers of microbatches (state, sums), the rest is shared among them:
about a + b/M bytes. Two numbers that did not fit give a and b, and with them which numbers need not be tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

LEEWAY = 0.1
"""A number is passed over where it is expected to need more than the memory by this part."""


def expected_bytes(needs: Mapping[int, float], count: int) -> float:
    """Bytes that a number of microbatches needs, by the two largest of which that is known; 0 where less is known."""
    if len(needs) < 2:
        return 0.0
    (m, low), (n, high) = sorted(needs.items())[-2:]
    shared = max(0.0, (low - high) / (1 / m - 1 / n))
    return high + shared * (1 / count - 1 / n)


def is_too_large(needs: Mapping[int, float], count: int, memory: float) -> bool:
    """Whether a number is expected to need more than the memory by LEEWAY."""
    return expected_bytes(needs, count) > (1 + LEEWAY) * memory


class Hunt:
    """Numbers of microbatches to try, one after the other; the outcome of each is told before the next is asked for."""

    def __init__(self, counts: Sequence[int], memory: float) -> None:
        self._untried, self._memory = sorted(counts), memory
        self._needs: dict[int, float] = {}
        self._last: int | None = None

    def needs(self, count: int, least: float) -> None:
        """A number that does not fit, and the bytes that would do; one microbatch has no sums and tells nothing."""
        if isfinite(least) and count > 1:
            self._needs[count] = least
        if count == self._last:
            self._untried.clear()

    def next(self) -> int | None:
        """The smallest number that may fit; where none seems to, the largest, and that is the last if it says so."""
        if not self._untried:
            return None
        expected = [c for c in self._untried if not is_too_large(self._needs, c, self._memory)]
        found = expected[0] if expected else self._untried[-1]
        self._last = None if expected else found
        self._untried.remove(found)
        return found
