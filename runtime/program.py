"""A plan decoded for one rank: the flat list of actions of one step, on numbered slots.

Values of a step are (op, result, microbatch); here each becomes a slot of a list, so that the loop does no
look-ups.  The rank's instructions are its part of the total order of all (see `order`).  Two things change on
the way: neighbouring accumulations become one program, and messages overlap with computation (see `overlap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import (
    ONCE,
    Combine,
    Free,
    Instruction,
    Plan,
    Recv,
    Run,
    Send,
    Stage,
    read_plan,
    read_stages,
)
from alpa_mlir.dialect.route import Route, check_route, read_routes
from alpa_mlir.dialect.staged import (
    ARGUMENT,
    Accumulate,
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
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.dialect.tiles import Placement
from alpa_mlir.runtime.actions import Action, Add, Assign, Call, Cut, Drop, Give, Join, Number, Path, Take
from alpa_mlir.runtime.joined import Group, Interface, grouped
from alpa_mlir.runtime.order import total_order
from alpa_mlir.runtime.overlap import overlapped
from alpa_mlir.runtime.stage_function import StageFunction, Tensor, extract


@dataclass(frozen=True)
class Program:
    """One rank's part of a plan.

    `placed` maps the arguments that this rank keeps on its devices to their slots; `hosted` are the arguments
    that it cuts on the host.  `results[k]` is the slot of result k, or -1 where this rank has no part of it.
    `transfers` are those of all ranks in one step.
    """

    plan: Plan
    meshes: tuple[str, ...]
    actions: tuple[Action, ...]
    functions: dict[str, StageFunction]
    slots: int
    placed: dict[int, int]
    hosted: tuple[int, ...]
    results: tuple[int, ...]
    transfers: int
    routes: dict[int, Route]


def read(module: ir.Module) -> Plan:
    """Read a plan, or a split module without schedules; CompileError for anything else."""
    if alpa.get_string(module.operation, alpa.LEVEL) == "split":
        return Plan(read_stages(module), read_main(module), (), None)
    return read_plan(module)


def decode(module: ir.Module, plan: Plan, rank: int, rank_of: Sequence[int]) -> Program:
    """The part of `rank`; `rank_of[d]` is the rank of device d.  CompileError where the plan is malformed."""
    meshes = tuple(name for name, stage in plan.stages.items() if rank in {rank_of[d] for d in stage.devices})
    routes = read_routes(module)
    calls = [s for s in plan.main.steps if isinstance(s, Fragment)]
    parts = {name: extract(module, name) for name in dict.fromkeys(s.function for s in calls)}
    donated = frozenset(step.operands[i] for step in calls for i in parts[step.function].donated)
    decoder = _Decoder(module, plan.main, plan.stages, routes, frozenset(meshes), donated, parts)
    _check_state(plan.main)
    for mesh, instructions in grouped(total_order(plan)):
        decoder.emit(mesh, instructions)
    placed = decoder.placed()
    results = tuple(decoder.slot(r, ONCE) if plan.main.type_of(r).mesh in meshes else -1 for r in plan.main.results)
    return Program(
        plan,
        meshes,
        overlapped(decoder.actions),
        decoder.functions,
        len(decoder.slots),
        placed,
        decoder.hosted(),
        results,
        len(decoder.transfers),
        routes,
    )


def paths_of(main: PlanMain) -> tuple[Path, ...]:
    """The kinds of transfers in the whole plan."""
    steps = [s for s in main.steps if isinstance(s, Transfer)]
    return tuple(dict.fromkeys(Path(main.type_of(s.operands[0]), s.results[0], s.route) for s in steps))


def _check_state(main: PlanMain) -> None:
    for number, argument in enumerate(main.arguments):
        if argument.updates is None:
            continue
        if argument.updates >= len(main.results):
            raise CompileError(f"argument {number} is replaced by result {argument.updates}, which does not exist")
        new = main.type_of(main.results[argument.updates])
        if new != argument.type:
            raise CompileError(f"state argument {number} is {argument.type}, its replacement {new}")


@dataclass
class _Decoder:
    """The slots handed out and the actions emitted so far."""

    module: ir.Module
    main: PlanMain
    stages: dict[str, Stage]
    routes: dict[int, Route]
    meshes: frozenset[str]
    donated: frozenset[Ref]
    """The values whose buffers some stage function takes over."""
    parts: dict[str, StageFunction]
    checked: set[Path] = field(default_factory=set)
    paths: dict[Path, Path] = field(default_factory=dict)
    slots: dict[tuple[Ref, int, bool], int] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    functions: dict[str, StageFunction] = field(default_factory=dict)
    transfers: dict[tuple[int, int], int] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)
    """Calls whose function was seen to fit."""
    joined: dict[tuple[int, ...], tuple[Group, Interface]] = field(default_factory=dict)
    inner: set[int] = field(default_factory=set)
    """Sums that programs keep to themselves."""

    @cached_property
    def readers(self) -> dict[Ref, list[Step]]:
        """The ops that read each value."""
        found: dict[Ref, list[Step]] = {}
        for step in self.main.steps:
            for ref in dict.fromkeys(step.operands):
                found.setdefault(ref, []).append(step)
        return found

    @cached_property
    def crossing(self) -> frozenset[Ref]:
        """The values that are sent to other submeshes."""
        return frozenset(s.operands[0] for s in self.main.steps if isinstance(s, Transfer))

    def slot(self, ref: Ref, microbatch: int, kept: bool = False) -> int:
        """The slot of a value; `kept` names a part of a stack, which outlives the value."""
        key = (ref, microbatch if self.main.per_microbatch(ref) else ONCE, kept)
        return self.slots.setdefault(key, len(self.slots))

    def emit(self, mesh: str, instructions: Sequence[Instruction]) -> None:
        """Append what one instruction does on this rank, or runs that are joined."""
        instruction, *more = instructions
        if isinstance(instruction, Send):
            # Numbered in the total order, on every rank, whether it takes part or not.
            self.transfers[(instruction.id, instruction.microbatch)] = len(self.transfers)
        if mesh not in self.meshes:
            return
        if isinstance(instruction, Free):
            self._free(instruction)
        elif more:
            self._run_joined(instructions)
        elif isinstance(instruction, Run):
            self._run(instruction)
        elif isinstance(instruction, Combine):
            for number in instruction.ids:
                self._combine(mesh, number, instruction.microbatch)
        else:
            self._move(instruction)

    def _free(self, free: Free) -> None:
        slots = tuple([self.slot(ref, free.microbatch) for ref in free.values])
        if self.actions and isinstance(self.actions[-1], Drop):
            self.actions[-1] = Drop((*self.actions[-1].values, *slots))
        else:
            self.actions.append(Drop(slots))

    def _run(self, run: Run) -> None:
        step, microbatch = self.main.step(run.id), run.microbatch
        if isinstance(step, Fragment):
            operands = tuple(self.slot(r, microbatch) for r in step.operands)
            results = tuple(self.slot(Ref(step.id, i), microbatch) for i in range(len(step.results)))
            self.functions[step.function] = self._part(step)
            what = f"@{step.function}" + (f" of microbatch {microbatch}" if microbatch >= 0 else "")
            donated = {step.operands[i] for i in self.functions[step.function].donated}
            given = not donated.isdisjoint(self.crossing)
            self.actions.append(Call(step.function, step.mesh, microbatch, operands, results, what, given))
        elif isinstance(step, Slice):
            if not step.operands[0].is_argument:
                raise CompileError(f"op {step.id}: only arguments of the program are cut into microbatches")
            result = self.slot(Ref(step.id), microbatch)
            number = step.operands[0].result
            self.actions.append(Cut(number, step.dim, microbatch, self.main.microbatches, result, step.results[0]))
        elif isinstance(step, Index):
            self.actions.append(Number(microbatch, self.slot(Ref(step.id), microbatch), step.results[0]))
        else:
            raise CompileError(f"alpa.run names op {run.id}, which is not something to run")

    def _part(self, step: Fragment) -> StageFunction:
        """The function of a call, which fits it."""
        if step.id not in self.called:
            _check_call(self.parts[step.function], step, self.main)
            self.called.add(step.id)
        return self.parts[step.function]

    def _run_joined(self, runs: Sequence[Instruction]) -> None:
        group, interface = self._joined(runs)
        of = {run.id: run.microbatch for run in runs if isinstance(run, Run)}
        reads = {group.alias(ref): of[call.id] for call in group.calls for ref in call.operands}
        operands = tuple(self.slot(ref, reads[ref]) for ref in interface.operands)
        results = tuple(self.slot(ref, of[ref.op]) for ref in interface.results)
        first = runs[0].microbatch
        what = f"@{group.name}" + (f" of microbatch {first}" if first >= 0 else "")
        given = not set(interface.operands[: interface.donated]).isdisjoint(self.crossing)
        self.actions.append(Call(group.name, group.calls[0].mesh, first, operands, results, what, given))

    def _joined(self, runs: Sequence[Instruction]) -> tuple[Group, Interface]:
        """The program of joined runs, made for the first microbatch."""
        key = tuple(run.id for run in runs if isinstance(run, Run))
        if key not in self.joined:
            group = Group(self.main, runs, self.readers)
            parts = {call.function: self._part(call) for call in group.calls}
            interface = group.interface(parts)
            self.functions[group.name] = group.function(self.module, interface)
            self.inner |= interface.inner
            self.joined[key] = group, interface
        return self.joined[key]

    def _move(self, half: Send | Recv) -> None:
        step = self.main.step(half.id)
        if not isinstance(step, Transfer):
            raise CompileError(f"op {half.id} is sent or received, but it is no transfer")
        operand = step.operands[0]
        path = Path(self.main.type_of(operand), step.results[0], step.route)
        path = self.paths.setdefault(path, path)
        self._check_route(path)
        transfer = self.transfers[(half.id, half.microbatch)]
        if isinstance(half, Send):
            value = self.slot(operand, half.microbatch)
            self.actions.append(Give(value, path, transfer, operand in self.donated))
            return
        what = f"transfer {half.id} from {path.source.mesh} to {path.target.mesh}, microbatch {half.microbatch}"
        result = self.slot(Ref(step.id), half.microbatch)
        self.actions.append(Take(result, path, transfer, what, Ref(step.id) in self.donated))

    def _check_route(self, path: Path) -> None:
        if path.route is None or path in self.checked:
            return
        if path.route not in self.routes:
            raise CompileError(f"a transfer takes route {path.route}, which the plan does not have")
        places = [Placement(self.stages[k.mesh].mesh, k.sharding) for k in (path.source, path.target)]
        check_route(self.routes[path.route], path.source.shape, *places)
        self.checked.add(path)

    def _combine(self, mesh: str, number: int, microbatch: int) -> None:
        if number in self.inner:
            return
        step = self.main.step(number)
        seen = self.begun.get(number, 0)
        self.begun[number] = seen + 1
        if isinstance(step, Stack):
            kept = self.slot(step.operands[0], microbatch, kept=True)
            self.actions.append(Assign(self.slot(step.operands[0], microbatch), kept))
            if seen + 1 == self.main.microbatches:
                self._join(step)
            return
        if not isinstance(step, Accumulate):
            raise CompileError(f"op {number} is accumulated, but it is neither alpa.accumulate nor alpa.stack")
        value, total = self.slot(step.operands[0], microbatch), self.slot(Ref(step.id), ONCE)
        if seen == 0:
            self.actions.append(Assign(value, total))
            return
        # The first total *is* the value of one microbatch, which others may still want.
        alone = len(self.readers[step.operands[0]]) == 1
        self._add(Add(mesh, (step.combine,), (total,), (value,), step.results, (alone or seen > 1,)))

    def _join(self, step: Stack) -> None:
        operand = step.operands[0]
        parts = tuple(self.slot(operand, m, kept=True) for m in range(self.main.microbatches))
        part, whole = self.main.type_of(operand), step.results[0]
        self.actions.append(Join(parts, part, self.slot(Ref(step.id), ONCE), whole, step.dim))
        self.actions.append(Drop(parts))

    def _add(self, new: Add) -> None:
        """Append an accumulation, or merge it with the one before (frees between them do not matter)."""
        at = len(self.actions) - 1
        while at >= 0 and isinstance(self.actions[at], Drop):
            at -= 1
        last = self.actions[at] if at >= 0 else None
        if not isinstance(last, Add) or last.mesh != new.mesh or new.totals[0] in last.totals:
            self.actions.append(new)
            return
        self.actions[at] = replace(
            last,
            combine=last.combine + new.combine,
            totals=last.totals + new.totals,
            values=last.values + new.values,
            types=last.types + new.types,
            donate=last.donate + new.donate,
        )

    def placed(self) -> dict[int, int]:
        """Arguments that live on this rank's devices: all but those that are only cut into microbatches."""
        wanted = {r.result for s in self.main.steps if not isinstance(s, Slice) for r in s.operands if r.is_argument}
        wanted |= {r.result for r in self.main.results if r.is_argument}
        wanted |= {i for i, a in enumerate(self.main.arguments) if a.role == "state"}
        here = [i for i in sorted(wanted) if self.main.arguments[i].type.mesh in self.meshes]
        return {i: self.slot(Ref(ARGUMENT, i), ONCE) for i in here}

    def hosted(self) -> tuple[int, ...]:
        """Arguments that this rank cuts into microbatches."""
        return tuple(sorted({a.argument for a in self.actions if isinstance(a, Cut)}))


def _check_call(function: StageFunction, step: Fragment, main: PlanMain) -> None:
    """The call and the function must agree on every shape, type and sharding."""
    given = tuple(_tensor(main.type_of(r)) for r in step.operands)
    for kind, said, has in (("argument", given, function.arguments), ("result", step.results, function.results)):
        if len(said) != len(has):
            raise CompileError(f"@{step.function} has {len(has)} {kind}s, its call {len(said)}")
        for i, (a, b) in enumerate(zip(said, has, strict=True)):
            tensor = _tensor(a) if isinstance(a, MeshTensor) else a
            if tensor != b:
                raise CompileError(f"{kind} {i} of @{step.function} is {b}, its call says {tensor}")


def _tensor(kind: MeshTensor) -> Tensor:
    return Tensor(kind.shape, kind.element, kind.sharding)
