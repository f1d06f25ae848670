"""What prices of a setting are wrong by, learnt from those whose stages were solved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

DOUBT = 0.15
"""The part by which a setting of another kind than those solved is expected to take longer than at prices, at most."""


class Kind(NamedTuple):
    """What settings have in common whose prices are wrong alike: whether layers run again, whether memory is tight,
    whether stages are interleaved, whether there are several at all."""

    again: bool
    tight: bool
    interleaved: bool
    several: bool = True


@dataclass
class Corrections:
    """How many times as long as at prices the step of a setting is whose stages were solved, by its kind."""

    longer: dict[Kind, float] = field(default_factory=dict)

    def note(self, kind: Kind, longer: float) -> None:
        """Note what a setting of a kind showed."""
        self.longer[kind] = longer

    def knows(self, kind: Kind) -> bool:
        """Whether a setting of a kind was solved."""
        return kind in self.longer

    def of(self, kind: Kind) -> float:
        """By how much a step is longer than at prices: as one of its kind that was solved, else as any that is
        interleaved or not as it is, up to DOUBT."""
        known = [longer for other, longer in self.longer.items() if other.interleaved == kind.interleaved]
        return self.longer.get(kind, min([*known, 1 + DOUBT]) if known else 1.0)
