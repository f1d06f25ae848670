"""Strategies, shardings and steps in words: for remarks and errors."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

from alpa_mlir.dialect.factors import Mapping, OpFactors
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.intra.strategies import Strategy
from alpa_mlir.passes.local.steps import Step

LETTERS = "ijklmnopqrstuvwxyzabcdefgh"


def factor_names(factors: OpFactors) -> list[str]:
    """A letter per factor, as in an einsum."""
    return [LETTERS[f] if f < len(LETTERS) else f"f{f}" for f in range(len(factors.sizes))]


def einsum(factors: OpFactors) -> str:
    """`[i,k],[k,j]->[i,j] i=8 j=4 k=6 (add)`: dimensions as factors, their sizes, and what is summed how."""
    names = factor_names(factors)
    left, right = (",".join(_mapping(m, names) for m in side) for side in (factors.operands, factors.results))
    kinds = [f" ({k})" if factors.is_reduction(f) else "" for f, k in enumerate(factors.kinds)]
    sizes = " ".join(f"{n}={size}{kind}" for n, size, kind in zip(names, factors.sizes, kinds, strict=True))
    return f"{left}->{right} {sizes}".rstrip()


def _mapping(mapping: Mapping, names: Sequence[str]) -> str:
    return "[" + ",".join("".join(names[f] for f in dim) or "1" for dim in mapping) + "]"


def sharding_text(sharding: Sharding) -> str:
    """`[{x},{}]`, with `partial{y}` where it is partial."""
    dims = ",".join("{" + ",".join(axes) + "}" for axes in sharding.dims)
    return f"[{dims}]" + (f" partial{{{','.join(sharding.partial)}}}" if sharding.partial else "")


def strategy_text(strategy: Strategy) -> str:
    """`[{x},{}] [{},{}] -> [{x},{}]`, or the sharding alone of a stored value."""
    results = " ".join(map(sharding_text, strategy.results))
    if not strategy.factor_axes and strategy.operands == strategy.results:
        return results
    return " ".join([*map(sharding_text, strategy.operands), "->", results])


def placement_text(strategy: Strategy, factors: OpFactors) -> str:
    """`x on i, y on k`: which axes lie on which factor."""
    names = factor_names(factors)
    placed = [f"{','.join(axes)} on {names[f]}" for f, axes in enumerate(strategy.factor_axes) if axes]
    return ", ".join(placed) or "all devices alike"


def steps_text(steps: Sequence[Step]) -> str:
    """`all_reduce over x`: the collectives of a chain; slices are named alone."""
    return ", ".join(s.kind if s.kind == "slice" else f"{s.kind} over {','.join(s.axes)}" for s in steps)


def seconds_text(seconds: float) -> str:
    """A time with its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns"


def bytes_text(size: float) -> str:
    """An amount of memory with its unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.4g} B"


def needed_text(size: float) -> str:
    """At least so many bytes, in megabytes of six digits: rounded up, so that what is said does."""
    if size <= 0:
        return "0 MB"
    digit = 10.0 ** (floor(log10(size)) - 5)
    return f"{ceil(size / digit - 1e-9) * digit / 1e6:.6g} MB"
