"""Sums whose addends come from several layers: added up over the microbatches layer by layer, joined once a step.

The gradient of a parameter that several layers use (a tied embedding) is a sum over these layers.  Where it is formed
in @microbatch, a stage has to send its part to the next for every microbatch.  As addition is associative, each layer
may add up its own part (`separate`), and @update joins the parts.  What turns out to lie in one stage is joined in
@microbatch again (`merge`): one buffer instead of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import Binding, bindings
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.linear import is_linear
from alpa_mlir.dialect.sharding import (
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)
from alpa_mlir.passes.local.time_loop import renew_main

ADD = "stablehlo.add"
PASSED = ("stablehlo.convert", "stablehlo.reshape", "stablehlo.transpose", "stablehlo.negate")
"""Linear ops between a sum and the result, which each addend can go through by itself."""


@dataclass(frozen=True)
class _Addend:
    """A value and the ops that it goes through, in order, to become an addend of the result."""

    value: ir.Value
    path: tuple[ir.Operation, ...] = ()

    @property
    def layer(self) -> int:
        """Where it is made; -1: an argument."""
        return -1 if isinstance(self.value.owner, ir.Block) else alpa.get_int(self.value.owner, alpa.LAYER) or 0


def separate(module: ir.Module) -> bool:
    """Let each layer of a level-3 module add up its own part of every sum; whether there was anything to do.

    `@microbatch` has layers already, `@update` need not have. With one microbatch everything stays as it is.
    """
    if (alpa.get_int(module.operation, alpa.MICROBATCHES) or 1) == 1:
        return False
    micro, update = _Ends(functions(module)["microbatch"]), _Ends(functions(module)["update"])
    found = []
    for position, (binding, entry) in enumerate(zip(micro.yields, micro.results, strict=True)):
        if binding.kind == "sum" and alpa.COMBINE not in entry:
            parts = _by_layer(micro.returned[position])
            if len(parts) > 1:
                found.append((position, parts))
    replaced: list[ir.Value] = []
    number = max([b.number for b in micro.yields if b.kind == "sum"], default=-1)
    with module.context:
        for position, parts in found:
            (_, first), *others = sorted(parts.items())
            old, binding = micro.returned[position], micro.yields[position]
            micro.returned[position] = _sum_of(first, micro.terminator)
            joined = update.block.arguments[update.arguments.index(binding)]
            for _, addends in others:
                number += 1
                value = _sum_of(addends, micro.terminator)
                micro.add_result(value, Binding("sum", number))
                joined = _join(update, joined, update.add_argument(value.type, Binding("sum", number), old.location))
            replaced.append(old)
        if found:
            micro.finish()
            for old in replaced:
                _erase_unused(old)
            update.follow()
            update.finish()
            renew_main(module)
    return bool(found)


def merge(module: ir.Module) -> None:
    """Join in `@microbatch` what a level-4 module's `@update` only adds and one stage makes."""
    micro, update = _Ends(functions(module)["microbatch"]), _Ends(functions(module)["update"])
    changed = False
    with module.context:
        while (found := next(_mergeable(micro, update), None)) is not None:
            changed = True
            kept, argument = found
            position = list(update.block.arguments).index(argument)
            at, other = micro.yields.index(kept), micro.yields.index(update.arguments[position])
            micro.returned[at] = _added(micro.returned[at], micro.returned[other], micro.terminator)
            micro.drop_result(other)
            _leave_out(argument)
            update.drop_argument(position)
        if changed:
            micro.finish()
            update.follow()
            update.finish()
            renew_main(module)


class _Ends:
    """A derived function's arguments and results with what is said of them; `finish` writes changes."""

    def __init__(self, function: ir.Operation) -> None:
        self.function, self.block = function, function.regions[0].blocks[0]
        self.entries, self.results = argument_attributes(function), result_attributes(function)
        self.arguments, self.yields = bindings(self.entries), bindings(self.results)
        self.terminator = list(self.block.operations)[-1].operation
        self.returned = list(self.terminator.operands)

    def add_argument(self, kind: ir.Type, binding: Binding, location: ir.Location) -> ir.Value:
        """One more argument, the last."""
        self.arguments.append(binding)
        self.entries.append({alpa.BINDING: alpa.string(str(binding), self.function.context)})
        return self.block.add_argument(kind, location)

    def drop_argument(self, position: int) -> None:
        """One argument less; nothing uses it."""
        del self.arguments[position], self.entries[position]
        self.block.erase_argument(position)

    def add_result(self, value: ir.Value, binding: Binding) -> None:
        """One more result, the last."""
        self.yields.append(binding)
        self.results.append({alpa.BINDING: alpa.string(str(binding), self.function.context)})
        self.returned.append(value)

    def drop_result(self, position: int) -> None:
        """One result less."""
        del self.yields[position], self.results[position], self.returned[position]

    def follow(self) -> None:
        """Return what values that were returned have been replaced by."""
        self.returned = list(self.terminator.operands)

    def finish(self) -> None:
        """Return the results, set type and attributes."""
        location, name = self.terminator.location, self.terminator.name
        self.terminator.erase()
        ip = ir.InsertionPoint(self.block)
        self.terminator = ir.Operation.create(name, [], self.returned, loc=location, ip=ip)
        kind = ir.FunctionType.get([a.type for a in self.block.arguments], [v.type for v in self.returned])
        self.function.attributes["function_type"] = ir.TypeAttr.get(kind)
        set_argument_attributes(self.function, self.entries)
        set_result_attributes(self.function, self.results)


