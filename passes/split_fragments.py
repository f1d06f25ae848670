"""Which op goes into which fragment.

A fragment is all ops of one stage and phase (forward, backward), or of one submesh and *round* (update,
prologue).  Where the schedule wants it, backward is cut in two: what another stage waits for, with all it is
made of, stays *backward* (gradients of the stage's inputs), the rest becomes *weight* (gradients of its parameters).

Rounds exist because what runs once per step may cross stages several times: the norm of
all gradients is summed up over the stages, then every stage needs it.  An op may run in any round
from the number of stage crossings before it (as soon as possible) to the last one before its readers
on other stages need it; per stage the fewest rounds that meet all these intervals are taken (interval
stabbing, greedy by deadline), so a stage without crossings has one update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.rounds import find_rounds, with_whole_loops
from alpa_mlir.passes.split_parts import Part

PHASE_ORDER = ("prologue", "forward", "backward", "weight", "update")


@dataclass(frozen=True)
class Key:
    """A fragment: its phase, stage number (of the submesh's first stage, once per step), and round."""

    phase: str
    stage: int
    round: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts fragments so that each stands after those it may depend on."""
        stage = -self.stage if self.phase == "backward" else self.stage
        return (PHASE_ORDER.index(self.phase), self.round, stage)


def assign(part: Part, first_stages: Mapping[str, int], weight_apart: bool = False) -> dict[int, Key]:
    """The fragment of every live op that is neither transfer nor repeated in its readers alone.

    `first_stages` maps mesh names to their first stage.  CompileError where an edge runs against the pipeline.
    """
    owned = _owned(part)
    if part.name == "microbatch":
        keys = {i: Key(_phase(part, i), part.stage(i)) for i in owned}
        edges = edges_of(part, owned)
        _check_direction(part, keys, edges)
        return _with_weight(part, keys, edges) if weight_apart else keys
    rounds = _rounds(part, owned, first_stages)
    return {i: Key(part.name, first_stages[part.mesh(i)], rounds[i]) for i in owned}


def _owned(part: Part) -> list[int]:
    returned = set(part.returns)
    owned = []
    for i, op in enumerate(part.ops):
        kept = any(r in returned for r in op.results) if part.recomputable[i] else not part.transfer[i]
        if part.live[i] and kept:
            owned.append(i)
    return owned


def _phase(part: Part, position: int) -> str:
    phase = part.phase(position)
    if phase not in ("forward", "backward"):
        raise CompileError(f"an op of @microbatch has phase {phase}", part.location(position))
    return phase


@dataclass(frozen=True)
class Edge:
    """Op `reader` uses a value of op `source`; `crosses` where it arrives by transfer."""

    source: int
    reader: int
    crosses: bool


def edges_of(part: Part, owned: Sequence[int]) -> list[Edge]:
    """The dependencies between ops of fragments, transfers contracted, in program order."""
    members = set(owned)
    origin: dict[int, tuple[int, bool] | None] = {}
    edges: list[Edge] = []
    for i in range(len(part.ops)):
        if i in members:
            origin[i] = (i, False)
        elif part.transfer[i]:
            source = part.producer(part.ops[i].operands[0])
            known = None if source is None else origin.get(source)
            origin[i] = None if known is None else (known[0], True)
    for i in owned:
        for value in part.inputs(i):
            source = part.producer(value)
            known = None if source is None else origin.get(source)
            if known is not None:
                edges.append(Edge(known[0], i, known[1]))
    return edges


def _with_weight(part: Part, keys: Mapping[int, Key], edges: Sequence[Edge]) -> dict[int, Key]:
    """The keys with the backward ops that no other stage waits for moved to phase `weight`.

    A loop that stands as one round stays together.
    """

    def mark(awaited: set[int]) -> None:
        for edge in reversed(edges):
            if edge.reader in awaited or keys[edge.source].stage != keys[edge.reader].stage:
                awaited.add(edge.source)

    awaited = with_whole_loops(mark, [set(found.ops) & keys.keys() for found in find_rounds(part.ops)])
    return {i: Key("weight", k.stage) if k.phase == "backward" and i not in awaited else k for i, k in keys.items()}


def _check_direction(part: Part, keys: Mapping[int, Key], edges: Sequence[Edge]) -> None:
    for edge in edges:
        source, reader = keys[edge.source], keys[edge.reader]
        location = part.location(edge.reader)
        if source.phase == "backward" and reader.phase == "forward":
            raise CompileError("a forward op reads a value of the backward pass", location)
        if source.phase != reader.phase or source.stage == reader.stage:
            continue
        if (source.stage > reader.stage) == (reader.phase == "forward"):
            raise CompileError(
                f"a {reader.phase} op of stage {reader.stage} reads a {source.phase} value of stage {source.stage}, "
                "against the direction of the pipeline",
                location,
            )


def _rounds(part: Part, owned: Sequence[int], stages: Mapping[str, int]) -> dict[int, int]:
    edges = edges_of(part, owned)
    earliest = dict.fromkeys(owned, 0)
    for edge in edges:
        earliest[edge.reader] = max(earliest[edge.reader], earliest[edge.source] + edge.crosses)
    last = max(earliest.values(), default=0)
    latest = dict.fromkeys(owned, last)
    for edge in reversed(edges):
        bound = earliest[edge.reader] - 1 if edge.crosses else latest[edge.reader]
        latest[edge.source] = min(latest[edge.source], bound)
    rounds: dict[int, int] = {}
    for stage in sorted({stages[part.mesh(i)] for i in owned}):
        here = [i for i in owned if stages[part.mesh(i)] == stage]
        points = _stab([(earliest[i], latest[i]) for i in here])
        rounds |= {i: max(p for p in points if p <= latest[i]) for i in here}
    return rounds


def _stab(intervals: Sequence[tuple[int, int]]) -> list[int]:
    """The fewest points such that every interval (first, last) contains one."""
    points: list[int] = []
    for first, last in sorted(set(intervals), key=lambda n: (n[1], n[0])):
        if not points or points[-1] < first:
            points.append(last)
    return points


def names(keys: Sequence[Key]) -> dict[Key, str]:
    """Function names: `stage_0_forward`; rounds are numbered where a stage has more than one."""
    found: dict[Key, str] = {}
    for key in keys:
        rounds = sorted(k.round for k in keys if (k.phase, k.stage) == (key.phase, key.stage))
        suffix = f"_{rounds.index(key.round)}" if len(rounds) > 1 else ""
        found[key] = f"stage_{key.stage}_{key.phase}{suffix}"
    return found
