"""`alpa-remat`: layers whose forward ops run again in the backward pass, so that only their inputs are kept.

What a layer's backward part needs of its own forward part is an activation kept for every microbatch in flight.
Here it is made again instead: the slice of the layer's forward ops that leads to it is cloned into the
backward pass, starting from what comes from outside the layer (Chen et al. 2016, with layers as segments). A layer of
several equal blocks runs them again one by one (`inter/parts.py`).
An `optimization_barrier` on each activation that the clones start from keeps compilers from finding out that
both are the same (the trick of `jax.checkpoint`).  The work of the clones is backward work: stage search, costs
and memory see it like any other.

Ops of the backward pass that stand among the forward ops (derivatives that were at hand there) first move down
to where they are used, so that in program order, too, little is alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import ClassVar

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, op_id
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.rounds import needed_with
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.inter.dataflow import read_dataflow
from alpa_mlir.passes.inter.fold_layers import NotFoldable
from alpa_mlir.passes.inter.layout import Layout, read_layout
from alpa_mlir.passes.inter.parts import parts_of_ops
from alpa_mlir.passes.number_list import ascending_ranges
from alpa_mlir.passes.registry import Pass, option, register

ALL, NONE = "full", "none"


@register
@dataclass(frozen=True)
class Rematerialize(Pass):
    """Let layers keep only their inputs for the backward pass, which runs their forward ops again.

    IR before and after: level 3 (`alpa.level = "layered"`). The module carries `alpa.remat`, the layers' numbers.
    Clones have the layer of their original and `alpa.phase = "backward"`. Without a backward pass nothing changes.
    Of a folded program (`inter/fold.py`) all layers that stages are cut between are meant, or none.
    """

    name: ClassVar[str] = "alpa-remat"
    layers: str = option(ALL, "full, none, or numbers of layers such as 0-3,5")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        location = module.operation.location
        level = alpa.get_string(module.operation, alpa.LEVEL)
        if level != "layered":
            raise CompileError(f"alpa-remat needs a layered module (run alpa-layers first), got {level!r}", location)
        layout = read_layout(module)
        if not layout.whole and self.layers not in (ALL, NONE):
            raise NotFoldable("the layers of a folded program are rematerialised all or none", location)
        chosen = chosen_layers(self.layers, layout.count, location)
        function = functions(module)["microbatch"]
        if chosen:
            _sink_early_backward(function.regions[0].blocks[0])
            _repeat(function, layout, set(chosen))
        module.operation.attributes[alpa.REMAT] = ir.DenseI64ArrayAttr.get(list(chosen), module.context)


def _repeat(function: ir.Operation, layout: Layout, chosen: Set[int]) -> None:
    """Let the parts of layers (of a whole program: of those chosen) run again, each as one; then what the layers of a
    folded program without a place make, which is made once for several of them."""
    block = function.regions[0].blocks[0]
    bindings = alpa.bindings(argument_attributes(function))
    at_hand = {v for v, b in zip(block.arguments, bindings, strict=True) if b.kind == "arg"}
    members: dict[tuple[int, int], list[ir.Operation]] = {}
    shared: list[ir.Operation] = []
    flow = read_dataflow(function)
    for op, part in zip(flow.ops, parts_of_ops(flow, layout), strict=True):
        layer = alpa.get_int(op, alpa.LAYER) or 0
        if layer >= layout.placed:
            shared.append(op)
        elif layer in chosen or not layout.whole:
            members.setdefault((layer if layout.whole else 0, part), []).append(op)
    at_hand.update(v for op in shared for v in op.results)
    for key in sorted(members):
        _Group(block, members[key], at_hand).repeat(members[key])
    if shared:
        every = [view.operation for view in block.operations]
        _Group(block, shared, set(block.arguments)).repeat(every[:-1])


def chosen_layers(text: str, count: int, location: ir.Location) -> tuple[int, ...]:
    """The layers that `full`, `none` or `0-3,5` means of `count`; CompileError for others."""
    if text in (ALL, NONE):
        return tuple(range(count)) if text == ALL else ()
    ranges = ascending_ranges(text)
    if ranges is None:
        raise CompileError(f"layers to rematerialise are full, none, or numbers such as 0-3,5, not '{text}'", location)
    last = max(high for _, high in ranges)
    if last >= count:
        raise CompileError(f"there is no layer {last} to rematerialise: the layers are 0 to {count - 1}", location)
    return tuple(sorted({n for low, high in ranges for n in range(low, high + 1)}))


def _phase(op: ir.Operation) -> str | None:
    return alpa.get_string(op, alpa.PHASE)


def _sink_early_backward(block: ir.Block) -> None:
    """Move backward ops that stand before the last forward op down to their first user."""
    ops = [view.operation for view in block.operations]
    root = {op_id(op): n for n, op in enumerate(ops)}
    last = max((n for n, op in enumerate(ops) if _phase(op) == "forward"), default=0)
    early = [op for op in ops[:last] if _phase(op) == "backward"]
    for op in reversed(early):
        users = [root[op_id(alpa.outermost(use.owner.operation, block))] for value in op.results for use in value.uses]
        root[op_id(op)] = min(users, default=root[op_id(op)])
    for op in early:
        op.move_before(ops[root[op_id(op)]])


@dataclass
class _Group:
    """The ops of a part of a layer in order, or of shared layers, and clones of its forward ops in the backward pass.

    `at_hand`: values that clones read as they are, with no need to be kept.
    """

    block: ir.Block
    ops: list[ir.Operation]
    at_hand: set[ir.Value]
    clones: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forward = {op_id(op) for op in self.ops if _phase(op) == "forward"}

    def repeat(self, users: Sequence[ir.Operation]) -> None:
        """Clone what the backward ops among the users read of the forward ops before the first of them, for all to
        read."""
        readers = [op for op in users if _phase(op) == "backward"]
        read = dict.fromkeys(v for op in readers for _, _, v in _reads(op) if self._inside(v))
        wanted = self._slice(read)
        first = next((op for op in readers if any(v in read for _, _, v in _reads(op))), None)
        if first is None:
            return
        ip = ir.InsertionPoint(first)
        for op in self.ops:
            if op_id(op) in wanted:
                self._clone(op, ip)
        for op in readers:
            for owner, number, value in list(_reads(op)):
                if value in read:
                    owner.operands[number] = self.clones[value]

    def _inside(self, value: ir.Value) -> bool:
        """Whether a value is made by a forward op of the part."""
        return not isinstance(value.owner, ir.Block) and op_id(value.owner) in self.forward

    def _slice(self, values: Iterable[ir.Value]) -> set[int]:
        """The part's forward ops that values depend on."""
        seen: set[int] = set()
        pending = list(values)
        while pending:
            op = pending.pop().owner.operation
            if op_id(op) not in seen:
                seen.add(op_id(op))
                pending.extend(v for _, _, v in _reads(op) if self._inside(v))
                pending.extend(needed_with(op))
        return seen

    def _clone(self, op: ir.Operation, ip: ir.InsertionPoint) -> None:
        local = {v: self._local(v, op, ip) for _, _, v in _reads(op)}
        clone = op.clone(ip=ip).operation
        alpa.set_string(clone, alpa.PHASE, "backward")
        for owner, number, value in list(_reads(clone)):
            if value in local:
                owner.operands[number] = local[value]
        self.clones.update(zip(op.results, clone.results, strict=True))

    def _local(self, value: ir.Value, user: ir.Operation, ip: ir.InsertionPoint) -> ir.Value:
        """A value as clones see it: a clone, what is at hand, or what is kept, behind a barrier."""
        if value in self.at_hand or not self._is_of_block(value):
            return value
        if value not in self.clones:
            barrier = stablehlo.OptimizationBarrierOp([value], loc=user.location, ip=ip).operation
            alpa.set_string(barrier, alpa.PHASE, "backward")
            alpa.set_int(barrier, alpa.LAYER, alpa.get_int(user, alpa.LAYER) or 0)
            self.clones[value] = barrier.results[0]
        return self.clones[value]

    def _is_of_block(self, value: ir.Value) -> bool:
        """Whether a value belongs to the function's own block, not to a region in it."""
        owner = value.owner
        return bool((owner if isinstance(owner, ir.Block) else owner.operation.block) == self.block)


def _reads(op: ir.Operation) -> Iterator[tuple[ir.Operation, int, ir.Value]]:
    """(op, operand number, value) of all that an op and the ops in its regions read."""
    for inner in (op, *(alpa.walk(op) if len(op.regions) else ())):
        for number, value in enumerate(inner.operands):
            yield inner, number, value
