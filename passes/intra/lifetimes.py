"""When the values of a stage are alive: rules M2 to M8 of `costs/memory.py` for the nodes of a sketch.

What the finished plan does is foreseen. The forward and the backward ops of a stage become functions of their own, so a
forward value that backward ops read is a result of the one, which has its buffer from the start, and an argument of the
other, which is there until it ends. Only what `alpa-split` repeats (`repeated.py`) is made again there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from alpa_mlir.dialect.rounds import STACK
from alpa_mlir.passes.costs.memory import Lifetime
from alpa_mlir.passes.intra.program import OpRecord, Program
from alpa_mlir.passes.intra.sketch import SketchNode


def is_from_host(slot: str) -> bool:
    """Whether what a slot holds comes from the host for each microbatch: a batch argument, or its number."""
    return slot.startswith("batch") or slot == "index"


@dataclass(frozen=True)
class _Reach:
    """The last op for which an op's operands must be there, and the phases in which they must."""

    last: int
    phases: frozenset[str]


@dataclass(frozen=True, eq=False)
class Uses:
    """What is done with the values of a sketch's nodes.

    users:   of each node, the ops that read its value (those of a copy read the copy).
    leaving: nodes whose values a slot keeps.
    shared:  the copies that are made of a node; unheld: copies of copies.
    """

    users: list[list[OpRecord]] = field(default_factory=list)
    leaving: set[int] = field(default_factory=set)
    shared: dict[int, list[int]] = field(default_factory=dict)
    unheld: set[int] = field(default_factory=set)


