"""Which neighbouring runs of a submesh become one program.

A program costs its dispatch, and what it leaves to the next one must lie in memory; XLA fuses within a program only.
Where nothing between two runs needs their boundary, the second is *joined* to the first: the last stage's forward and
backward of a microbatch; with one microbatch also the update, so that a plan of one stage is one program, as under
`jax.jit`.  Rules, for a run that directly follows another stage function on its submesh:

* (J1) both are of one microbatch, or the step has only one: sums over several need the boundary;
* (J2) the submesh sends nothing between them, which would be late otherwise;
* (J3) what the second reads is made by the group that it joins, or was there when that began: so it can move up
  behind the first, past what the submesh receives meanwhile, and the order stays one in which nothing waits for ever;
* (J4) the same holds for all microbatches: else both would also be needed apart.

What a group does, and what it costs and holds, is what its functions do, cost and hold one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from alpa_mlir.dialect.plan import ONCE
from alpa_mlir.dialect.staged import Accumulate, Fragment, Index, PlanMain, Ref, Slice, Stack, Transfer


class Event(NamedTuple):
    """A run (on one submesh) or a transfer (on two) of one microbatch, or (-1) once per step."""

    step: Fragment | Transfer
    microbatch: int


def joined(main: PlanMain, events: Sequence[Event]) -> list[tuple[Event, ...]]:
    """The events of a step in an order with the same dependencies, those of one program together."""
    runs = Counter(step.id for step, _ in events if isinstance(step, Fragment))
    apart: set[tuple[int, int]] = set()
    while True:
        grouping = _Grouping(main, frozenset(apart))
        for event in events:
            grouping.add(event)
        uneven = {pair for pair, n in grouping.pairs.items() if (n, n) != (runs[pair[0]], runs[pair[1]])}
        if not uneven:
            return [tuple(group) for group in grouping.groups]
        apart |= uneven


@dataclass
class _Grouping:
    """The groups so far, and on each submesh the open one; `apart` are functions that may not be joined."""

    main: PlanMain
    apart: frozenset[tuple[int, int]]
    groups: list[list[Event]] = field(default_factory=list)
    open: dict[str, list[Event]] = field(default_factory=dict)
    received: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    """By submesh what was received since its open group began."""
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    sources: dict[int, tuple[Ref, ...]] = field(default_factory=dict)
    """Of each op that a call reads one value: what holds for one holds for all of them."""

    def add(self, event: Event) -> None:
        """The next event of the step."""
        step, microbatch = event
        if isinstance(step, Transfer):
            self.groups.append([event])
            self.open.pop(self.main.type_of(step.operands[0]).mesh, None)
            self.received.setdefault(step.results[0].mesh, set()).add((step.id, microbatch))
            return
        group = self.open.get(step.mesh)
        if group is not None and self._joins(group, step, microbatch):
            self.pairs[group[-1][0].id, step.id] += 1
            group.append(event)
            return
        group = [event]
        self.groups.append(group)
        self.open[step.mesh], self.received[step.mesh] = group, set()

    def _joins(self, group: Sequence[Event], step: Fragment, microbatch: int) -> bool:
        before, of = group[-1]
        alike = microbatch == of or self.main.microbatches == 1
        if not alike or (before.id, step.id) in self.apart:
            return False
        made = {member.id for member, _ in group}
        if step.id not in self.sources:
            self.sources[step.id] = tuple({r.op: r for r in step.operands if not r.is_argument}.values())
        return all(self._there(ref, microbatch, made, step.mesh) for ref in self.sources[step.id])

    def _there(self, ref: Ref, microbatch: int, made: set[int], mesh: str) -> bool:
        """J3 for a value that the group whose functions are `made` would have to read."""
        if ref.op in made:
            return True
        step = self.main.step(ref.op)
        if isinstance(step, (Accumulate, Stack)):
            # Only sums of what functions of this submesh make: others would be collected within the group.
            source = step.operands[0]
            collected = not source.is_argument and isinstance(self.main.step(source.op), Fragment)
            return collected and (self.main.microbatches == 1 or source.op not in made)
        if isinstance(step, Transfer):
            often = self.main.per_microbatch(ref)
            return (step.id, microbatch if often else ONCE) not in self.received.get(mesh, set())
        return isinstance(step, (Fragment, Slice, Index))
