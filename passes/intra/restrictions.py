"""From what users want to rules on ops and stored values: which of them each constraint speaks of.

A pinned argument is a slot (`arg:i`, `batch:i`), a pinned result the slot of the state that it replaces or
one of its own (`out:i`), a named value every op of that name. How an axis is used is said of all ops by
what they have to do with the batch (`batch.py`):

                       ops with a batch    what is summed   parameters,     optimizer
                       that divides        over it          casts of them   state, update
    data               on the batch        not split        not split       not split
    zero1              on the batch        not split        not split       split
    zero2              on the batch        split            not split       split
    zero3              on the batch        split            split           split
    tensor             off the batch; products split otherwise

each "where possible". Rajbhandari et al. 2020 (ZeRO); Shoeybi et al. 2019 (Megatron-LM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_names, location_text
from alpa_mlir.dialect.factors import FIXED, shape_of
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes
from alpa_mlir.dialect.signature import whole_numbers
from alpa_mlir.dialect.staged import Part
from alpa_mlir.dialect.staged_main import part_of
from alpa_mlir.passes.intra.batch import Batch, find_batch
from alpa_mlir.passes.intra.constraints import AxisMode, Constraint, Pattern, Pin
from alpa_mlir.passes.intra.program import OpRecord, Program, Slot, TensorType
from alpa_mlir.passes.intra.rules import (
    Clash,
    InResults,
    OffDimension,
    OffFactors,
    OnDimension,
    OnFactors,
    OutOfResults,
    ResultLike,
    Rule,
    Rules,
    Working,
)


@dataclass
class Restrictions:
    """The rules of a program's ops (by number) and slots (by name); nothing where users said nothing."""

    ops: dict[int, Rules] = field(default_factory=dict)
    slots: dict[str, Rules] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    """What the rules come from."""

    def of_op(self, number: int) -> Rules:
        """The rules of an op."""
        return self.ops.get(number, ())

    def of_slot(self, name: str) -> Rules:
        """The rules of a slot."""
        return self.slots.get(name, ())


def restrict(program: Program, meshes: Sequence[Mesh], constraints: Sequence[Constraint]) -> Restrictions:
    """The rules that constraints mean. CompileError where one names what is not there."""
    uses = [c for c in constraints if isinstance(c, AxisMode)]
    for c in uses:
        if not any(name == c.axis and size > 1 for mesh in meshes for name, size in mesh.axes):
            raise CompileError(f"no mesh has an axis {c.axis} of more than one device, in '{c.text}'", c.where)
    found = restrict_uses(program, uses)
    found.constraints = tuple(constraints)
    for pin in constraints:
        if isinstance(pin, Pin):
            _check_axes(pin, meshes)
            _pin(pin, program, found)
    return found


def restrict_uses(program: Program, uses: Sequence[AxisMode]) -> Restrictions:
    """The rules that uses of axes mean; they mean nothing on meshes without these axes."""
    found = Restrictions(constraints=tuple(uses))
    batch = find_batch(program) if uses else None
    for c in uses:
        assert batch is not None
        _use_axis(c, program, batch, found)
    return found


def _check_axes(pin: Pin, meshes: Sequence[Mesh]) -> None:
    known = sorted({name for mesh in meshes for name in mesh.axis_names})
    for axis in pin.pattern.axes:
        if axis not in known:
            raise CompileError(f"there is no axis {axis} ({', '.join(known)} are), in '{pin.text}'", pin.where)


def _pin(pin: Pin, program: Program, found: Restrictions) -> None:
    if pin.what == "arg" and pin.name:
        for number in dict.fromkeys(_named_arguments(pin, program)):
            _pin(replace(pin, name="", number=number), program, found)
    elif pin.what in ("arg", "out"):
        slots = [slot for number in _in_main(pin, program) for slot in slots_of(replace(pin, number=number), program)]
        if not slots:
            kind = "argument" if pin.what == "arg" else "result"
            raise CompileError(f"@main uses no {kind} {pin.number}, in '{pin.text}'", pin.where)
        for slot in slots:
            _check_rank(pin, len(slot.type.shape))
            _add(found.slots, slot.name, ResultLike(pin, 0, pin.pattern))
    else:
        for op, index in _named(pin, program):
            _add(found.ops, op.number, ResultLike(pin, index, pin.pattern))


