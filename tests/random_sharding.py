"""Random strategies for any function: what a solver might choose, chosen by dice (tests only).

Every mesh axis goes on a random factor of each op or on none, partial sums end at random, values between
ops are resharded wherever producer and consumer differ.  Whatever comes out is a valid level 5 function.
"""

from __future__ import annotations

import random

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import FIXED, OpFactors, read_factors, shape_of
from alpa_mlir.dialect.linear import is_linear
from alpa_mlir.dialect.mesh import Mesh, declare_mesh
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_op_shardings,
    set_result_attributes,
    sharding_attribute,
)
from alpa_mlir.passes.local.device_function import captured_values


def annotate(
    module: ir.Module,
    function: ir.Operation,
    mesh: Mesh,
    rng: random.Random,
    partial: float = 0.15,
    follow: float = 0.0,
) -> None:
    """Shard `function` at random on `mesh`.

    `partial` is how often a partial sum stays partial, `follow` how often an op takes its operands' axes.
    """
    declare_mesh(module, mesh)
    Annotator(function, mesh, rng, partial, follow).run()


class Annotator:
    def __init__(self, function: ir.Operation, mesh: Mesh, rng: random.Random, partial: float, follow: float) -> None:
        self.function, self.mesh, self.rng, self.partial, self.follow = function, mesh, rng, partial, follow
        self.factors = read_factors(function)
        self.known: dict[ir.Value, Sharding] = {}

    def run(self) -> None:
        block = self.function.regions[0].blocks[0]
        for argument in block.arguments:
            self.known[argument] = self.any_sharding(argument, self.partial if _is_float(argument) else 0)
        arguments = [self.known[a] for a in block.arguments]
        operations = [op.operation for op in block.operations]
        for op in operations[:-1]:
            if len(op.results):
                self.annotate_op(op)
        results = []
        for number, value in enumerate(operations[-1].operands):
            wanted = self.any_sharding(value, 0)
            if self.rng.random() < self.follow:
                wanted = Sharding(self.known[value].dims)
            if self.rng.random() < self.partial:
                wanted = Sharding(
                    tuple(tuple(a for a in d if a not in self.known[value].partial) for d in wanted.dims),
                    self.known[value].partial,
                )
            self.reshard(operations[-1], number, wanted)
            results.append(wanted)
        self.write(argument_attributes, set_argument_attributes, arguments)
        self.write(result_attributes, set_result_attributes, results)

    def write(self, read, write, shardings) -> None:
        entries = read(self.function)
        for entry, sharding in zip(entries, shardings, strict=True):
            entry[SHARDING] = sharding_attribute(sharding, self.mesh.name, self.function.context)
        write(self.function, entries)

    def any_sharding(self, value: ir.Value, partial: float) -> Sharding:
        shape = list(shape_of(value))
        dims: list[list[str]] = [[] for _ in shape]
        addends = []
        for axis in self.rng.sample(self.mesh.axis_names, len(self.mesh.axes)):
            fits = [d for d, n in enumerate(shape) if n % self.mesh.size(axis) == 0]
            if self.rng.random() < partial:
                addends.append(axis)
            elif fits and self.rng.random() < 0.7:
                d = self.rng.choice(fits)
                shape[d] //= self.mesh.size(axis)
                dims[d].append(axis)
        return Sharding(tuple(map(tuple, dims)), tuple(sorted(addends)))

    def annotate_op(self, op: ir.Operation) -> None:
        factors = self.factors[op_id(op)]
        carried = self.choose_carried(op)
        follows = len(op.operands) and self.rng.random() < self.follow
        axes = self.operand_axes(op, factors, set(carried)) if follows else self.choose_axes(factors, set(carried))
        reduced = [a for f in axes for a in axes[f] if factors.is_reduction(f)]
        kinds = {factors.kinds[f] for f in axes if axes[f] and factors.is_reduction(f)}
        for number in range(len(op.operands)):
            addends = tuple(sorted(a for a in carried if a in self.known[op.operands[number]].partial))
            self.reshard(op, number, Sharding(_dims(factors.operands[number], axes), addends))
        for value in list(captured_values(op)):
            self.replicate_inside(op, value)
        results = []
        for value, mapping in zip(op.results, factors.results, strict=True):
            may_stay = kinds <= {"add"}
            results.append(self.end(value, _dims(mapping, axes), [*carried, *reduced], may_stay))
        set_op_shardings(op, results, self.mesh.name)
        self.known.update(zip(op.results, results, strict=True))

    def choose_carried(self, op: ir.Operation) -> list[str]:
        found = []
        for axis in self.mesh.axis_names:
            which = frozenset(i for i, v in enumerate(op.operands) if axis in self.known[v].partial)
            if which and is_linear(op, which) and self.rng.random() < 0.8:
                found.append(axis)
        return found

    def choose_axes(self, factors: OpFactors, taken: set[str]) -> dict[int, list[str]]:
        axes: dict[int, list[str]] = {f: [] for f in range(len(factors.sizes))}
        for axis in self.rng.sample(self.mesh.axis_names, len(self.mesh.axes)):
            fits = [f for f in axes if self.may_split(factors, axes, f, axis, bool(taken))]
            if axis not in taken and fits and self.rng.random() < 0.85:
                axes[self.rng.choice(fits)].append(axis)
        return axes

    def operand_axes(self, op: ir.Operation, factors: OpFactors, taken: set[str]) -> dict[int, list[str]]:
        """The axes that already split the operands, wherever the op can be split so."""
        axes: dict[int, list[str]] = {f: [] for f in range(len(factors.sizes))}
        used = set(taken)
        for value, mapping in zip(op.operands, factors.operands, strict=True):
            for on, dim in zip(self.known[value].dims, mapping, strict=True):
                for axis in on:
                    fits = [f for f in dim if axis not in used and self.may_split(factors, axes, f, axis, bool(taken))]
                    if fits:
                        axes[fits[0]].append(axis)
                        used.add(axis)
        return axes

    def may_split(self, factors: OpFactors, axes: dict[int, list[str]], f: int, axis: str, carries: bool) -> bool:
        size = factors.sizes[f] // self.mesh.extent(tuple(axes[f]))
        if factors.kinds[f] == FIXED or size % self.mesh.size(axis) or factors.sizes[f] == 1:
            return False
        if factors.is_reduction(f):
            others = {factors.kinds[g] for g in axes if axes[g] and factors.is_reduction(g)}
            if others - {factors.kinds[f]} or (carries and factors.kinds[f] != "add"):
                return False
        for mapping in (*factors.operands, *factors.results):
            for dim in mapping:
                before = dim[: dim.index(f)] if f in dim else ()
                if any(factors.sizes[g] != self.mesh.extent(tuple(axes[g])) for g in before):
                    return False
        return True

    def end(self, value: ir.Value, dims: tuple[tuple[str, ...], ...], addends: list[str], may_stay: bool) -> Sharding:
        local = list(Sharding(dims).local_shape(shape_of(value), self.mesh))
        grown = [list(d) for d in dims]
        stays = []
        for axis in self.rng.sample(addends, len(addends)):
            fits = [d for d, n in enumerate(local) if n % self.mesh.size(axis) == 0]
            dice = self.rng.random()
            if may_stay and dice < self.partial:
                stays.append(axis)
            elif may_stay and fits and dice < 0.6:
                d = self.rng.choice(fits)
                local[d] //= self.mesh.size(axis)
                grown[d].append(axis)
        return Sharding(tuple(map(tuple, grown)), tuple(sorted(stays)))

    def reshard(self, op: ir.Operation, number: int, wanted: Sharding) -> None:
        value = op.operands[number]
        if self.known[value] == wanted:
            return
        op.operands[number] = self.new_reshard(op, value, wanted)

    def new_reshard(self, op: ir.Operation, value: ir.Value, wanted: Sharding) -> ir.Value:
        attribute = sharding_attribute(wanted, self.mesh.name, op.context)
        with op.location:
            made = sdy.ReshardOp(value, attribute, ip=ir.InsertionPoint(op)).result
        self.known[made] = wanted
        return made

    def replicate_inside(self, op: ir.Operation, value: ir.Value) -> None:
        if self.known[value].is_replicated:
            return
        whole = self.new_reshard(op, value, Sharding.replicated(len(shape_of(value))))
        for region in op.regions:
            _replace(region, value, whole)


def _replace(region: ir.Region, old: ir.Value, new: ir.Value) -> None:
    for block in region.blocks:
        for op in block.operations:
            for i, value in enumerate(op.operation.operands):
                if value == old:
                    op.operation.operands[i] = new
            for inner in op.operation.regions:
                _replace(inner, old, new)


def _dims(mapping, axes: dict[int, list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(a for f in dim for a in axes[f]) for dim in mapping)


def _is_float(value: ir.Value) -> bool:
    return isinstance(ir.RankedTensorType(value.type).element_type, ir.FloatType)
