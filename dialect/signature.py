"""The program's own arguments and results, of which a plan may keep some in parts.

`@main` of a plan has an argument for each part (`alpa.part`; see `alpa-unstack`). Whoever gives arguments, and whoever
gets results, deals in those of the program: inputs, outputs, checkpoints, the reference. A `Signature` leads from the
ones to the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import Argument, MeshTensor, Part, PlanMain
from alpa_mlir.dialect.tiles import Box

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Whole:
    """An argument or result of the program: its shape, and the numbers in `@main` of its parts along `dim`, in order.

    The type's mesh is that of the first part, its sharding says nothing.
    """

    type: MeshTensor
    parts: tuple[int, ...]
    dim: int = 0

    def part(self, value: Array, number: int) -> Array:
        """What argument `number` of `@main` gets of a value."""
        extent = value.shape[self.dim] // len(self.parts) if self.parts[1:] else 0
        at = self.parts.index(number) * extent
        return value[(slice(None),) * self.dim + (slice(at, at + extent),)] if extent else value

    def joined(self, parts: Sequence[Array]) -> Array:
        """The value of its parts."""
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.dim)


@dataclass(frozen=True)
class Place:
    """Where an argument of `@main` stands in that of the program with number `whole`: `begin` of it, along `dim`."""

    whole: int
    dim: int
    begin: int

    def box(self, box: Box) -> Box:
        """A box of the part as one of the whole."""
        return tuple((a + self.begin, b + self.begin) if d == self.dim else (a, b) for d, (a, b) in enumerate(box))


class Signature:
    """What a program takes and gives: arguments by their roles, results, and their parts in `@main`."""

    def __init__(self, main: PlanMain) -> None:
        """CompileError where the parts of an argument or result do not stand side by side."""
        results = [main.type_of(r) for r in main.results]
        self.given = tuple(_wholes([a.type for a in main.arguments], [a.part for a in main.arguments], "argument"))
        self.results = tuple(_wholes(results, main.result_parts or [None] * len(results), "result"))
        self.names = tuple(main.result_names[whole.parts[0]] if main.result_names else "" for whole in self.results)
        number = {n: r for r, whole in enumerate(self.results) for n in whole.parts}
        self.arguments = tuple(_whole_argument(main.arguments[w.parts[0]], w, number) for w in self.given)
        self._places = [
            Place(number, whole.dim, n * (whole.type.shape[whole.dim] // len(whole.parts)) if n else 0)
            for number, whole in enumerate(self.given)
            for n in range(len(whole.parts))
        ]

    def place(self, number: int) -> Place:
        """Where argument `number` of `@main` stands."""
        return self._places[number]

    def part(self, value: Array, number: int) -> Array:
        """What argument `number` of `@main` gets of the value of the program's argument."""
        return self.given[self._places[number].whole].part(value, number)

    def joined(self, results: Sequence[Array]) -> list[Array]:
        """The program's results of those of `@main`."""
        return [whole.joined([results[n] for n in whole.parts]) for whole in self.results]


def whole_numbers(parts: Sequence[Part | None]) -> list[int]:
    """For each argument (or result) of `@main` the number of that of the program of which it is a part, or which it
    is."""
    found: list[int] = []
    for part in parts:
        begins = part is None or part.number == 0
        found.append((found[-1] if found else -1) + begins)
    return found


def _wholes(types: Sequence[MeshTensor], parts: Sequence[Part | None], what: str) -> Iterator[Whole]:
    at = 0
    while at < len(types):
        kind, part = types[at], parts[at]
        if part is None:
            yield Whole(kind, (at,))
            at += 1
            continue
        expected = [replace(part, number=n) for n in range(part.count)]
        same = {(t.shape, t.element) for t in types[at : at + part.count]}
        if list(parts[at : at + part.count]) != expected or len(same) != 1 or part.dim >= len(kind.shape):
            raise CompileError(f"{what} {at} of @main is a part (alpa.part), but the others do not stand beside it")
        shape = tuple(n * part.count if d == part.dim else n for d, n in enumerate(kind.shape))
        whole = replace(kind, shape=shape, sharding=Sharding.replicated(len(shape)))
        yield Whole(whole, tuple(range(at, at + part.count)), part.dim)
        at += part.count


def _whole_argument(first: Argument, whole: Whole, result: dict[int, int]) -> Argument:
    updates = None if first.updates is None else result.get(first.updates)
    return replace(first, type=whole.type, updates=updates, part=None)
