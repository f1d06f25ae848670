"""Compile a loop over arrays with numba, and keep the machine code where there is a place for it.

Without fast-math: sums keep their order, so every machine gets the same numbers. Where neither the folder of
the source nor the user's cache folder can be written, numba refuses to cache; the loop is then compiled anew in
each process, which takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(function: Loop) -> Loop:
    """The function as machine code, compiled at its first call."""
    try:
        made: Loop = numba.njit(cache=True)(function)
    except RuntimeError:
        made = numba.njit(function)
    return made
