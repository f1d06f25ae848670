"""Splitting a sharded step into stage functions and the dataflow between them.

After `alpa-shard` every op knows its stage, phase and sharding, and every crossing between submeshes
is an `sdy.reshard`.  This pass only rearranges: the ops of one stage and phase become one function,
crossings become transfers, and `@main` becomes the dataflow of one step.  What a stage's forward
leaves for its own backward (the residuals) are plain results and arguments.  Compare Alpa §5 and
Shardy's MPMD dialect, from which calls and transfers are borrowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.plan import read_pipeline
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    read_sharding,
    result_attributes,
    set_argument_attributes,
)
from alpa_mlir.dialect.staged import (
    ARGUMENT,
    Accumulate,
    Argument,
    Fragment,
    Index,
    MeshTensor,
    PlanMain,
    Ref,
    Slice,
    Stack,
    Step,
    Transfer,
)
from alpa_mlir.dialect.staged_main import microbatches_of, part_of, write_main
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.split_donation import donations, replaced_unread
from alpa_mlir.passes.split_fragments import Key, assign, names
from alpa_mlir.passes.split_outline import Outliner, append_arguments, outputs_of
from alpa_mlir.passes.split_parts import Part, classify, live_bindings, read_part, reshard_return

PARTS = ("prologue", "microbatch", "update")


@register
@dataclass(frozen=True)
class Split(Pass):
    """Split a sharded step into one function per stage and phase.

    IR before: level 5: `@prologue`, `@microbatch`, `@update` with shardings, stages and phases on every op.
    IR after: level 6: private functions `@stage_<s>_forward`, `@stage_<s>_backward`, `@stage_<s>_update[_<r>]`,
    `@stage_<s>_prologue[_<r>]`, and `@main` as calls and transfers of `!mpmd.mesh_tensor` values. With `weight-apart`
    backward holds what another stage waits for, and `@stage_<s>_weight` the rest.
    Precondition: forward edges run to equal or higher stages, backward edges to equal or lower ones.
    """

    name: ClassVar[str] = "alpa-split"
    weight_apart: bool = option(False, "gradients of parameters apart from those of inputs (zero-bubble schedules)")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        level = alpa.get_string(module.operation, alpa.LEVEL)
        if level != "sharded" or not {"main", "microbatch", "update"} <= set(functions(module)):
            raise CompileError(
                f"alpa-split needs a sharded module with @microbatch and @update (alpa.level is {level!r}): "
                "run alpa-microbatch (one microbatch is enough), alpa-layers, alpa-stages and alpa-shard first",
                module.operation.location,
            )
        _Splitter(module, self.weight_apart).run()
        alpa.set_string(module.operation, alpa.LEVEL, "split")


class _Splitter:
    """The state of one split: the parts, the fragments found, and the steps of `@main` emitted so far."""

    def __init__(self, module: ir.Module, weight_apart: bool) -> None:
        self.module = module
        self.weight_apart = weight_apart
        self.meshes: dict[str, Mesh] = meshes_of(module)
        pipeline = read_pipeline(module)
        self.first_stages = {mesh: pipeline.index(mesh) for mesh in pipeline}
        found = functions(module)
        self.old_main = found["main"]
        self.parts = {name: read_part(found[name]) for name in PARTS if name in found}
        self.arguments = self._read_arguments()
        self.keys: dict[str, dict[int, Key]] = {}
        self.members: dict[Key, list[int]] = {}
        self.outputs: dict[Key, list[ir.Value]] = {}
        self.names: dict[Key, str] = {}
        self.functions: dict[str, ir.Operation] = {}
        self.steps: list[Step] = []
        self.made: dict[ir.Value, Ref] = {}
        self.shared: dict[object, Ref] = {}

    def run(self) -> None:
        """Rewrite the module."""
        self._match_boundaries()
        self._find_live()
        self._group()
        for key in sorted(self.members, key=lambda k: k.order):
            self._emit_fragment(key)
        update = self.parts["update"]
        order = sorted(range(len(update.returns)), key=lambda k: update.result_bindings[k].number)
        results = tuple(self._resolve(update, update.returns[k]) for k in order)
        main = PlanMain(self.arguments, tuple(self.steps), results, (), microbatches_of(self.module))
        self._finish(self._with_buffers(main))

    # The interface of the program

    def _read_arguments(self) -> tuple[Argument, ...]:
        homes: dict[int, MeshTensor] = {}
        block = self.old_main.regions[0].blocks[0]
        for kind in ("arg", "batch"):
            for part in self.parts.values():
                for binding, entry in zip(part.argument_bindings, part.argument_entries, strict=True):
                    if binding.kind == kind:
                        self._add_home(homes, binding.number, entry, kind == "arg")
        found = []
        for i, (value, entry) in enumerate(zip(block.arguments, argument_attributes(self.old_main), strict=True)):
            unused = MeshTensor.of(value.type, next(iter(self.first_stages)), _replicated(value))
            role = ir.StringAttr(entry[alpa.ROLE]).value if alpa.ROLE in entry else "constant"
            updates = int(ir.IntegerAttr(entry[alpa.UPDATES]).value) if alpa.UPDATES in entry else None
            name = ir.NameLoc(value.location).name_str if isinstance(value.location, ir.NameLoc) else ""
            found.append(Argument(homes.get(i, unused), role, updates, name, alpa.NONNEGATIVE in entry, part_of(entry)))
        return tuple(found)

    def _add_home(self, homes: dict[int, MeshTensor], number: int, entry: dict[str, ir.Attribute], whole: bool) -> None:
        value = self.old_main.regions[0].blocks[0].arguments[number]
        kind = MeshTensor.of(value.type, *read_sharding(entry[SHARDING]))
        known = homes.setdefault(number, kind)
        if whole and known != kind:
            raise CompileError(f"argument {number} lives as {known} in one function and as {kind} in another")

    def _match_boundaries(self) -> None:
        """Values returned by one part have the type their reader wants; new state that of the old."""
        update = self.parts["update"]
        for argument in self.arguments:
            if argument.updates is not None:
                self._match(update, Binding("out", argument.updates), argument.type, {}, "update")
        for reader in self.parts.values():
            for value, number in reader.arguments.items():
                binding, entry = reader.argument_bindings[number], reader.argument_entries[number]
                if binding.kind == "prologue":
                    self._match(self._prologue(reader), binding, reader.types[value], entry, "prologue")
                elif binding.kind in ("sum", "stack"):
                    producer = self.parts["microbatch"]
                    kind = reader.types[value]
                    if binding.kind == "stack":
                        kind = MeshTensor.of(producer.returned(binding).type, kind.mesh, kind.sharding)
                    self._match(producer, binding, kind, entry, "backward")

    def _prologue(self, reader: Part) -> Part:
        if "prologue" not in self.parts:
            raise CompileError(f"@{reader.name} reads a prologue value, but there is no @prologue")
        return self.parts["prologue"]

    def _match(
        self, part: Part, binding: Binding, wanted: MeshTensor, reader: dict[str, ir.Attribute], phase: str
    ) -> None:
        """Let a part return a value as the entry `reader` of the argument that takes it says."""
        value = part.returned(binding)
        if part.types[value] != wanted:
            if phase == "backward":
                source = part.producer(value)
                phase = "forward" if source is None else part.phase(source)
            number = part.result_of[binding]
            home = reader.get(alpa.STAGE)
            stage = self.first_stages[wanted.mesh] if home is None else int(ir.IntegerAttr(home).value)
            reshard_return(part, number, wanted, stage, phase)

    # What is live, and in which fragment

    def _find_live(self) -> None:
        wanted: set[Binding] = set()
        for name in reversed(PARTS):
            if name in self.parts:
                part = self.parts[name]
                numbers = range(len(part.returns))
                classify(part, [k for k in numbers if name == "update" or part.result_bindings[k] in wanted])
                wanted.update(live_bindings(part))

    def _group(self) -> None:
        for name, part in self.parts.items():
            self.keys[name] = assign(part, self.first_stages, self.weight_apart)
            for position, key in self.keys[name].items():
                self.members.setdefault(key, []).append(position)
        for name, part in self.parts.items():
            elsewhere = self._read_elsewhere(part, self.keys[name])
            for key in dict.fromkeys(self.keys[name].values()):
                self.outputs[key] = outputs_of(part, self.members[key], elsewhere[key])
        self.names = names(list(self.members))

    def _read_elsewhere(self, part: Part, keys: dict[int, Key]) -> dict[Key, set[ir.Value]]:
        """Per fragment the values of it that others, transfers, or the caller read."""
        found: dict[Key, set[ir.Value]] = {key: set() for key in keys.values()}
        for i, live in enumerate(part.live):
            for value in self._kept_for(part, i, keys) if live else ():
                source = part.producer(value)
                if source in keys and not part.recomputable[source]:
                    found[keys[source]].add(value)
        for value in part.returns:
            source = part.producer(value)
            if source in keys:
                found[keys[source]].add(value)
        return found

    @staticmethod
    def _kept_for(part: Part, position: int, keys: dict[int, Key]) -> list[ir.Value]:
        """What an op reads of other fragments: a value, or the leaves from which its fragment repeats it."""
        kept: list[ir.Value] = []
        for value in part.inputs(position):
            source = part.producer(value)
            if source is not None and (source not in keys or keys.get(position) != keys[source]):
                kept += [value] if part.transfer[position] else part.leaves.get(value, (value,))
        return kept

    # Emission of @main, operands before their readers

    def _emit_fragment(self, key: Key) -> None:
        part = self.parts[key.phase if key.phase in self.parts else "microbatch"]
        members, outputs = self.members[key], self.outputs[key]
        mesh = self.meshes[part.mesh(members[0])]
        outliner = Outliner(part, mesh, lambda v: self._resolve(part, v), self._type_of)
        made = outliner.outline(self.module, self.names[key], members, outputs)
        self.functions[self.names[key]] = made.function
        results = tuple(part.types[v] for v in outputs)
        number = self._next_id()
        name = self.names[key]
        self.steps.append(Fragment(number, key.phase, key.stage, mesh.name, name, made.operands, results))
        self.made.update({v: Ref(number, k) for k, v in enumerate(outputs)})

    def _next_id(self) -> int:
        return len(self.steps)

    def _type_of(self, ref: Ref) -> MeshTensor:
        if ref.is_argument:
            return self.arguments[ref.result].type
        return self.steps[ref.op].results[ref.result]

    def _share(self, what: object, step: Step) -> Ref:
        """The result of `step`, emitted now unless an equal one (by `what`) was."""
        if what not in self.shared:
            self.steps.append(step)
            self.shared[what] = Ref(step.id)
        return self.shared[what]

    def _resolve(self, part: Part, value: ir.Value) -> Ref:
        """The value of `@main` that a part's value stands for."""
        if value in self.made:
            return self.made[value]
        source = part.producer(value)
        if source is None:
            return self._resolve_argument(part, part.binding(value), part.types[value])
        origin = part.ops[source].operands[0]
        wanted = part.types[value]
        if part.producer(origin) is None and part.binding(origin).kind in ("batch", "index"):
            return self._resolve_argument(part, part.binding(origin), wanted)
        ref = self._resolve(part, origin)
        if self._type_of(ref) == wanted:
            return ref
        phase = "prologue" if part.name == "microbatch" and self._is_per_step(ref) else None
        phase = phase or (part.phase(source) if part.name == "microbatch" else part.name)
        return self._share(("transfer", ref, wanted), Transfer(self._next_id(), phase, (ref,), (wanted,)))

    def _is_per_step(self, ref: Ref) -> bool:
        while not ref.is_argument and isinstance(self.steps[ref.op], Transfer):
            ref = self.steps[ref.op].operands[0]
        return ref.is_argument or not PlanMain((), (self.steps[ref.op],), ()).per_microbatch(ref)

    def _resolve_argument(self, part: Part, binding: Binding, kind: MeshTensor) -> Ref:
        if binding.kind == "arg":
            return Ref(ARGUMENT, binding.number)
        if binding.kind == "batch":
            ref = Ref(ARGUMENT, binding.number)
            dim = self._dim(part.argument_entries[part.argument_of[binding]])
            return self._share(("batch", ref, kind), Slice(self._next_id(), dim, (ref,), (kind,)))
        if binding.kind == "index":
            return self._share(("index", kind), Index(self._next_id(), (kind,)))
        if binding.kind == "prologue":
            prologue = self._prologue(part)
            return self._resolve(prologue, prologue.returned(binding))
        return self._collect(binding, kind)

    def _collect(self, binding: Binding, kind: MeshTensor) -> Ref:
        part = self.parts["microbatch"]
        ref = self._resolve(part, part.returned(binding))
        entry = part.result_entries[part.result_of[binding]]
        if binding.kind == "stack":
            dim = self._dim(part.result_entries[part.result_of[binding]])
            return self._share(("stack", ref, dim), Stack(self._next_id(), dim, (ref,), (kind,)))
        combine = ir.StringAttr(entry[alpa.COMBINE]).value if alpa.COMBINE in entry else "add"
        return self._share(("sum", ref, combine), Accumulate(self._next_id(), combine, (ref,), (kind,)))

    @staticmethod
    def _dim(entry: dict[str, ir.Attribute]) -> int:
        return int(ir.IntegerAttr(entry[alpa.DIM]).value) if alpa.DIM in entry else 0

    def _with_buffers(self, main: PlanMain) -> PlanMain:
        """The same with all state that updates replace as their operands."""
        steps = list(main.steps)
        for number, replaced in replaced_unread(main).items():
            call = steps[number]
            assert isinstance(call, Fragment)
            append_arguments(self.functions[call.function], [main.arguments[k].type for k in replaced])
            steps[number] = replace(call, operands=(*call.operands, *(Ref(ARGUMENT, k) for k in replaced)))
        return replace(main, steps=tuple(steps))

    # The new module

    def _finish(self, main: PlanMain) -> None:
        entries = [
            {n: a for n, a in entry.items() if n not in (SHARDING, alpa.BINDING)}
            for entry in result_attributes(self.old_main)
        ]
        for part in self.parts.values():
            part.function.erase()
        self.old_main.erase()
        for name, pairs in donations(main).items():
            attributes = argument_attributes(self.functions[name])
            for argument, result in pairs:
                attributes[argument][alpa.DONATE] = alpa.i64(result, self.module.context)
            set_argument_attributes(self.functions[name], attributes)
        write_main(self.module, main, entries)


def _replicated(value: ir.Value) -> Sharding:
    return Sharding.replicated(len(ir.RankedTensorType(value.type).shape))