class Lifetimes:
    """When each value of a stage is alive; `included`: its ops; `nodes`, `ops`, `slots`: as in a `Sketch`."""

    def __init__(
        self,
        program: Program,
        included: Sequence[OpRecord],
        nodes: Sequence[SketchNode],
        ops: dict[int, int],
        slots: dict[str, int],
        uses: Uses,
    ) -> None:
        self.program, self.included, self.nodes, self.ops, self.uses = program, included, nodes, ops, uses
        self.last = {op.function: op.number for op in included}
        """The last op of each function; `first` and `ends_of`: the first and the last of each phase."""
        self.first = {(op.function, op.phase): op.number for op in reversed(included)}
        self.ends_of = {(op.function, op.phase): op.number for op in included}
        self.reach: dict[int, _Reach] = {}
        self.registers: set[int] = set()
        """Nodes whose values are computed where they are needed."""
        self._find_reaches()
        self.sliced = {node for slot, node in slots.items() if is_from_host(slot) and self._is_kept(node)}
        """Batch arguments that are kept for each microbatch in flight."""

    def of(self, in_flight: int) -> list[Lifetime]:
        """When each op's and each arriving value is alive (rules M2 to M8)."""
        found = []
        for number, node in enumerate(self.nodes):
            arrives = node.incoming or number in self.sliced
            if (arrives or not node.source.slot) and number not in self.uses.unheld:
                lifetime = self._lifetime(number, node, in_flight)
                found += [lifetime] if lifetime is not None else []
                found += self._repeats(number, node) if lifetime is not None else []
        return found

    def _lifetime(self, number: int, node: SketchNode, in_flight: int) -> Lifetime | None:
        users = self.uses.users[number] if number not in self.uses.shared else self._without_copies(number)
        if number in self.uses.shared and not users and number not in self.uses.leaving:
            return None
        maker = self.program.ops[node.source.op] if node.source.op >= 0 else None
        first = next(iter(users), None) if maker is None or node.incoming else maker
        if first is None or (not node.incoming and self._is_fused_away(first, users, number)):
            return None
        if node.source.slot:
            kept = in_flight - 1 if is_from_host(node.source.slot) and self._is_kept(number) else 0
            return Lifetime(number, first.function, self._begin(first.function), self.last[first.function], kept)
        here = [u for u in users if u.function == first.function]
        loop = maker.loop if maker is not None else -1
        reach = [self._reach_of(u, loop) for u in here]
        if maker is not None and self._is_repeated(node):
            end = self.ends_of[maker.function, maker.phase]
            reach = [_Reach(min(r.last, end), r.phases & {maker.phase}) for r in reach]
        phases = {phase for r in reach for phase in r.phases} | ({maker.phase} if maker is not None else set())
        kept = in_flight - 1 if "forward" in phases and "backward" in phases else 0
        if number in self.uses.leaving and first.function == "microbatch":
            begin = self.first[first.function, first.phase]
            return Lifetime(number, first.function, begin, self.last[first.function], kept)
        if not users and number not in self.uses.leaving:
            last = self.ends_of[first.function, first.phase]
        else:
            last = max([first.number, *[r.last for r in reach]])
        begin = first.number
        if ("forward" in phases and "backward" in phases) or node.incoming:
            # Of two functions: a result of the one, an argument of the other.
            begin = min(self.first.get((first.function, p), begin) for p in phases)
            last = max(self.ends_of.get((first.function, p), last) for p in phases)
        if maker is not None and maker.op.name == STACK:
            begin = min(self.program.loops[maker.loop]) if maker.loop >= 0 else begin
        return Lifetime(number, first.function, begin, last, kept)

    def _is_repeated(self, node: SketchNode) -> bool:
        """Whether a value is made again for other phases than that of its op."""
        return not node.incoming and node.source.op in self.program.repeated

    def _repeats(self, number: int, node: SketchNode) -> Iterator[Lifetime]:
        """When a value that is made again is alive in the phases that make it again."""
        if self._is_repeated(node):
            maker = self.program.ops[node.source.op]
            reach = [
                (user.number, self._reach_of(user, maker.loop))
                for user in self.uses.users[number]
                if user.function == maker.function
            ]
            for phase in sorted({phase for _, r in reach for phase in r.phases} - {maker.phase}):
                begin, end = self.first[maker.function, phase], self.ends_of[maker.function, phase]
                there = [(max(first, begin), min(r.last, end)) for first, r in reach if phase in r.phases]
                yield Lifetime(number, maker.function, min(f for f, _ in there), max(last for _, last in there))

    def _is_kept(self, number: int) -> bool:
        """Whether a batch argument is read in the forward pass and in the backward pass."""
        return {"forward", "backward"} <= self._phases(number)

    def _phases(self, number: int) -> set[str]:
        """The phases in which a node's value must be there for what reads it."""
        return {phase for user in self.uses.users[number] for phase in self.reach[user.number].phases}

    def _without_copies(self, number: int) -> list[OpRecord]:
        """What reads a value itself of which there are copies: backward, a copy that is kept does for all."""
        users = self.uses.users[number]
        forward = self.program.ops[self.nodes[number].source.op].phase == "forward"
        if forward and any("backward" in self._phases(copy) for copy in self.uses.shared[number]):
            return [user for user in users if "backward" not in self.reach[user.number].phases]
        return users

    def _begin(self, function: str) -> int:
        """The first op of a function."""
        return min(number for (name, _), number in self.first.items() if name == function)

    def _reach_of(self, user: OpRecord, loop: int) -> _Reach:
        """Up to when an op needs what is made in a loop (-1: in none): what is made before one is read in its every
        round."""
        found = self.reach[user.number]
        if user.loop < 0 or user.loop == loop:
            return found
        return _Reach(max(found.last, max(self.program.loops[user.loop])), found.phases)

    def _find_reaches(self) -> None:
        """Up to when each included op reads what it reads: as long as what it computes in registers is needed, or in
        another phase again."""
        found = self.reach
        for op in reversed(self.included):
            number, own = self.ops[op.number], frozenset({op.phase})
            reach = [self._reach_of(u, op.loop) for u in self.uses.users[number] if u.function == op.function]
            repeated = op.number in self.program.repeated
            if self._is_fused(op, number) and (repeated or all(r.phases == own for r in reach)):
                self.registers.add(number)
            elif repeated:
                reach = [r for r in reach if r.phases != own]
            else:
                reach = []
            last = max([op.number, *[r.last for r in reach]])
            found[op.number] = _Reach(last, own.union(*[r.phases for r in reach]))

    def _is_fused(self, op: OpRecord, number: int) -> bool:
        """Whether the op's results may be computed where they are needed (T1), so that nothing holds them: but for
        those that are passed to another phase's function."""
        return op.kind.traffic.is_fused and number not in self.uses.leaving and number not in self.uses.shared

    def _is_fused_away(self, maker: OpRecord, users: list[OpRecord], number: int) -> bool:
        """Rules M4 and M5."""
        if number in self.uses.leaving and not users:
            return maker.kind.compute == "fused" and maker.function != "microbatch"
        return number in self.registers
