"""What each argument of the program is: state, batch or constant, and which result replaces a state argument.

Said, in this order, by `alpa.role` in the file, by the options `state-args` and `batch-args`, and by the
frontend's donations (`tf.aliasing_output`, `jax.buffer_donor`).  What is left is guessed from shapes, with a remark:
among arguments that are not state those that share the leading dimension of the largest one are the batch.
"""

from __future__ import annotations

from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text
from alpa_mlir.dialect.sharding import argument_attributes, set_argument_attributes
from alpa_mlir.passes.number_list import number_ranges

ALIAS = "tf.aliasing_output"
DONOR = "jax.buffer_donor"


def assign_roles(main: ir.Operation, state_args: str, batch_args: str, remarks: list[Remark]) -> None:
    """Write `alpa.role` on every argument of `main` and `alpa.updates` on every state argument.

    `state_args` and `batch_args` are lists such as `3,5-7`, `none`, or empty where the user said nothing.
    Raises `CompileError` for numbers out of range, contradictions, and state that no result can replace.
    """
    attributes = argument_attributes(main)
    arguments = list(main.regions[0].blocks[0].arguments)
    count = len(arguments)
    state = _numbers(state_args, "state-args", count, main)
    batch = _numbers(batch_args, "batch-args", count, main)
    roles = _said(attributes, state, batch, main)
    donors = _donors(attributes, roles) if state is None else []
    for i in donors:
        roles[i] = "state"
    updates = _updates(main, attributes, roles, donors, remarks)
    if batch is None and "batch" not in roles and "state" in roles:
        _guess_batch(main, arguments, roles, remarks)
    for i, entry in enumerate(attributes):
        entry[alpa.ROLE] = alpa.string(roles[i] or "constant", main.context)
        entry.pop(alpa.UPDATES, None)
        if i in updates:
            entry[alpa.UPDATES] = alpa.i64(updates[i], main.context)
    set_argument_attributes(main, attributes)


def _numbers(text: str, name: str, count: int, main: ir.Operation) -> list[int] | None:
    """The argument numbers in `3,5-7`; None where the user said nothing."""
    text = text.replace(" ", "")
    if not text:
        return None
    if text == "none":
        return []
    ranges = number_ranges(text)
    if ranges is None:
        raise CompileError(
            f"{name} must be a list of argument numbers such as 3,5-7 or none, got '{text}'", main.location
        )
    numbers: list[int] = []
    for low, high in ranges:
        if max(low, high) >= count:
            raise CompileError(
                f"{name} names argument {max(low, high)}, but @main has {count} arguments (0 to {count - 1})",
                main.location,
            )
        if high < low:
            raise CompileError(f"{name}: the range {low}-{high} is empty", main.location)
        numbers.extend(n for n in range(low, high + 1) if n not in numbers)
    return numbers


def _said(
    attributes: list[dict[str, ir.Attribute]], state: list[int] | None, batch: list[int] | None, main: ir.Operation
) -> list[str | None]:
    """The roles that the file or the options state; None where neither does."""
    in_file = [_role_in_file(i, entry, main) for i, entry in enumerate(attributes)]
    roles = list(in_file)
    for name, role, numbers in (("state-args", "state", state), ("batch-args", "batch", batch)):
        for i in numbers or ():
            if in_file[i] not in (None, role):
                raise CompileError(
                    f'argument {i} has alpa.role = "{in_file[i]}" in the file, but {name} names it', main.location
                )
            if roles[i] not in (None, role):
                raise CompileError(f"argument {i} is named by both state-args and batch-args", main.location)
            roles[i] = role
    return roles


def _role_in_file(number: int, entry: dict[str, ir.Attribute], main: ir.Operation) -> str | None:
    """What the file says of one argument; `alpa.updates` alone says state."""
    role = str(ir.StringAttr(entry[alpa.ROLE]).value) if alpa.ROLE in entry else None
    if alpa.UPDATES in entry and role not in (None, "state"):
        raise CompileError(f'argument {number} has alpa.updates, but alpa.role = "{role}"', main.location)
    return "state" if alpa.UPDATES in entry else role


def _donors(attributes: list[dict[str, ir.Attribute]], roles: list[str | None]) -> list[int]:
    """The arguments without a role whose buffers the frontend gives away."""
    given = [ALIAS in e or (DONOR in e and bool(ir.BoolAttr(e[DONOR]).value)) for e in attributes]
    return [i for i, role in enumerate(roles) if role is None and given[i]]


def _updates(
    main: ir.Operation,
    attributes: list[dict[str, ir.Attribute]],
    roles: list[str | None],
    donors: list[int],
    remarks: list[Remark],
) -> dict[int, int]:
    """For each state argument the result that replaces it: the one named, else the first free one of its type.

    A donor that no result can replace is not state after all: frontends also give away what is merely used up.
    """
    kind = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
    inputs, results = list(kind.inputs), list(kind.results)
    taken: dict[int, int] = {}
    for i, entry in enumerate(attributes):
        name = alpa.UPDATES if alpa.UPDATES in entry else ALIAS
        if roles[i] == "state" and name in entry:
            result = int(ir.IntegerAttr(entry[name]).value)
            _check_update(f"{name} = {result} on argument {i}", inputs[i], results, result, taken, main.location)
            taken[result] = i
    known = {i: result for result, i in taken.items()}
    for i, role in enumerate(roles):
        if role != "state" or i in known:
            continue
        found = next((r for r, t in enumerate(results) if t == inputs[i] and r not in taken), None)
        if found is not None:
            taken[found] = i
            known[i] = found
        elif i in donors:
            roles[i] = None
            said = f"argument {i} is donated, but no result of type {inputs[i]} is left to replace it: it is not state"
            remarks.append(Remark(said, location_text(main.location)))
        else:
            raise CompileError(
                f"argument {i} is state, but no result of type {inputs[i]} is left to replace it", main.location
            )
    return known


def _check_update(
    said: str, kind: ir.Type, results: list[ir.Type], result: int, taken: dict[int, int], location: ir.Location
) -> None:
    if result >= len(results):
        raise CompileError(f"{said}: @main has {len(results)} results", location)
    if results[result] != kind:
        raise CompileError(f"{said}: {results[result]} cannot replace {kind}", location)
    if result in taken:
        raise CompileError(f"{said}: the result already replaces argument {taken[result]}", location)


def _guess_batch(main: ir.Operation, arguments: list[ir.Value], roles: list[str | None], remarks: list[Remark]) -> None:
    """Mark as batch what shares the leading dimension of the largest argument without a role."""
    shapes = {i: list(ir.RankedTensorType(a.type).shape) for i, a in enumerate(arguments) if roles[i] is None}
    shapes = {i: s for i, s in shapes.items() if s and s[0] > 1 and not _is_random_key(arguments[i])}
    if not shapes:
        return
    size = shapes[max(shapes, key=lambda i: prod(shapes[i]))][0]
    found = [i for i, shape in shapes.items() if shape[0] == size]
    for i in found:
        roles[i] = "batch"
    remarks.append(
        Remark(
            f"taken for batch: argument{'s' if len(found) > 1 else ''} {', '.join(map(str, found))} (dimension 0 is"
            f" {size}); name them with batch-args=… if that is wrong",
            location_text(main.location),
        )
    )


def _is_random_key(argument: ir.Value) -> bool:
    """Keys of jax's random generators are small `ui32` vectors, never a batch."""
    return str(argument.type) in ("tensor<2xui32>", "tensor<4xui32>")
