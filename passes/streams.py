"""Iterators advanced side by side: what takes long is asked of all of them at once.

A pass says what it wants next of which iterator. Whether that is worked out one after the other or by several
processes is not its business: who plans says so (`working`), as with what is remembered (`memo.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

Maker = Callable[[], Iterator[Any]]


class Streams(Protocol):
    """Some iterators."""

    def advance(self, which: Sequence[int]) -> list[Any]:
        """The next item of each of these, None where there is none."""

    def close(self) -> None:
        """No more is wanted."""


class InOrder:
    """One after the other, here."""

    def __init__(self, makers: Sequence[Maker]) -> None:
        self.makers = makers
        self.iterators: dict[int, Iterator[Any]] = {}

    def advance(self, which: Sequence[int]) -> list[Any]:
        """The next item of each of these, None where there is none."""
        return [next(self._iterator(k), None) for k in which]

    def _iterator(self, number: int) -> Iterator[Any]:
        if number not in self.iterators:
            self.iterators[number] = self.makers[number]()
        return self.iterators[number]

    def close(self) -> None:
        """No more is wanted."""
        self.iterators.clear()


_OPEN: ContextVar[Callable[[Sequence[Maker]], Streams]] = ContextVar("streams", default=InOrder)


@contextmanager
def working(streams: Callable[[Sequence[Maker]], Streams]) -> Iterator[None]:
    """Within this context `side_by_side` advances iterators by `streams`."""
    token = _OPEN.set(streams)
    try:
        yield
    finally:
        _OPEN.reset(token)


@contextmanager
def side_by_side(makers: Sequence[Maker], long: bool = True) -> Iterator[Streams]:
    """The iterators that these make, each made where it is advanced; `long`: it is worth starting processes for."""
    streams = _OPEN.get()(makers) if long else InOrder(makers)
    try:
        yield streams
    finally:
        streams.close()
