"""Which ops of `@microbatch` are the forward pass: read from the graph, without markers.

The forward pass is what the *loss* depends on.  Which of the values that leave `@microbatch` are
losses, and which are gradients, is decided in this order:

1. *Seeds.* Values that feed (through `@update`) only results of the program that replace no state:
   losses, metrics, logits.  If there are none, values that feed such a result as well as a state (a loss
   with a moving average, or only a gradient norm).  They are visited with scalars first, then by the work of
   the longest chain behind them.
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
    """What one returned value of @microbatch feeds.

    `states` are the states (argument numbers of @main) whose next value it feeds, `visible` whether it feeds a
    result that replaces no state; `chain` is the most work (operations of contractions) on a path to it.
    """

    number: int
    value: int
    scalar: bool
    stacked: bool
    chain: float
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
    forward = _seeded(micro, outcomes, counted) or _common(micro, outcomes, counted)
    arguments_read = {b.number for b, u in zip(micro.arguments, micro.uses, strict=False) if u and b.kind == "arg"}
    for o in outcomes:
        statistic = not o.visible and o.states and not (o.states & arguments_read)
        if statistic:
            beyond = micro.slice_of([o.value], forward)
            if not beyond & counted:
                forward |= beyond
    _complete_loops(micro, forward)
    return forward if (counted & _live(micro)) - forward else set(range(len(micro.ops)))


def _complete_loops(micro: Dataflow, forward: set[int]) -> None:
    """A loop that stands as one round is forward as a whole: also what it makes for the backward pass alone."""
    while partly := [ops for ops in micro.loops if not forward.isdisjoint(ops) and not forward.issuperset(ops)]:
        for ops in partly:
            forward |= micro.slice_of([v for o in ops for v in micro.results[o]], forward)


def _live(micro: Dataflow) -> set[int]:
    return micro.slice_of(micro.returned)


def _contractions(micro: Dataflow) -> set[int]:
    heavy = {o for o, h in enumerate(micro.heavy) if h}
    return heavy or {o for o in range(len(micro.ops)) if micro.operands[o]}


def _outcomes(micro: Dataflow, update: Dataflow, updates: dict[int, int], counted: set[int]) -> list[Outcome]:
    fed = _fed_results(update, updates)
    chain = _chains(micro, counted)
    found = []
    for number, (value, binding) in enumerate(zip(micro.returned, micro.yields, strict=True)):
        states, visible = fed.get(binding, (frozenset(), False))
        scalar = micro.nbytes[value] <= 8
        found.append(Outcome(number, value, scalar, binding.kind == "stack", chain[value], states, visible))
    return found


def _chains(micro: Dataflow, counted: set[int]) -> list[float]:
    """For each value the most operations of contractions on a path to it."""
    chain = [0.0] * len(micro.definition)
    for o, (read, made) in enumerate(zip(micro.operands, micro.results, strict=True)):
        longest = max((chain[v] for v in read), default=0.0) + (micro.flops[o] if o in counted else 0.0)
        for v in made:
            chain[v] = longest
    return chain


def _fed_results(update: Dataflow, updates: dict[int, int]) -> dict[Binding, tuple[frozenset[int], bool]]:
    """For each argument of @update the states that it feeds, and whether it feeds any other result of @main."""
    nothing: tuple[frozenset[int], bool] = (frozenset(), False)
    reached = [nothing] * len(update.definition)
    for value, binding in zip(update.returned, update.yields, strict=True):
        state = frozenset({updates[binding.number]}) if binding.number in updates else frozenset()
        reached[value] = _joined(reached[value], (state, binding.number not in updates))
    for op in range(len(update.ops) - 1, -1, -1):
        outs = nothing
        for v in update.results[op]:
            outs = _joined(outs, reached[v])
        for v in update.operands[op]:
            reached[v] = _joined(reached[v], outs)
    fed: dict[Binding, tuple[frozenset[int], bool]] = {}
    for value, binding in enumerate(update.arguments):
        fed[binding] = _joined(fed.get(binding, nothing), reached[value])
    return fed


def _joined(left: tuple[frozenset[int], bool], right: tuple[frozenset[int], bool]) -> tuple[frozenset[int], bool]:
    states = left[0] if right[0] <= left[0] else right[0] if left[0] <= right[0] else left[0] | right[0]
    return states, left[1] or right[1]


def _seeded(micro: Dataflow, outcomes: list[Outcome], counted: set[int]) -> set[int]:
    seeds = [o for o in outcomes if o.visible and not o.states] or [o for o in outcomes if o.visible]
    forward: set[int] = set()
    reads: set[int] = set()
    fresh = [True] * len(micro.definition)
    for o in sorted(seeds, key=lambda o: (not o.scalar, o.chain, o.number)):
        again = not o.stacked and not fresh[o.value] and bool(forward & counted)
        if again and _contracts_beyond(micro, o.value, forward, counted):
            continue
        forward |= micro.slice_of([o.value], forward)
        before = len(reads)
        reads |= {v for op in forward for v in micro.operands[op] if micro.definition[v] < 0} | {o.value}
        if len(reads) > before:
            fresh = _reading_others(micro, reads)
    return forward


def _contracts_beyond(micro: Dataflow, value: int, forward: set[int], counted: set[int]) -> bool:
    """Whether the value depends on a contraction outside `forward`, which holds all that its ops depend on."""
    stack, seen = [micro.definition[value]], set(forward)
    while stack:
        op = stack.pop()
        if op >= 0 and op not in seen:
            if op in counted:
                return True
            seen.add(op)
            stack.extend(micro.definition[v] for v in micro.operands[op])
    return False


def _reading_others(micro: Dataflow, reads: set[int]) -> list[bool]:
    """For each value whether it depends on an argument that is not among `reads`."""
    others = [d < 0 and v not in reads for v, d in enumerate(micro.definition)]
    for read, made in zip(micro.operands, micro.results, strict=True):
        if any(others[v] for v in read):
            for v in made:
                others[v] = True
    return others


def _common(micro: Dataflow, outcomes: list[Outcome], counted: set[int]) -> set[int]:
    if not outcomes:
        return set()
    reads = _arguments_read(micro)
    most = max(reads[o.value].bit_count() for o in outcomes)
    widest = [o for o in outcomes if reads[o.value].bit_count() == most]
    common = micro.slice_of([widest[0].value])
    for o in widest[1:]:
        common &= micro.slice_of([o.value])
    if common & counted:
        return common
    return micro.slice_of([min(widest, key=lambda o: (o.chain, o.number)).value])


def _arguments_read(micro: Dataflow) -> list[int]:
    """For each value the set of arguments that it depends on, as the bits of a number."""
    reads = [1 << v if d < 0 else 0 for v, d in enumerate(micro.definition)]
    for read, made in zip(micro.operands, micro.results, strict=True):
        union = 0
        for v in read:
            union |= reads[v]
        for v in made:
            reads[v] = union
    return reads
