"""Which buffers an update may write its results into.

A step's update reads the old state and the gradient sums for the last time and makes new state of the
same types: without donation a stage would hold its parameters twice.  Rules: (D1) only update
fragments donate; (D2) an argument is donated to a result of equal shape, element type and sharding,
each result at most once; (D3) never a value that is read again, or returned by the step, or shared
with another collector of the same value; (D4) of the program's arguments only state is donated, and
to the result that replaces it where that is possible; (D5) state that an update replaces without reading it is an
argument of the update all the same, for its buffer (half-precision parameters cast from new master copies).
"""

from __future__ import annotations

from collections import Counter

from alpa_mlir.dialect.staged import ARGUMENT, Accumulate, Fragment, PlanMain, Ref, Stack


def donations(main: PlanMain) -> dict[str, list[tuple[int, int]]]:
    """Per update function the (argument, result) pairs, in order of argument."""
    found: dict[str, list[tuple[int, int]]] = {}
    collectors = Counter(s.operands[0] for s in main.steps if isinstance(s, (Accumulate, Stack)))
    for step in main.steps:
        if isinstance(step, Fragment) and step.phase == "update":
            found[step.function] = _pairs(main, step, _dying(main, step, collectors))
    return found


def replaced_unread(main: PlanMain) -> dict[int, list[int]]:
    """Rule D5: by update fragment the arguments of the program that it is to take besides those that it reads."""
    found: dict[int, list[int]] = {}
    last = {ref: step.id for step in main.steps for ref in step.operands}
    for number, argument in enumerate(main.arguments):
        if argument.role != "state" or argument.updates is None:
            continue
        old, new = Ref(ARGUMENT, number), main.results[argument.updates]
        step = None if new.is_argument else main.step(new.op)
        if not isinstance(step, Fragment) or step.phase != "update" or old in (*step.operands, *main.results):
            continue
        if main.type_of(new) == argument.type and last.get(old, -1) < step.id:
            found.setdefault(step.id, []).append(number)
    return found


def _dying(main: PlanMain, fragment: Fragment, collectors: Counter[Ref]) -> list[int]:
    """The operands of a fragment that it may consume."""
    kept = set(main.results)
    for step in main.steps:
        if step.id > fragment.id:
            kept.update(step.operands)
    return [i for i, ref in enumerate(fragment.operands) if ref not in kept and _owned(main, ref, collectors)]


def _owned(main: PlanMain, ref: Ref, collectors: Counter[Ref]) -> bool:
    """Whether the value's buffer belongs to the step alone; `collectors`: how many sums and stacks read each value."""
    if ref.is_argument:
        argument = main.arguments[ref.result]
        return argument.role == "state" and argument.updates is not None
    step = main.step(ref.op)
    if isinstance(step, Stack):
        return False
    if isinstance(step, Accumulate):
        source = step.operands[0]
        return main.per_microbatch(source) and collectors[source] == 1
    return True


def _pairs(main: PlanMain, fragment: Fragment, dying: list[int]) -> list[tuple[int, int]]:
    free = dict.fromkeys(range(len(fragment.results)))
    chosen: dict[int, int] = {}
    for i in dying:
        result = _replacement(main, fragment, fragment.operands[i])
        if result in free and main.type_of(fragment.operands[i]) == fragment.results[result]:
            chosen[i] = result
            del free[result]
    for i in dying:
        kind = main.type_of(fragment.operands[i])
        fitting = next((r for r in free if fragment.results[r] == kind), None)
        if i not in chosen and fitting is not None:
            chosen[i] = fitting
            del free[fitting]
    return sorted(chosen.items())


def _replacement(main: PlanMain, fragment: Fragment, ref: Ref) -> int:
    """The result of the fragment that replaces a state argument; -1 where there is none."""
    if not ref.is_argument:
        return -1
    updates = main.arguments[ref.result].updates
    new = main.results[updates] if updates is not None else ref
    return new.result if new.op == fragment.id else -1
