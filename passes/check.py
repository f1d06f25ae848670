"""`alpa-check-shardings`: does a sharded module say everything, and nothing contradictory?

Level 5 promises that every op can be read by itself (docs/ir.md). This pass reads it the way the
localiser will, without changing anything, and refuses what it could not carry out:

    V40  every argument, op result and function result has a sharding on a declared mesh
    V41  every sharding has the value's rank and its axes divide the dimensions
    V42  an op's operands lie on the mesh of its results; only `sdy.reshard` crosses meshes
    V43  operands and results agree about which axes lie on which factor (rules P1 to P6 of the localiser)
    V44  what stands for the same binding in several functions has the same sharding everywhere, and a
         state argument that of the result replacing it
    V45  a function returns each value with the sharding that its result says
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, op_id
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.factors import OpFactors, read_factors, shape_of
from alpa_mlir.dialect.mesh import Mesh, meshes_of
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    op_shardings,
    read_sharding,
    result_attributes,
)
from alpa_mlir.passes.local.device_placement import place
from alpa_mlir.passes.registry import Pass, register

Placed = tuple[str, Sharding]
"""(mesh name, sharding)."""


@register
@dataclass(frozen=True)
class CheckShardings(Pass):
    """Check that a level-5 module is completely and consistently sharded; changes nothing.

    IR before and after: level 5 (`alpa.level = "sharded"`). Errors name the rule (V40 to V45) and stand at the op.
    """

    name: ClassVar[str] = "alpa-check-shardings"

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        derived = {n: f for n, f in functions(module).items() if n in ("prologue", "microbatch", "update")}
        checked = derived or functions(module)
        replaced = _replaced(functions(module).get("main"))
        checker = _Checker(meshes_of(module))
        for name, function in checked.items():
            checker.function(name, function, replaced)


def _replaced(main: ir.Operation | None) -> dict[int, int]:
    """Result of @main -> state argument that it replaces."""
    entries = argument_attributes(main) if main is not None else []
    return {int(ir.IntegerAttr(e[alpa.UPDATES]).value): i for i, e in enumerate(entries) if alpa.UPDATES in e}


@dataclass
class _Checker:
    meshes: dict[str, Mesh]
    slots: dict[str, Placed] = field(default_factory=dict)

    def function(self, name: str, function: ir.Operation, replaced: dict[int, int]) -> None:
        """Check one function; slots are remembered across functions."""
        block = function.regions[0].blocks[0]
        places: dict[ir.Value, Placed] = {}
        for i, (value, entry) in enumerate(zip(block.arguments, argument_attributes(function), strict=True)):
            placed = self._annotated(entry, f"argument {i} of @{name}", function)
            self._divides(value, placed, f"argument {i} of @{name}", function)
            places[value] = placed
            self._slot(_binding(entry, f"arg:{i}"), placed, function)
        factors = read_factors(function)
        for view in block.operations:
            op = view.operation
            if op.name == "func.return":
                self._returns(name, function, op, places, replaced)
            else:
                self._op(op, places)
                if op.name != "sdy.reshard":
                    self._strategy(op, places, factors)

    def _annotated(self, entry: dict[str, ir.Attribute], who: str, op: ir.Operation) -> Placed:
        if SHARDING not in entry:
            raise CompileError(f"{who} has no sharding (V40)", op.location)
        placed = read_sharding(entry[SHARDING])
        if placed[0] not in self.meshes:
            raise CompileError(f"{who} is sharded on @{placed[0]}, which is not declared (V40)", op.location)
        return placed

    def _divides(self, value: ir.Value, placed: Placed, who: str, op: ir.Operation) -> None:
        shape, (name, sharding) = shape_of(value), placed
        if shape is None:
            return
        if len(sharding.dims) != len(shape):
            raise CompileError(
                f"{who} has rank {len(shape)}, its sharding {len(sharding.dims)} dimensions (V41)", op.location
            )
        for dim, (size, axes) in enumerate(zip(shape, sharding.dims, strict=True)):
            parts = self.meshes[name].extent(axes)
            if size % parts:
                raise CompileError(
                    f"dimension {dim} of {who} has size {size}, which {parts} devices along {', '.join(axes)} "
                    "do not divide (V41)",
                    op.location,
                )

    def _op(self, op: ir.Operation, places: dict[ir.Value, Placed]) -> None:
        found = op_shardings(op)
        if found is None:
            if len(op.results):
                raise CompileError(f"{op.name} has no sharding (V40)", op.location)
            return
        mesh, shardings = found
        if mesh not in self.meshes:
            raise CompileError(f"{op.name} is sharded on @{mesh}, which is not declared (V40)", op.location)
        for k, (value, sharding) in enumerate(zip(op.results, shardings, strict=True)):
            places[value] = (mesh, sharding)
            self._divides(value, places[value], f"result {k} of {op.name}", op)
        for k, value in enumerate(op.operands):
            if op.name != "sdy.reshard" and places[value][0] != mesh:
                raise CompileError(
                    f"operand {k} of {op.name} lies on @{places[value][0]}, its result on @{mesh}: a transfer "
                    "(sdy.reshard) is missing (V42)",
                    op.location,
                )

    def _strategy(self, op: ir.Operation, places: dict[ir.Value, Placed], factors: dict[int, OpFactors]) -> None:
        if not len(op.results):
            return
        mesh = self.meshes[places[op.results[0]][0]]
        operands = [places[v][1] for v in op.operands]
        results = [places[v][1] for v in op.results]
        try:
            place(op, factors[op_id(op)], operands, results, mesh)
        except CompileError as e:
            raise CompileError(f"{e.message} (V43)", e.location, e.notes) from None

    def _returns(
        self,
        name: str,
        function: ir.Operation,
        op: ir.Operation,
        places: dict[ir.Value, Placed],
        replaced: dict[int, int],
    ) -> None:
        for i, (value, entry) in enumerate(zip(op.operands, result_attributes(function), strict=True)):
            placed = self._annotated(entry, f"result {i} of @{name}", function)
            if placed != places[value]:
                raise CompileError(
                    f"result {i} of @{name} is said to be {placed[1].text(placed[0])}, the value returned is "
                    f"{places[value][1].text(places[value][0])} (V45)",
                    function.location,
                )
            binding = alpa.Binding.parse(_binding(entry, f"out:{i}"))
            if binding.kind != "out":
                self._slot(str(binding), placed, function)
            elif binding.number in replaced:
                self._slot(f"arg:{replaced[binding.number]}", placed, function)

    def _slot(self, slot: str, placed: Placed, op: ir.Operation) -> None:
        known = self.slots.setdefault(slot, placed)
        if known != placed:
            raise CompileError(
                f"{slot} is {known[1].text(known[0])} in one place and {placed[1].text(placed[0])} in another (V44)",
                op.location,
            )


def _binding(entry: dict[str, ir.Attribute], default: str) -> str:
    return ir.StringAttr(entry[alpa.BINDING]).value if alpa.BINDING in entry else default
