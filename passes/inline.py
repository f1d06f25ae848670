"""Replace calls by the bodies they call (MLIR's own `inline` is a no-op in jaxlib: its func extension is not linked).

Functions are taken callees first, so that each body that is copied is already free of calls and every call is
expanded once.  A call cycle has no such order: an error at the call that closes it.
"""

from __future__ import annotations

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError, location_text
from alpa_mlir.dialect.sharding import SHARDING, argument_attributes, result_attributes

CALL = "func.call"


def inline_calls(module: ir.Module, root: str = "main") -> None:
    """Expand every `func.call` reachable from the function `root`; the callees themselves stay.

    Raises `CompileError` at a call that is recursive or calls a function without a body, and at a callee
    with control flow between blocks.
    """
    defined = functions(module)
    calls = {name: _calls(function) for name, function in defined.items()}
    for name in _callees_first(calls, defined, root):
        for call in calls[name]:
            _expand(call, defined[_callee(call)], module)


def require_no_recursion(module: ir.Module) -> None:
    """`CompileError` at a call that is recursive, or that calls a function without a body."""
    defined = functions(module)
    calls = {name: _calls(function) for name, function in defined.items()}
    for name in defined:
        _callees_first(calls, defined, name)


def _calls(function: ir.Operation) -> list[ir.Operation]:
    return [op for op in walk(function) if op.name == CALL]


def _callee(call: ir.Operation) -> str:
    return str(ir.FlatSymbolRefAttr(call.attributes["callee"]).value)


def _callees_first(calls: dict[str, list[ir.Operation]], defined: dict[str, ir.Operation], root: str) -> list[str]:
    """The functions that `root` reaches, each after all that it calls, without recursion in Python."""
    done: dict[str, None] = {}
    path: dict[str, int] = {root: 0}
    while path:
        name, position = next(reversed(path.items()))
        if position == len(calls[name]):
            del path[name]
            done[name] = None
            continue
        path[name] = position + 1
        call = calls[name][position]
        callee = _callee(call)
        if callee in path:
            cycle = " → ".join(f"@{n}" for n in [*list(path)[list(path).index(callee) :], callee])
            raise CompileError(f"recursive calls cannot be compiled: {cycle}", call.location)
        if callee not in done:
            _require_body(callee, defined, call)
            path[callee] = 0
    return list(done)


def _require_body(callee: str, defined: dict[str, ir.Operation], call: ir.Operation) -> None:
    function = defined.get(callee)
    if function is None or len(function.regions[0].blocks) == 0:
        raise CompileError(f"@{callee} has no body: only functions defined in the file can be called", call.location)
    require_one_block(function)


def require_one_block(function: ir.Operation) -> None:
    """`CompileError` at a function with control flow between blocks."""
    if len(function.regions[0].blocks) > 1:
        raise CompileError(
            "branches between blocks are not supported: use stablehlo.while, stablehlo.case or stablehlo.if",
            function.location,
        )


def _expand(call: ir.Operation, callee: ir.Operation, module: ir.Module) -> None:
    """Put a copy of the callee's body in place of the call."""
    copy = callee.clone(ip=ir.InsertionPoint(module.body))
    body = copy.regions[0].blocks[0]
    inputs = _constrained(list(call.operands), argument_attributes(callee), call)
    for argument, value in zip(body.arguments, inputs, strict=True):
        argument.replace_all_uses_with(value)
    operations = [op.operation for op in body.operations]
    returned = operations.pop()
    for op in operations:
        _locate(op, call.location)
        op.move_before(call)
    outputs = _constrained(list(returned.operands), result_attributes(callee), call)
    for result, value in zip(call.results, outputs, strict=True):
        result.replace_all_uses_with(value)
    call.erase()
    copy.erase()


def _locate(op: ir.Operation, caller: ir.Location) -> None:
    """An op that does not know its source line is at the line of the call."""
    if location_text(op.location) == "-":
        op.location = ir.Location.callsite(op.location, [caller], context=op.context)
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                _locate(inner.operation, caller)


def _constrained(
    values: list[ir.Value], attributes: list[dict[str, ir.Attribute]], call: ir.Operation
) -> list[ir.Value]:
    """The values with a `sdy.sharding_constraint` where the callee annotates its argument or result."""
    constrained = []
    for value, entry in zip(values, attributes, strict=True):
        if SHARDING in entry:
            point = ir.InsertionPoint(call)
            value = sdy.ShardingConstraintOp(value, entry[SHARDING], loc=call.location, ip=point).result
        constrained.append(value)
    return constrained
