"""Which ops of `@microbatch` are the forward pass: read from the graph, without markers.

The forward pass is what the *loss* depends on.  Which of the values that leave `@microbatch` are
losses, and which are gradients, is decided in this order:

1. *Seeds.* Values that feed (through `@update`) only results of the program that replace no state:
   losses, metrics, logits.  If there are none, values that feed such a result as well as a state (a loss
   with a moving average, or only a gradient norm).  They are visited with scalars first, then by work.
   The first defines the forward pass.  Each further one joins it if its slice contracts nothing
   new (accuracy beside a loss), or reads an argument that nothing before it read (a later layer's loss beside
   an early layer's metric).  What contracts more but reads nothing new uses the parameters a second time:
   that is what a gradient does (a gradient norm, returned gradients), and it stays out.  Per-example
   results (`stack:k`) always join.
2. *No seed at all* (a step that returns only new state): every gradient depends on the loss's inputs,
   so the forward pass is what all the values that read the most arguments depend on.
3. *Statistics.* A value that feeds only states that `@microbatch` never reads (running means of
   batch normalisation: a parameter's state is read) and contracts nothing new is forward too.
4. If nothing outside contracts anything, there is no backward pass: everything is forward (inference).

In a program without any contraction every op with operands counts as one.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.inter.dataflow import Dataflow


@dataclass(frozen=True)
class Outcome:
    """What one returned value of @microbatch needs and feeds.

    `ops` and `reads` are what it depends on (ops, arguments by number), `contracted` the contractions among
    the ops; `states` are the states (argument numbers of @main) whose next value it feeds, `visible`
    whether it feeds a result that replaces no state.
    """

    number: int
    scalar: bool
    stacked: bool
    work: float
    ops: frozenset[int]
    contracted: frozenset[int]
    reads: frozenset[int]
    states: frozenset[int]
    visible: bool


def state_updates(main: ir.Operation) -> dict[int, int]:
    """For each result of @main that replaces a state: the state argument's number."""
    updates: dict[int, int] = {}
    for number, entry in enumerate(argument_attributes(main)):
        if alpa.UPDATES in entry:
            updates[int(ir.IntegerAttr(entry[alpa.UPDATES]).value)] = number
    return updates


def forward_ops(micro: Dataflow, update: Dataflow, updates: dict[int, int]) -> set[int]:
    """The numbers of the ops of @microbatch that form the forward pass; `updates` as of `state_updates`."""
    counted = _contractions(micro)
    outcomes = _outcomes(micro, update, updates, counted)
    forward = _seeded(outcomes) or _common(outcomes)
    arguments_read = {b.number for b, u in zip(micro.arguments, micro.uses, strict=False) if u and b.kind == "arg"}
    for o in outcomes:
        statistic = not o.visible and o.states and not (o.states & arguments_read)
        if statistic and o.contracted <= forward:
            forward |= o.ops
    return forward if (counted & _live(micro)) - forward else set(range(len(micro.ops)))


def _live(micro: Dataflow) -> set[int]:
    return micro.slice_of(micro.returned)


def _contractions(micro: Dataflow) -> set[int]:
    heavy = {o for o, h in enumerate(micro.heavy) if h}
    return heavy or {o for o in range(len(micro.ops)) if micro.operands[o]}


def _outcomes(micro: Dataflow, update: Dataflow, updates: dict[int, int], counted: set[int]) -> list[Outcome]:
    fed = _fed_results(update)
    found = []
    for number, (value, binding) in enumerate(zip(micro.returned, micro.yields, strict=True)):
        ops = micro.slice_of([value])
        outs = fed.get(binding, set())
        reads = {v for o in ops for v in micro.operands[o] if micro.definition[v] < 0}
        found.append(
            Outcome(
                number,
                micro.nbytes[value] <= 8,
                binding.kind == "stack",
                sum(micro.flops[o] for o in ops & counted),
                frozenset(ops),
                frozenset(ops & counted),
                frozenset(reads | ({value} if micro.definition[value] < 0 else set())),
                frozenset(updates[r] for r in outs if r in updates),
                any(r not in updates for r in outs),
            )
        )
    return found


def _fed_results(update: Dataflow) -> dict[Binding, set[int]]:
    """For each argument of @update the results of @main that depend on it."""
    fed: dict[Binding, set[int]] = {b: set() for b in update.arguments}
    reached: list[set[int]] = [set() for _ in update.definition]
    for value, binding in zip(update.returned, update.yields, strict=True):
        reached[value].add(binding.number)
    for op in range(len(update.ops) - 1, -1, -1):
        outs: set[int] = set()
        for v in update.results[op]:
            outs |= reached[v]
        for v in update.operands[op]:
            reached[v] |= outs
    for value, binding in enumerate(update.arguments):
        fed[binding] |= reached[value]
    return fed


def _seeded(outcomes: list[Outcome]) -> set[int]:
    seeds = [o for o in outcomes if o.visible and not o.states] or [o for o in outcomes if o.visible]
    forward: set[int] = set()
    contracted: set[int] = set()
    reads: set[int] = set()
    for o in sorted(seeds, key=lambda o: (not o.scalar, o.work, o.number)):
        again = bool(contracted) and not o.contracted <= contracted and o.reads <= reads
        if again and not o.stacked:
            continue
        forward |= o.ops
        contracted |= o.contracted
        reads |= o.reads
    return forward


def _common(outcomes: list[Outcome]) -> set[int]:
    if not outcomes:
        return set()
    most = max(len(o.reads) for o in outcomes)
    widest = [o for o in outcomes if len(o.reads) == most]
    common = set(widest[0].ops).intersection(*(o.ops for o in widest))
    contracted = set(widest[0].contracted).intersection(*(o.contracted for o in widest))
    if contracted:
        return common
    return set(min(widest, key=lambda o: (o.work, o.number)).ops)
