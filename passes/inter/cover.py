"""Which of many options are enough: such that for each range of interest one of them is about as good as the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ALIKE = 0.01
"""Options whose steps (or bytes) differ by this part for a range are as good as one another there."""


def enough(figures: Sequence[tuple[Table, Flags]]) -> list[int]:
    """Options of which one is within ALIKE of the best in every entry of interest.

    `figures`: tables [options, …] and which of their entries are of interest.
    """
    good = [wanted & (table <= (1 + ALIKE) * table.min(axis=0)) for table, wanted in figures]
    return _cover(np.concatenate([cells.reshape(len(cells), -1) for cells in good], axis=1))


def _cover(good: Flags) -> list[int]:
    """Rows of which one is good in each column where any is: that which is in most columns left, then the next."""
    found = []
    left = good
    while left.any():
        found.append(int(left.sum(axis=1).argmax()))
        left = left & ~left[found[-1]]
    return found
