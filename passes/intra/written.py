"""Shardings that the program itself asks for, as pins: on arguments, results and ops, and constraints.

Their axes belong to a mesh of the program's own (`sdy.mesh`), which need not be the plan's: axes are the
same where names and sizes agree, or where the two meshes have the same shape; otherwise the sharding is
ignored with a warning. Priorities are ignored, sub-axes are not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import Remark, location_text
from alpa_mlir.dialect.mesh import Mesh, mesh_of_attribute, meshes_of
from alpa_mlir.dialect.sharding import SHARDING, argument_attributes, result_attributes
from alpa_mlir.passes.intra.annotate import Choices
from alpa_mlir.passes.intra.constraints import DimPattern, Pattern, Pin
from alpa_mlir.passes.intra.program import Program
from alpa_mlir.passes.intra.restrictions import slots_of, why_not

CONSTRAINT = "sdy.sharding_constraint"


def pinned_results(module: ir.Module) -> frozenset[int]:
    """Numbers of the results of @main that carry a sharding."""
    main = functions(module).get("main")
    return frozenset(i for i, e in enumerate(result_attributes(main)) if SHARDING in e) if main else frozenset()


def written_pins(program: Program, mesh_of_stage: Callable[[int], Mesh], remarks: list[Remark]) -> list[Pin]:
    """What the module asks for, in order; remarks say what of it is not taken."""
    reader = _Reader(program, mesh_of_stage, remarks)
    main = functions(program.module).get("main")
    if main is not None:
        where = location_text(main.location)
        for what, entries in (("arg", argument_attributes(main)), ("out", result_attributes(main))):
            for number, entry in enumerate(entries):
                if SHARDING in entry:
                    stage = reader.stage_of(what, number)
                    reader.pin(entry[SHARDING], what, f"the sharding of {what}{number}", where, stage, number)
    for op in program.ops:
        for index, attribute in _on_op(op.op):
            name = op.op.name if op.op.name == CONSTRAINT else f"the sharding of {op.op.name}"
            reader.pin(attribute, "op", name, location_text(op.op.location), op.stage, op.number, index)
    return reader.found


def _on_op(op: ir.Operation) -> Iterator[tuple[int, ir.Attribute]]:
    """(result number, sharding) of an op."""
    if op.name == CONSTRAINT:
        yield 0, op.attributes["sharding"]
    elif SHARDING in op.attributes:
        yield from enumerate(sdy.TensorShardingPerValueAttr(op.attributes[SHARDING]).shardings)


class _Reader:
    def __init__(self, program: Program, mesh_of_stage: Callable[[int], Mesh], remarks: list[Remark]) -> None:
        self.program = program
        self.mesh_of_stage = mesh_of_stage
        self.remarks = remarks
        self.declared = meshes_of(program.module)
        self.found: list[Pin] = []

    def stage_of(self, what: str, number: int) -> int:
        """The stage that keeps an argument of @main; the first where that is not said."""
        slots = slots_of(Pin("", "", what, Pattern(()), number), self.program)
        return max((slot.stage for slot in slots), default=0)

    def pin(
        self, attribute: ir.Attribute, what: str, text: str, where: str, stage: int, number: int, index: int = -1
    ) -> None:
        """Add a sharding as a pin, or say why not."""
        sharding = sdy.TensorShardingAttr(attribute)
        mesh = self._mesh(sharding.mesh_or_ref)
        names = self._axes(mesh, self.mesh_of_stage(max(stage, 0)), sharding) if mesh is not None else None
        if names is None:
            self.remarks.append(Remark(f"{text} is ignored: {self._why(mesh, stage, sharding)}", where, "warning"))
            return
        if any(sdy.DimensionShardingAttr(d).priority is not None for d in sharding.dimension_shardings):
            self.remarks.append(Remark(f"{text} is kept, its priorities are ignored", where))
        pin = Pin(text, where, what, _pattern(sharding, names), number, index, written=True)
        if what == "op" or slots_of(pin, self.program):
            self.found.append(pin)

    def _mesh(self, attribute: ir.Attribute) -> Mesh | None:
        if isinstance(attribute, ir.FlatSymbolRefAttr):
            return self.declared.get(ir.FlatSymbolRefAttr(attribute).value)
        return mesh_of_attribute("", attribute)

    def _axes(self, theirs: Mesh, ours: Mesh, sharding: sdy.TensorShardingAttr) -> dict[str, str] | None:
        """The plan's axis for each axis of the program's mesh; None where they do not agree."""
        used = _axes_of(sharding)
        if any(sdy.AxisRefAttr(a).sub_axis_info is not None for a in used) or list(sharding.unreduced_axes):
            return None
        names = [sdy.AxisRefAttr(a).name for a in used]
        if all(n in ours.axis_names and ours.size(n) == theirs.size(n) for n in names):
            return {n: n for n in names}
        left, right = ([(n, size) for n, size in mesh.axes if size > 1] for mesh in (theirs, ours))
        if [size for _, size in left] != [size for _, size in right]:
            return None
        return {a: b for (a, _), (b, _) in zip(left, right, strict=True)}

    def _why(self, mesh: Mesh | None, stage: int, sharding: sdy.TensorShardingAttr) -> str:
        if mesh is None:
            return "its mesh is not declared"
        if any(sdy.AxisRefAttr(a).sub_axis_info is not None for a in _axes_of(sharding)):
            return "it splits axes into parts"
        if list(sharding.unreduced_axes):
            return "it leaves a value unreduced"
        ours = self.mesh_of_stage(max(stage, 0))
        return f"its mesh is {_words(mesh)}, the plan's {_words(ours)}"


def _words(mesh: Mesh) -> str:
    return ", ".join(f"{name}={size}" for name, size in mesh.axes)


def _axes_of(sharding: sdy.TensorShardingAttr) -> list[ir.Attribute]:
    dims = [sdy.DimensionShardingAttr(d) for d in sharding.dimension_shardings]
    return [*(a for d in dims for a in d.axes), *sharding.replicated_axes]


def _pattern(sharding: sdy.TensorShardingAttr, names: dict[str, str]) -> Pattern:
    """The pattern of a sharding; axes of one device split nothing and are left out."""

    def named(axes: Sequence[ir.Attribute]) -> tuple[str, ...]:
        return tuple(names[n] for n in (sdy.AxisRefAttr(a).name for a in axes) if n in names)

    whole = named(sharding.replicated_axes)
    dims = [sdy.DimensionShardingAttr(d) for d in sharding.dimension_shardings]
    return Pattern(tuple(DimPattern(named(d.axes), not d.is_closed, () if d.is_closed else whole) for d in dims))


def not_kept(pins: Sequence[Pin], program: Program, choices: Choices, meshes: Sequence[Mesh]) -> Iterator[Remark]:
    """A warning for each pin of the program that no strategy could obey."""
    for pin in pins:
        if pin.what == "op":
            op = program.ops[pin.number]
            if op.is_source or pin.pattern.allows(choices.ops[pin.number].results[pin.index]):
                continue
            kind, stage = op.result_types[pin.index], max(op.stage, 0)
        else:
            slot = next(iter(slots_of(pin, program)), None)
            if slot is None or pin.pattern.allows(choices.slots[slot.name][1]):
                continue
            kind, stage = slot.type, max(slot.stage, 0)
        why = why_not(pin.pattern, kind, meshes[stage]) or "nothing can be run so"
        yield Remark(f"{pin.text} {pin.pattern} cannot be kept: {why}", pin.where, "warning")