def _in_main(pin: Pin, program: Program) -> list[int]:
    """The numbers in @main of the argument or result that a pin names: of its parts, where it is kept in parts."""
    if pin.written:
        return [pin.number]
    parts = _parts(pin.what, program)
    found = [number for number, whole in enumerate(whole_numbers(parts)) if whole == pin.number]
    part = parts[found[0]] if found else None
    if part is not None and part.dim < len(pin.pattern.dims) and pin.pattern.dims[part.dim].axes:
        said = f"is kept in {part.count} parts along dimension {part.dim}, which cannot be split then (--no-unstack)"
        raise CompileError(f"{pin.what}{pin.number} {said}, in '{pin.text}'", pin.where)
    return found


def _parts(what: str, program: Program) -> list[Part | None]:
    """Which parts the arguments ("arg") or results of @main are."""
    main = functions(program.module)["main"]
    return [part_of(entry) for entry in (argument_attributes if what == "arg" else result_attributes)(main)]


def _named_arguments(pin: Pin, program: Program) -> list[int]:
    """The program's arguments that a pin names: those of its rank that are used."""
    arguments = functions(program.module)["main"].regions[0].blocks[0].arguments
    named = [i for i, a in enumerate(arguments) if _has_name(a.location, pin.name)]
    ranked = [i for i in named if len(shape_of(arguments[i]) or ()) == len(pin.pattern.dims)]
    found = [i for i in ranked if slots_of(replace(pin, number=i), program)]
    if not found:
        what = f"of {len(pin.pattern.dims)} dimensions " if named else ""
        hint = "" if named else ": names are those of the program's locations (alpa-mlir-export --locations)"
        raise CompileError(f"no argument {what}is called {pin.name}, in '{pin.text}'{hint}", pin.where)
    wholes = whole_numbers(_parts("arg", program))
    return [wholes[i] for i in found]


def slots_of(pin: Pin, program: Program) -> list[Slot]:
    """The slots of a pinned argument or result; none where nothing uses it."""
    if pin.what == "arg":
        names = [f"arg:{pin.number}", f"batch:{pin.number}"]
    elif pin.number in program.replaced:
        names = [f"arg:{program.replaced[pin.number]}"]
    else:
        names = [f"out:{pin.number}"]
    return [program.slots[n] for n in names if n in program.slots]


def _named(pin: Pin, program: Program) -> list[tuple[OpRecord, int]]:
    """The op results that a pin speaks of: those of its rank."""
    if pin.what == "op":
        return [(program.ops[pin.number], pin.index)]
    ops = [op for op in program.ops if not op.is_source and _has_name(op.op.location, pin.name)]
    found = [
        (op, k)
        for op in ops
        for k, kind in enumerate(op.result_types)
        if kind.itemsize and len(kind.shape) == len(pin.pattern.dims)
    ]
    if not found:
        what = f"of {len(pin.pattern.dims)} dimensions " if ops else ""
        raise CompileError(f"no op {what}is called {pin.name}, in '{pin.text}'", pin.where)
    return found


def _has_name(location: ir.Location, name: str) -> bool:
    return any(fnmatchcase(text, name) for text in location_names(location))


def _check_rank(pin: Pin, rank: int) -> None:
    if rank != len(pin.pattern.dims):
        wanted = len(pin.pattern.dims)
        raise CompileError(f"{pin.what}{pin.number} has {rank} dimensions, not {wanted}, in '{pin.text}'", pin.where)


def _add(table: dict[int, Rules] | dict[str, Rules], key: int | str, *rules: Rule) -> None:
    table[key] = (*table.get(key, ()), *rules)  # type: ignore[index,arg-type]


def _use_axis(c: AxisMode, program: Program, batch: Batch, found: Restrictions) -> None:
    for op in program.ops:
        rules = _tensor_rules(c, op, batch) if c.mode == "tensor" else _data_rules(c, op, batch)
        if rules:
            _add(found.ops, op.number, *rules)
    for slot in program.slots.values():
        rules = _slot_rules(c, slot, batch)
        if rules:
            _add(found.slots, slot.name, *rules)


