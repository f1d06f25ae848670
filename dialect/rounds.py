"""Loops as one round of them: the ops that stand where a loop over layers is too long to be unrolled.

A group of layers that follow one another is computed in a loop, whose one round the passes see as ops like any
others. Marks, which only this compiler knows, say how the round and the whole loop hang together:

    %in  = alpa.loop_enter(%start)       a value that each round takes from the one before; the first takes %start
    %out = alpa.loop_leave(%in, %next)   what the last round passes on, %next being what each passes on
    %w   = alpa.loop_slice(%stack)       the round's own slice of a stack, along dimension 0
    %all = alpa.loop_stack(%y)           what the rounds make, stacked along dimension 0
    %n   = alpa.loop_index()             the number of the round

`alpa.trips` says how many rounds there are. A stack with `alpa.reversed` is gone through from its end. What a
`loop_enter`, `loop_slice` or `loop_index` leads to is in the loop, up to where `loop_leave` or `loop_stack` ends it;
two parts of a round with nothing in common are two loops. Everything else is made once, before it or behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError

PREFIX = "alpa.loop_"
ENTER, LEAVE, SLICE, STACK, INDEX = (PREFIX + name for name in ("enter", "leave", "slice", "stack", "index"))
STARTS = frozenset({ENTER, SLICE, INDEX})
ENDS = frozenset({LEAVE, STACK})
MARKS = STARTS | ENDS


@dataclass(frozen=True, eq=False)
class Round:
    """The ops of one loop by number, in program order, with its marks; and how many rounds it has."""

    ops: tuple[int, ...]
    trips: int


def trips_of(op: ir.Operation) -> int:
    """How many rounds the loop of a mark has."""
    return alpa.get_int(op, alpa.TRIPS) or 1


def mark(name: str, kind: ir.Type, operands: Sequence[ir.Value], trips: int, backwards: bool = False) -> ir.Value:
    """A new mark at the current insertion point and location."""
    entries: dict[str, ir.Attribute] = {alpa.TRIPS: alpa.i64(trips, kind.context)}
    if backwards:
        entries[alpa.REVERSED] = ir.UnitAttr.get(kind.context)
    return ir.Operation.create(name, [kind], list(operands), entries).results[0]


def check_mark(op: ir.Operation) -> None:
    """CompileError where a mark is unknown, has no number of rounds, or not the operands and results it must have."""
    if op.name not in MARKS:
        raise CompileError(f"{op.name} is no mark of a loop; there are {', '.join(sorted(MARKS))}", op.location)
    trips = op.attributes.get(alpa.TRIPS, None)
    if not isinstance(trips, ir.IntegerAttr) or trips.value < 1:
        raise CompileError(f"{op.name} needs {alpa.TRIPS}, the number of rounds, of at least 1", op.location)
    count = {INDEX: 0, LEAVE: 2}.get(op.name, 1)
    types = [v.type for v in (*op.operands, *op.results)]
    shapes = [tuple(t.shape) for t in types if isinstance(t, ir.RankedTensorType)]
    fits = (len(op.operands), len(op.results), len(shapes)) == (count, 1, count + 1)
    if fits and op.name in (SLICE, STACK):
        stack, one = shapes if op.name == SLICE else shapes[::-1]
        kinds = {ir.RankedTensorType(t).element_type for t in types}
        fits = stack == (trips.value, *one) and len(kinds) == 1
    elif fits:
        number = op.name != INDEX or (
            shapes[0] == () and isinstance(ir.RankedTensorType(types[0]).element_type, ir.IntegerType)
        )
        fits = len({*types}) == 1 and number
    if not fits:
        text = ", ".join(str(v.type) for v in op.operands), ", ".join(str(v.type) for v in op.results)
        raise CompileError(f"{op.name} of {trips.value} rounds cannot be ({text[0]}) -> ({text[1]})", op.location)


def find_rounds(ops: Sequence[ir.Operation]) -> list[Round]:
    """The loops among the ops of a block, in the order of their first ops.

    CompileError where loops with different numbers of rounds meet.
    """
    if not any(op.name in STARTS for op in ops):
        return []
    inside: dict[ir.Value, int] = {}
    parent = list(range(len(ops)))
    trips: dict[int, int] = {}

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    members: list[int] = []
    for n, op in enumerate(ops):
        name = op.name
        reached = [inside[v] for v in read_by(op) if v in inside]
        if name not in STARTS and (not reached or not len(op.results)):
            continue
        members.append(n)
        if name in MARKS:
            trips[n] = trips_of(op)
        for m in reached:
            _join(parent, root(n), root(m), trips, op)
        if name not in ENDS:
            inside.update(dict.fromkeys(op.results, n))
    found: dict[int, list[int]] = {}
    for n in members:
        found.setdefault(root(n), []).append(n)
    return [Round(tuple(group), trips[first]) for first, group in found.items()]


def _join(parent: list[int], one: int, other: int, trips: dict[int, int], op: ir.Operation) -> None:
    if one == other:
        return
    low, high = min(one, other), max(one, other)
    if low in trips and high in trips and trips[low] != trips[high]:
        raise CompileError(f"{op.name} is in loops of {trips[low]} and of {trips[high]} rounds", op.location)
    parent[high] = low
    if high in trips:
        trips[low] = trips[high]


def needed_with(op: ir.Operation) -> list[ir.Value]:
    """What else is needed where the result of an op is: of what comes into a round, what the round before passes on.

    That is read by no op of the round, but in the next one.
    """
    if op.name != ENTER:
        return []
    return [use.owner.results[0] for use in op.results[0].uses if use.owner.name == LEAVE and use.operand_number == 0]


def leaves_by_end(ops: Sequence[ir.Operation]) -> dict[int, list[int]]:
    """For each op of a block that ends a loop the ops that say what its rounds pass on, which are needed with it."""
    found: dict[int, list[int]] = {}
    for loop in find_rounds(ops):
        leaves = [n for n in loop.ops if ops[n].name == LEAVE]
        found.update({n: leaves for n in loop.ops if ops[n].name in ENDS})
    return found


def with_whole_loops(mark: Callable[[set[int]], None], loops: Iterable[Set[int]]) -> set[int]:
    """What `mark` adds to a set, and all of each loop of which it adds an op, again and again until that is all."""
    found: set[int] = set()
    pending = list(loops)
    mark(found)
    while touched := [loop for loop in pending if not found.isdisjoint(loop)]:
        pending = [loop for loop in pending if found.isdisjoint(loop)]
        found.update(*touched)
        mark(found)
    return found


def erase_unneeded(block: ir.Block) -> bool:
    """Erase the marks of a block that none of its other ops needs, and what only they read; whether there were any.

    Upstream passes keep ops that they do not know.
    """
    ops = [view.operation for view in block.operations]
    if not any(op.name in MARKS for op in ops):
        return False
    pending = [op for op in ops if op.name not in MARKS and not any(len(list(v.uses)) for v in op.results)]
    needed: set[int] = set()
    while pending:
        op = pending.pop()
        if op_id(op) not in needed:
            needed.add(op_id(op))
            values = [*read_by(op), *needed_with(op)]
            pending += [
                v.owner.operation
                for v in values
                if not isinstance(v.owner, ir.Block) and v.owner.operation.block == block
            ]
    # What else is not needed has marks alone as users: upstream passes erased what had none.
    unneeded = [op for op in ops if op_id(op) not in needed]
    for op in reversed(unneeded):
        op.erase()
    return bool(unneeded)


def read_by(op: ir.Operation) -> list[ir.Value]:
    """The operands of an op, and what ops in its regions read."""
    values = list(op.operands)
    if len(op.regions):
        values += [v for inner in alpa.walk(op) for v in inner.operands]
    return values


def trips_by_op(ops: Sequence[ir.Operation], loops: Sequence[Round]) -> list[int]:
    """For each op of a block with these loops how often it runs; what ends one counts once, for all rounds."""
    found = [1] * len(ops)
    for one in loops:
        for n in one.ops:
            if ops[n].name not in ENDS:
                found[n] = one.trips
    return found
