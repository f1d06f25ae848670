"""Stage functions that the plan joins, as one program.

`alpa.run` with `joined` says that its function is one program with that of the run before it (docs/ir.md, level 7).
The program calls them one after the other; what only they read is no result of it.  With one microbatch a sum over
microbatches is the value itself, so that an update, too, can stand in one program with what it sums up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func

from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Instruction, Plan, Run
from alpa_mlir.dialect.sharding import SHARDING, set_argument_attributes, set_result_attributes, sharding_attribute
from alpa_mlir.dialect.staged import Accumulate, Fragment, MeshTensor, PlanMain, Ref, Stack, Step
from alpa_mlir.runtime.stage_function import StageFunction, Tensor, cut_out

Placed = tuple[str, Instruction]


def grouped(order: Iterable[Placed]) -> list[tuple[str, list[Instruction]]]:
    """Instructions in order, joined runs in one entry, what stands between them behind it."""
    found: list[tuple[str, list[Instruction]]] = []
    latest: dict[str, int] = {}
    for mesh, instruction in order:
        if isinstance(instruction, Run) and instruction.joined and mesh in latest:
            found[latest[mesh]][1].append(instruction)
            continue
        if isinstance(instruction, Run):
            latest[mesh] = len(found)
        found.append((mesh, [instruction]))
    return found


def programs_of(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The stage functions of every program of several, by its name."""
    found = {}
    for schedule in plan.schedules:
        for _, runs in grouped((schedule.mesh, i) for i in schedule.instructions):
            if len(runs) > 1:
                calls = _calls(plan.main, runs)
                found[joined_name(calls)] = tuple([call.function for call in calls])
    return found


def joined_name(calls: Sequence[Fragment]) -> str:
    """`stage_1_forward+backward`."""
    first, *rest = [call.function for call in calls]
    stage = re.match(r"stage_\d+_", first)
    return "+".join([first, *(name.removeprefix(stage[0] if stage else "") for name in rest)])


def _calls(main: PlanMain, runs: Iterable[Instruction]) -> list[Fragment]:
    steps = [main.step(run.id) for run in runs if isinstance(run, Run)]
    if not all(isinstance(step, Fragment) for step in steps):
        raise CompileError("alpa.run with joined names an op that is no fragment_call, or follows one (S9)")
    return [step for step in steps if isinstance(step, Fragment)]


@dataclass(frozen=True)
class Interface:
    """What of `@main` a program takes and gives: it takes over the first `donated` operands, for `results[into[k]]`.

    `inner` are sums of a single microbatch that nothing outside reads.
    """

    operands: tuple[Ref, ...]
    results: tuple[Ref, ...]
    donated: int
    into: tuple[int, ...]
    inner: frozenset[int]


