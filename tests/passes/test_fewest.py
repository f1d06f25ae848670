"""The fewest microbatches that fit: all that fit are found, and few are tried."""

from __future__ import annotations

import pytest

from alpa_mlir.passes.fewest import Hunt

COUNTS = [2**k for k in range(11)]


def hunted(memory: float, always: float, shared: float) -> list[int]:
    """The numbers that are tried, up to the first that fits."""
    hunt, tried = Hunt(COUNTS, memory), []
    while (count := hunt.next()) is not None:
        tried.append(count)
        needed = always + shared / count
        if needed <= memory:
            break
        hunt.needs(count, needed)
    return tried


@pytest.mark.parametrize("fits", COUNTS[1:])
def test_the_fewest_that_fit_are_found(fits: int) -> None:
    tried = hunted(1000.0, 500.0, 500.0 * fits)
    assert tried[-1] == fits
    assert len(tried) <= 6


def test_where_none_fits_that_is_known_soon() -> None:
    assert hunted(1000.0, 2000.0, 8000.0) == [1, 2, 4, 1024]


def test_where_nothing_is_known_all_are_tried() -> None:
    hunt = Hunt([1, 2, 4], 10.0)
    found = []
    while (count := hunt.next()) is not None:
        found.append(count)
        hunt.needs(count, float("inf"))
    assert found == [1, 2, 4]


def test_the_largest_that_is_impossible_for_another_reason_is_not_the_last() -> None:
    hunt = Hunt([2, 4, 8, 16, 32], 10.0)
    for least in (100.0, 90.0):
        hunt.needs(hunt.next() or 0, least)
    assert [hunt.next(), hunt.next()] == [32, 16]
