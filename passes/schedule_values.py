"""The values that instructions read, make and free, in bundles.

The values of a step are (op, result, microbatch): millions where there are many microbatches.  But results of one op
for one microbatch are made together and mostly read and freed together, so they are a *bundle* here: (op, microbatch)
and a bit for each result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alpa_mlir.dialect.once import Once
from alpa_mlir.dialect.plan import ONCE, Combine, Free, Instruction, Recv, Send
from alpa_mlir.dialect.staged import PlanMain, Ref

Bundle = tuple[int, int]
"""(id of an op of `@main`, microbatch)."""
Bits = tuple[Bundle, int]
"""Some values of a bundle: bit k for result k."""


class Values:
    """What the instructions of a step read, make and free; arguments of `@main` are left out."""

    def __init__(self, main: PlanMain) -> None:
        self.main = main
        self._reads = {s.id: self._parts(s.operands) for s in main.steps}
        self.results = {s.id: len(s.results) for s in main.steps}
        """The number of results of each op."""
        self._collects = Once[tuple[int, ...], tuple[tuple[int, bool, int], ...]]()
        self._collected = Once[tuple[int, ...], list[Bits]]()
        self._frees = Once[tuple[Ref, ...], list[tuple[int, int]]]()
        self._refs: dict[tuple[tuple[int, int], ...], tuple[Ref, ...]] = {}
        self.returned = dict(bits_of(main.results))
        """Which results of an op are results of the step."""

    def _parts(self, refs: Iterable[Ref]) -> tuple[tuple[int, bool, int], ...]:
        """(op, whether its results exist once per microbatch, bits)."""
        return tuple([(op, self.main.per_microbatch(Ref(op)), bits) for op, bits in bits_of(refs)])

    def _sources(self, ids: Sequence[int]) -> tuple[tuple[int, bool, int], ...]:
        """What accumulations read."""
        return self._parts([r for n in ids for r in self.main.step(n).operands])

    def uses(self, instruction: Instruction) -> list[Bits]:
        """The values that an instruction reads."""
        m = instruction.microbatch
        if isinstance(instruction, (Recv, Free)):
            return []
        if isinstance(instruction, Combine):
            parts = self._collects.of(instruction.ids, self._sources)
        else:
            parts = self._reads[instruction.id]
        return [((op, m if often else ONCE), bits) for op, often, bits in parts]

    def makes(self, instruction: Instruction) -> Sequence[Bits]:
        """The values that exist after an instruction."""
        if isinstance(instruction, (Send, Free)):
            return ()
        if isinstance(instruction, Combine):
            return self._collected.of(instruction.ids, lambda ids: [((n, ONCE), 1) for n in ids])
        return (((instruction.id, instruction.microbatch), (1 << self.results[instruction.id]) - 1),)

    def frees(self, free: Free) -> list[Bits]:
        """The values that die."""
        return [((op, free.microbatch), bits) for op, bits in self._frees.of(free.values, bits_of)]

    def refs(self, parts: Sequence[tuple[int, int]]) -> tuple[Ref, ...]:
        """The values of ops and bits, in order."""
        key = tuple(parts)
        if key not in self._refs:
            self._refs[key] = tuple([Ref(op, k) for op, bits in sorted(key) for k in positions(bits)])
        return self._refs[key]


def bits_of(refs: Iterable[Ref]) -> list[tuple[int, int]]:
    """Values as ops and bits, ops in order of first occurrence; arguments are left out."""
    found: dict[int, int] = {}
    for ref in refs:
        if not ref.is_argument:
            found[ref.op] = found.get(ref.op, 0) | 1 << ref.result
    return list(found.items())


def positions(bits: int) -> list[int]:
    """The numbers of the bits that are set."""
    found = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return found
