"""From an analysed `@main` to the functions of level 2 and the bindings between them (docs/ir.md).

Order of work: what the update needs decides which sums and stacks leave the microbatches; what they need decides
what is computed beforehand.  Sums, stacks and prologue values are numbered in program order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func, stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.dialect.sharding import set_argument_attributes, set_result_attributes
from alpa_mlir.passes.local.shrink import Shape, tensor_type
from alpa_mlir.passes.local.time_analysis import TimeAnalysis
from alpa_mlir.passes.local.time_cut import accumulated
from alpa_mlir.passes.local.time_demand import LOCAL, RAW, WHOLE, BlockDemand, Form
from alpa_mlir.passes.local.time_emit import MicrobatchEmitter, scale, stack_form
from alpa_mlir.passes.local.time_loop import Piece, Port, replace_main
from alpa_mlir.passes.local.time_states import STATISTIC, local_shape
from alpa_mlir.passes.local.time_whole import WholeProgram

Values = dict[ir.Value, None]
"""An ordered set of values."""


class Microbatched:
    """The level-2 functions of one analysed `@main`; `write` puts them in its place."""

    def __init__(self, main: ir.Operation, analysis: TimeAnalysis) -> None:
        self.main, self.analysis, self.parts = main, analysis, analysis.parts
        self.block = analysis.block
        self.numbers = {a: i for i, a in enumerate(self.block.arguments)}
        self.results = list(analysis.ops[-1].operands)
        order = (*self.block.arguments, *(r for op in analysis.ops for r in op.results))
        self.order = {value: i for i, value in enumerate(order)}
        self.ports: dict[ir.Value, Port] = {}

    def write(self) -> None:
        """Write the functions and replace `@main`."""
        beforehand = self._wanted_whole(self._demand(self._candidates()))
        sums = accumulated(self.analysis, self.results, beforehand)
        update = WholeProgram(self.block, self.results, lambda v: self._is_given(v, sums, beforehand))
        leaving = [v for v in update.arguments if v not in self.numbers and v not in beforehand]
        demand = self._demand(leaving)
        used = self._wanted_whole(demand) | {v: None for v in update.arguments if v in beforehand}
        whole = sorted(used, key=self.order.__getitem__)
        self._number(leaving, whole)
        prologue = self._prologue(whole) if whole else None
        microbatch = self._microbatch(demand, leaving, whole)
        last = self._update(update)
        stacks = [self._whole_type(v) for v in leaving if self.analysis.state(v).is_split]
        replace_main(self.main, microbatch, last, prologue, stacks, self.parts)

    def _candidates(self) -> list[ir.Value]:
        """All values that might leave the microbatches."""
        nested, states = self.analysis.nested, self.analysis.states
        found = [v for v, s in states.items() if (s.is_partial or s == STATISTIC) and v not in nested]
        return found + [v for v in self.results if self.analysis.state(v).is_split]

    def _demand(self, leaving: Iterable[ir.Value]) -> BlockDemand:
        demand = BlockDemand(self.analysis, self.block)
        for value in leaving:
            demand.ask(value, self._leaving_form(value))
        demand.process()
        return demand

    def _leaving_form(self, value: ir.Value) -> Form:
        return RAW if value in self.analysis.statistics else LOCAL

    def _wanted_whole(self, demand: BlockDemand) -> Values:
        return {v: None for v, forms in demand.forms.items() if WHOLE in forms}

    def _is_given(self, value: ir.Value, sums: set[ir.Value], beforehand: Values) -> bool:
        """Whether the update gets a value from outside rather than computing it."""
        state = self.analysis.state(value)
        return value in beforehand or value in sums or state.is_split or state == STATISTIC

    def _number(self, leaving: Sequence[ir.Value], whole: Sequence[ir.Value]) -> None:
        """Give every value between the functions its binding."""
        stacks = [v for v in leaving if self.analysis.state(v).is_split]
        for k, value in enumerate(stacks):
            piece, _, dim = self._stack(value)
            self.ports[value] = Port(Binding("stack", k), tensor_type(piece, value), dim)
        for k, value in enumerate(v for v in leaving if v not in self.ports):
            state = self.analysis.statistics.get(value, self.analysis.state(value))
            self.ports[value] = Port(Binding("sum", k), value.type, combine=state.combine or "add")
        for k, value in enumerate(whole):
            self.ports[value] = Port(Binding("prologue", k), value.type)

    def _stack(self, value: ir.Value) -> tuple[Shape, Shape, int]:
        return stack_form(self.analysis.state(value), shape_of(value) or (), self.parts)

    def _whole_type(self, value: ir.Value) -> ir.Type:
        """The type of a value in the update: of a stack with all microbatches, else its own."""
        port = self.ports[value]
        return tensor_type(self._stack(value)[1], value) if port.binding.kind == "stack" else port.type

    def _argument(self, value: ir.Value) -> Port:
        return Port(Binding("arg", self.numbers[value]), value.type)

    def _prologue(self, whole: Sequence[ir.Value]) -> Piece:
        program = WholeProgram(self.block, whole, lambda _: False)
        arguments = [self._argument(v) for v in program.arguments]
        builder = _Function(self.main, "prologue", arguments)
        results = program.emit(dict(zip(program.arguments, builder.arguments, strict=True)), builder.ip)
        return builder.finish(results, [self.ports[v] for v in whole])

    def _microbatch(self, demand: BlockDemand, leaving: Sequence[ir.Value], whole: Sequence[ir.Value]) -> Piece:
        analysis = self.analysis
        wanted = self._wanted_whole(demand)
        inside = [v for v in whole if v in wanted]
        taken = [a for a in self.block.arguments if LOCAL in demand.forms.get(a, ())]
        index = Port(Binding("index"), ir.RankedTensorType.get([], ir.IntegerType.get_signless(32)))
        arguments = [*(self._local_argument(a) for a in taken), *(self.ports[v] for v in inside), index]
        builder = _Function(self.main, "microbatch", arguments)
        emitter = MicrobatchEmitter(analysis, builder.block, builder.arguments[-1])
        for old, new in zip((*taken, *inside), builder.arguments, strict=False):
            emitter.env[old, WHOLE if old in wanted else LOCAL] = new
        emitter.run(demand)
        results = [self._leave(emitter, v) for v in leaving]
        emitter.finish()
        builder.drop_unused_last()
        return builder.finish(results, [self.ports[v] for v in leaving])

    def _local_argument(self, argument: ir.Value) -> Port:
        state = self.analysis.state(argument)
        if not state.is_split:
            return self._argument(argument)
        shape = local_shape(shape_of(argument) or (), state, self.parts)
        return Port(Binding("batch", self.numbers[argument]), tensor_type(shape, argument), state.dim)

    def _leave(self, emitter: MicrobatchEmitter, value: ir.Value) -> ir.Value:
        """A result of the microbatch: a part of a sum, a share of an average, a piece of a stack."""
        local = emitter.env[value, self._leaving_form(value)]
        location = value.location
        if self.analysis.state(value) == STATISTIC and value not in self.analysis.statistics and self.parts > 1:
            return scale(local, 1 / self.parts, emitter.ip, location)
        port = self.ports[value]
        if local.type == port.type:
            return local
        with emitter.ip, location:
            return stablehlo.reshape(port.type, local)

    def _update(self, program: WholeProgram) -> Piece:
        ports = []
        for value in program.arguments:
            port = self._argument(value) if value in self.numbers else self.ports[value]
            kind = value.type if value in self.numbers else self._whole_type(value)
            ports.append(Port(port.binding, kind, port.dim, port.combine))
        builder = _Function(self.main, "update", ports)
        env: dict[ir.Value, ir.Value] = {}
        for old, new in zip(program.arguments, builder.arguments, strict=True):
            with builder.ip, old.location:
                env[old] = new if new.type == old.type else stablehlo.reshape(old.type, new)
        results = program.emit(env, builder.ip)
        outs = [Port(Binding("out", i), v.type) for i, v in enumerate(results)]
        return builder.finish(results, outs)


class _Function:
    """A private function under construction; its type is known when its results are."""

    def __init__(self, main: ir.Operation, name: str, ports: Sequence[Port]) -> None:
        self.name, self.ports = name, list(ports)
        types = [p.type for p in ports]
        self.function = func.FuncOp(
            name, (types, []), visibility="private", loc=main.location, ip=ir.InsertionPoint(main)
        )
        self.block = self.function.add_entry_block([main.location] * len(types))
        self.ip = ir.InsertionPoint(self.block)
        self.arguments = list(self.block.arguments)

    def drop_unused_last(self) -> None:
        """Remove the last argument if nothing uses it."""
        if not any(True for _ in self.block.arguments[len(self.ports) - 1].uses):
            self.block.erase_argument(len(self.ports) - 1)
            self.ports.pop()

    def finish(self, results: Sequence[ir.Value], ports: Sequence[Port]) -> Piece:
        """Return the results, set type and bindings."""
        operation = self.function.operation
        with self.ip, operation.location:
            func.ReturnOp(list(results))
        kind = ir.FunctionType.get([p.type for p in self.ports], [r.type for r in results])
        operation.attributes["function_type"] = ir.TypeAttr.get(kind)
        set_argument_attributes(operation, [_attributes(p, operation.context) for p in self.ports])
        set_result_attributes(operation, [_attributes(p, operation.context) for p in ports])
        return Piece(self.name, tuple(self.ports), tuple(ports))


def _attributes(port: Port, context: ir.Context) -> dict[str, ir.Attribute]:
    entry = {alpa.BINDING: alpa.string(str(port.binding), context)}
    if port.dim >= 0:
        entry[alpa.DIM] = alpa.i64(port.dim, context)
    if port.combine != "add":
        entry[alpa.COMBINE] = alpa.string(port.combine, context)
    return entry