def _by_layer(result: ir.Value) -> dict[int, list[_Addend]]:
    """The addends of a result of @microbatch by layer; nothing where some are not made in a layer."""
    found: dict[int, list[_Addend]] = {}
    waiting = [_Addend(result)]
    while waiting:
        addend = waiting.pop()
        opened = _opened(addend)
        if opened:
            waiting += reversed(opened)
        else:
            found.setdefault(addend.layer, []).append(addend)
    return {} if -1 in found else found


def _opened(addend: _Addend) -> list[_Addend]:
    """What a value used once is the sum, or another linear image, of."""
    value, path = addend.value, addend.path
    if isinstance(value.owner, ir.Block) or len(list(value.uses)) != 1:
        return []
    op = value.owner.operation
    if op.name == ADD and is_linear(op, frozenset((0, 1))):
        return [_Addend(v, path) for v in op.operands]
    if op.name in PASSED and is_linear(op, frozenset((0,))) and _width(op.operands[0]) <= _width(value):
        return [_Addend(op.operands[0], (op, *path))]
    return []


def _width(value: ir.Value) -> int:
    """Bits of an element: a sum that is rounded afterwards must not be rounded in parts."""
    element = ir.RankedTensorType(value.type).element_type
    return int(element.width) if isinstance(element, ir.FloatType | ir.IntegerType) else 0


def _sum_of(addends: Sequence[_Addend], end: ir.Operation) -> ir.Value:
    """The sum of the addends of one layer, made at the end of the block."""
    images = []
    for addend in addends:
        value = addend.value
        for op in addend.path:
            clone = op.clone(ip=ir.InsertionPoint(end)).operation
            clone.operands[0] = value
            _settle(clone, [addend.value.owner.operation])
            value = clone.results[0]
        images.append(value)
    total = images[0]
    for value in images[1:]:
        total = _added(total, value, end)
    return total


def _added(a: ir.Value, b: ir.Value, end: ir.Operation) -> ir.Value:
    """a + b in a layer where both are at hand."""
    with ir.InsertionPoint(end), a.location:
        total = stablehlo.add(a, b)
    _settle(total.owner.operation, [v.owner.operation for v in (a, b)])
    return total


def _settle(op: ir.Operation, makers: Sequence[ir.Operation]) -> None:
    """Put an op where what it reads is made: forward ops behind, backward ops ahead of the others."""
    layers = [alpa.get_int(m, alpa.LAYER) or 0 for m in makers]
    backward = any(alpa.get_string(m, alpa.PHASE) == "backward" for m in makers)
    alpa.set_int(op, alpa.LAYER, min(layers) if backward else max(layers))
    alpa.set_string(op, alpa.PHASE, "backward" if backward else "forward")
    stages = [s for s in (alpa.get_int(m, alpa.STAGE) for m in makers) if s is not None]
    if stages:
        alpa.set_int(op, alpa.STAGE, stages[0])


def _join(update: _Ends, joined: ir.Value, part: ir.Value) -> ir.Value:
    """joined + part in @update, in place of `joined`."""
    owner = joined.owner
    at_begin = isinstance(owner, ir.Block)
    ip = ir.InsertionPoint.at_block_begin(update.block) if at_begin else ir.InsertionPoint.after(owner.operation)
    with ip, part.location:
        total = stablehlo.add(joined, part)
    joined.replace_all_uses_except(total, total.owner.operation)
    return total


def _erase_unused(value: ir.Value) -> None:
    """Erase the op of a value that nothing uses, then what only it used."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value.owner, ir.Block) or any(any(True for _ in r.uses) for r in value.owner.operation.results):
            continue
        op = value.owner.operation
        waiting += op.operands
        op.erase()


def _mergeable(micro: _Ends, update: _Ends) -> Iterator[tuple[Binding, ir.Value]]:
    """Pairs of sums that one stage makes and `@update` only adds to each other, perhaps by way of other addends: the
    binding of one and the argument that is the other."""
    stages = [alpa.get_int(v.owner, alpa.STAGE) if not isinstance(v.owner, ir.Block) else None for v in micro.returned]
    made = dict(zip(micro.yields, stages, strict=True))
    plain = {b for b, e in zip(micro.yields, micro.results, strict=True) if b.kind == "sum" and alpa.COMBINE not in e}
    seen: dict[tuple[ir.Value, int], Binding] = {}
    for argument, binding in zip(update.block.arguments, update.arguments, strict=True):
        stage = made[binding] if binding in plain else None
        total = _total(argument)
        if stage is None or total == argument:
            continue
        if (total, stage) in seen:
            yield seen[total, stage], argument
        seen[total, stage] = binding


def _total(value: ir.Value) -> ir.Value:
    """The sum that a value is only an addend of."""
    while len(uses := list(value.uses)) == 1 and uses[0].owner.operation.name == ADD:
        value = uses[0].owner.operation.results[0]
    return value


def _leave_out(addend: ir.Value) -> None:
    """Take an addend out of its sum."""
    (use,) = addend.uses
    op, other = use.owner.operation, 1 - use.operand_number
    op.results[0].replace_all_uses_with(op.operands[other])
    op.erase()