class Group:
    """Runs that are one program; `parts` are their functions, in order, by name."""

    def __init__(self, main: PlanMain, runs: Sequence[Instruction], readers: Mapping[Ref, Sequence[Step]]) -> None:
        self.main, self.calls, self._readers = main, _calls(main, runs), readers
        self.name = joined_name(self.calls)
        self._made = {call.id for call in self.calls}

    def alias(self, ref: Ref) -> Ref:
        """The value of the group that a sum of a single microbatch is; any other value itself."""
        step = None if ref.is_argument else self.main.step(ref.op)
        if isinstance(step, (Accumulate, Stack)) and self.main.microbatches == 1 and step.operands[0].op in self._made:
            if self.main.type_of(ref) != self.main.type_of(step.operands[0]):
                raise CompileError(f"op {step.id} changes the type of what it collects")
            return step.operands[0]
        return ref

    def _leaves(self, ref: Ref) -> bool:
        """Whether something outside needs a value."""
        return ref in self.main.returned or any(self._outside(step) for step in self._readers.get(ref, ()))

    def _outside(self, reader: Step) -> bool:
        if isinstance(reader, (Accumulate, Stack)) and self.main.microbatches == 1:
            return self._leaves(Ref(reader.id))
        return reader.id not in self._made

    def interface(self, parts: Mapping[str, StageFunction]) -> Interface:
        """What it takes and gives: donated operands and what takes their place first, in one order.

        jax gives a donated buffer to the first result of its type.
        """
        read = dict.fromkeys(self.alias(ref) for call in self.calls for ref in call.operands)
        taken = [ref for ref in read if ref.is_argument or ref.op not in self._made]
        made = [Ref(call.id, k) for call in self.calls for k in range(len(call.results))]
        given = [ref for ref in made if self._leaves(ref)]
        over: dict[Ref, Ref] = {}
        for call in self.calls:
            part = parts[call.function]
            for operand, result in zip(part.donated, part.into, strict=True):
                over.setdefault(self.alias(call.operands[operand]), Ref(call.id, result))
        pairs = {old: new for old, new in over.items() if old in set(taken) and new in set(given)}
        operands = tuple(dict.fromkeys([*pairs, *taken]))
        results = tuple(dict.fromkeys([*pairs.values(), *given]))
        inner = frozenset(
            step.id
            for ref, steps in self._readers.items()
            if ref.op in self._made
            for step in steps
            if isinstance(step, (Accumulate, Stack)) and not self._outside(step)
        )
        return Interface(operands, results, len(pairs), tuple(results.index(new) for new in pairs.values()), inner)

    def function(self, module: ir.Module, interface: Interface) -> StageFunction:
        """One function that calls all."""
        kinds = [[self.main.type_of(ref) for ref in refs] for refs in (interface.operands, interface.results)]
        arguments, results = (tuple([Tensor(k.shape, k.element, k.sharding) for k in side]) for side in kinds)
        write = partial(self._text, module, interface, kinds)
        return StageFunction(self.name, write, arguments, results, tuple(range(interface.donated)), interface.into)

    def _text(self, module: ir.Module, interface: Interface, types: Sequence[Sequence[MeshTensor]]) -> str:
        """The function, of arguments and results of these types, as a module."""
        mesh, found = self.calls[0].mesh, functions(module)
        with module.context, ir.Location.unknown():
            alone = cut_out(module, found, [call.function for call in self.calls])
            made = functions(alone)
            kinds = [[_plain_type(kind) for kind in side] for side in types]
            whole = func.FuncOp(
                "main", ir.FunctionType.get(*kinds), visibility="public", ip=ir.InsertionPoint(alone.body)
            )
            shardings = [
                [{SHARDING: sharding_attribute(k.sharding, mesh, module.context)} for k in side] for side in types
            ]
            set_argument_attributes(whole.operation, shardings[0])
            set_result_attributes(whole.operation, shardings[1])
            self._fill(whole.add_entry_block(), interface, made)
            for number, call in enumerate(self.calls):
                made[call.function].attributes["sym_name"] = ir.StringAttr.get(f"part_{number}")
                made[call.function].attributes["sym_visibility"] = ir.StringAttr.get("private")
            alone.operation.verify()
            return print_module(alone)

    def _fill(self, block: ir.Block, interface: Interface, functions: Mapping[str, ir.Operation]) -> None:
        """The calls, and the return."""
        values: dict[Ref, ir.Value] = dict(zip(interface.operands, block.arguments, strict=True))
        ip = ir.InsertionPoint(block)
        for number, call in enumerate(self.calls):
            kinds = ir.FunctionType(ir.TypeAttr(functions[call.function].attributes["function_type"]).value).results
            operands = [values[self.alias(ref)] for ref in call.operands]
            op = func.CallOp(kinds, ir.FlatSymbolRefAttr.get(f"part_{number}"), operands, ip=ip)
            values |= {Ref(call.id, k): value for k, value in enumerate(op.results)}
        func.ReturnOp([values[ref] for ref in interface.results], ip=ip)


def _plain_type(kind: MeshTensor) -> ir.Type:
    """The plain tensor type; within the context."""
    return ir.Type.parse(kind.tensor_text)
