"""Conditions on strategies, and what is left of a list of strategies under several of them.

A rule is a small value with content (equal ops under equal rules share one set of strategies). A *soft* rule
says how an axis should be used "where that is possible": where no strategy of an op obeys it by itself, it
does not hold there. The others are what users pinned: where no strategy obeys them all, the least set of
rules that clash is named.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol, TypeVar

from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.intra.constraints import Constraint, Pattern, Pin


class Described(Protocol):
    """What a rule looks at: axes per factor and the shardings of the results."""

    @property
    def factor_axes(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def results(self) -> tuple[Sharding, ...]: ...


S = TypeVar("S", bound=Described)


@dataclass(frozen=True)
class Rule(ABC):
    """A condition on strategies; `said` is the constraint that it comes from."""

    said: Constraint = field(compare=False, repr=False)

    @property
    def soft(self) -> bool:
        """Whether the rule holds only where some strategy obeys it."""
        return not isinstance(self.said, Pin) or self.said.written

    @abstractmethod
    def allows(self, strategy: Described) -> bool:
        """Whether a strategy obeys."""

    def possible(self, strategies: Sequence[Described]) -> bool:
        """Whether what the rule wants is to be had among strategies."""
        return any(self.allows(s) for s in strategies)


@dataclass(frozen=True)
class ResultLike(Rule):
    """Result `index` is sharded as a user wants it."""

    index: int
    pattern: Pattern

    def allows(self, strategy: Described) -> bool:
        return self.pattern.allows(strategy.results[self.index])


@dataclass(frozen=True)
class OnFactors(Rule):
    """The axis lies on one of these factors."""

    axis: str
    factors: tuple[int, ...]

    def allows(self, strategy: Described) -> bool:
        return any(self.axis in strategy.factor_axes[f] for f in self.factors)


@dataclass(frozen=True)
class OffFactors(Rule):
    """The axis lies on none of these factors."""

    axis: str
    factors: tuple[int, ...]

    def allows(self, strategy: Described) -> bool:
        return not any(self.axis in strategy.factor_axes[f] for f in self.factors)


@dataclass(frozen=True)
class Working(Rule):
    """The axis lies on some factor: the work is split over it."""

    axis: str

    def allows(self, strategy: Described) -> bool:
        return any(self.axis in axes for axes in strategy.factor_axes)


@dataclass(frozen=True)
class OutOfResults(Rule):
    """No result is split over the axis."""

    axis: str

    def allows(self, strategy: Described) -> bool:
        return not any(self.axis in s.axes for s in strategy.results)


@dataclass(frozen=True)
class InResults(Rule):
    """Every result is split over the axis, or not yet summed over it; possible where it can be split in the end."""

    axis: str

    def allows(self, strategy: Described) -> bool:
        return all(self.axis in (*s.axes, *s.partial) for s in strategy.results)

    def possible(self, strategies: Sequence[Described]) -> bool:
        return any(all(self.axis in r.axes for r in s.results) for s in strategies)


@dataclass(frozen=True)
class OnDimension(Rule):
    """A value is split over the axis in one dimension."""

    axis: str
    dim: int

    def allows(self, strategy: Described) -> bool:
        return self.axis in strategy.results[0].dims[self.dim]


@dataclass(frozen=True)
class OffDimension(Rule):
    """A value is not split over the axis in one dimension."""

    axis: str
    dim: int

    def allows(self, strategy: Described) -> bool:
        return self.axis not in strategy.results[0].dims[self.dim]


Rules = tuple[Rule, ...]


def holding(strategies: Sequence[Described], rules: Rules) -> Rules:
    """The rules without soft ones that are not possible."""
    return tuple(r for r in rules if not r.soft or r.possible(strategies))


class Clash(Exception):
    """No strategy obeys these rules together, though each smaller set of them can be obeyed."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(", ".join(r.said.text for r in rules))
        self.rules = rules


def obeying(strategies: Sequence[S], rules: Rules) -> list[S]:
    """The strategies that obey all rules that hold. `Clash` where there is none."""
    if not rules:
        return list(strategies)
    hold = holding(strategies, rules)
    found = [s for s in strategies if all(r.allows(s) for r in hold)]
    if not found:
        raise Clash(_clash(strategies, hold))
    return found


def _clash(strategies: Sequence[Described], rules: Rules) -> Rules:
    """A smallest set of rules that no strategy obeys together (the first of several)."""
    several = (c for count in range(1, len(rules) + 1) for c in combinations(rules, count))
    return next(c for c in several if not any(all(r.allows(s) for r in c) for s in strategies))