def _tensor_rules(c: AxisMode, op: OpRecord, batch: Batch) -> list[Rule]:
    carried = batch.factors.get(op.number, ())
    rules: list[Rule] = [OffFactors(c, c.axis, carried)] if carried else []
    return [*rules, Working(c, c.axis)] if op.kind.compute == "product" else rules


def _data_rules(c: AxisMode, op: OpRecord, batch: Batch) -> list[Rule]:
    carried = batch.factors.get(op.number, ())
    if carried:
        rules: list[Rule] = [OnFactors(c, c.axis, carried)]
        if op.number in batch.summed:
            rules.append((InResults if c.mode in ("zero2", "zero3") else OutOfResults)(c, c.axis))
        return rules
    free = ("zero3",) if op.number in batch.before else ("zero1", "zero2", "zero3")
    every = tuple(range(len(op.factors.sizes)))
    return [] if c.mode in free else [OffFactors(c, c.axis, every), OutOfResults(c, c.axis)]


def _slot_rules(c: AxisMode, slot: Slot, batch: Batch) -> list[Rule]:
    """Parameters, optimizer state and sums; batch arguments along their batch dimension."""
    kind = slot.name.partition(":")[0]
    if slot.batch_dim >= 0:
        return [(OffDimension if c.mode == "tensor" else OnDimension)(c, c.axis, slot.batch_dim)]
    if c.mode == "tensor" or kind not in ("arg", "sum"):
        return []
    split = {
        "arg": ("zero3",) if slot.name in batch.parameters else ("zero1", "zero2", "zero3"),
        "sum": ("zero2", "zero3"),
    }[kind]
    return [(InResults if c.mode in split else OutOfResults)(c, c.axis)]


def clash_on_op(e: Clash, op: OpRecord, mesh: Mesh) -> CompileError:
    """The error where an op cannot be run as constraints want it."""
    why = ""
    if len(e.rules) == 1 and isinstance(e.rules[0], ResultLike):
        kind = op.result_types[e.rules[0].index]
        why = why_not(e.rules[0].pattern, kind, mesh) or _whole(op, e.rules[0])
    return _clash_error(e, f"{op.op.name}", location_text(op.op.location), why)


def clash_on_value(e: Clash, slot: str, kind: TensorType, mesh: Mesh) -> CompileError:
    """The error where an argument, a result or a sum cannot be held as constraints want it."""
    first = e.rules[0].said
    why = why_not(e.rules[0].pattern, kind, mesh) if isinstance(e.rules[0], ResultLike) else ""
    return _clash_error(e, slot, first.where, why)


def _clash_error(e: Clash, who: str, where: str, why: str) -> CompileError:
    said = [r.said for r in e.rules]
    if len(said) == 1:
        return CompileError(f"{who} cannot be sharded as {said[0].text} wants it{why and ': '}{why}", where)
    notes = [Remark(f"this one: {c.text}", c.where, "note") for c in dict.fromkeys(said)]
    return CompileError(f"constraints clash at {who}: each can be kept, but not {len(notes)} together", where, notes)


def why_not(pattern: Pattern, kind: TensorType, mesh: Mesh) -> str:
    """Why no sharding of a tensor is like a pattern."""
    for d, (dim, size) in enumerate(zip(pattern.dims, kind.shape, strict=False)):
        parts = mesh.extent(tuple(a for a in dim.axes if a in mesh.axis_names))
        if size % parts:
            return f"dimension {d} has size {size}, which {parts} devices along {', '.join(dim.axes)} do not divide"
    return ""


def _whole(op: OpRecord, rule: ResultLike) -> str:
    """Which dimension of a result its op cannot split."""
    for d, (dim, mapping) in enumerate(
        zip(rule.pattern.dims, op.factors.results[rule.index] if op.factors.results else (), strict=False)
    ):
        if dim.axes and any(op.factors.kinds[f] == FIXED for f in mapping):
            return f"dimension {d} must stay whole" + (f" ({op.factors.reason})" if op.factors.reason else "")
    return ""
