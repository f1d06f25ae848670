"""Which mesh axes lie on which factor of an op: read off the shardings around it, and checked.

On level 5 every value has a sharding, so each op can be read by itself (docs/ir.md):

* an axis that splits a dimension lies on the factor of that dimension (the major factor first, then
  the next one once the major one is split up entirely);
* an axis on a reduction factor leaves addends: they end by reduce-scatter where the result splits one
  more dimension over the axis, stay where the result is `unreduced` over it, else end by all-reduce;
* an axis over which operands are partial passes through ops that are linear in those operands.

`place` returns all of this for one op or raises `CompileError` naming the axis and the dimension:

    rule P1  all dimensions of one factor are split alike, in operands and results
    rule P2  a factor that is `fixed` is not split
    rule P3  an axis divides the size of the factor it lies on; no operand is partial over it
    rule P4  what a result is beyond its factors' split comes from ending partial sums
    rule P5  only an `add` reduction may be scattered or left partial
    rule P6  only a linear op maps partial operands to partial results
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.factors import FIXED, Mapping, OpFactors
from alpa_mlir.dialect.linear import is_linear
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.local.steps import ALL_REDUCE, REDUCE_SCATTER, Step, reshard_steps

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """One op's strategy. `axes[f]` lie on factor f (major first); `carried` are the operands' partial axes
    that pass through; `natural[r]` is the sharding of result r before its partial sums end by `endings[r]`.
    """

    axes: tuple[Axes, ...]
    carried: Axes
    natural: tuple[Sharding, ...]
    endings: tuple[tuple[Step, ...], ...]
    reduction: str = "add"
    """The monoid of the partial sums that `endings` combine."""

    @property
    def reduced(self) -> Axes:
        """Axes on reduction factors, in mesh order."""
        return tuple(a for a in self.natural[0].partial if a not in self.carried) if self.natural else ()


def place(
    op: ir.Operation,
    factors: OpFactors,
    operands: Sequence[Sharding],
    results: Sequence[Sharding],
    mesh: Mesh,
) -> Placement:
    """The placement of `op`'s axes that the shardings around it mean; `CompileError` at `op` otherwise."""
    reader = _Reader(op, factors, mesh)
    for number, (sharding, mapping) in enumerate(zip(operands, factors.operands, strict=True)):
        reader.read(f"operand {number}", sharding, mapping, frozenset())
    reduced = reader.reduced()
    carried = reader.carried(operands)
    reader.check_carried(carried)
    for number, (sharding, mapping) in enumerate(zip(results, factors.results, strict=True)):
        reader.read(f"result {number}", sharding, mapping, frozenset((*reduced, *carried)))
    axes = tuple(reader.axes.get(f, ()) for f in range(len(factors.sizes)))
    partial = tuple(a for a in mesh.axis_names if a in reduced or a in carried)
    natural = tuple(_natural(mapping, axes, partial) for mapping in factors.results)
    kind = _monoid(op, factors, axes, carried)
    endings = tuple(_ending(op, n, r, kind, mesh) for n, r in zip(natural, results, strict=True))
    return Placement(axes, carried, natural, endings, kind)


class Placements:
    """The placements of one function's ops: what equal ops with equal shardings mean is worked out once."""

    def __init__(self, factors: dict[int, OpFactors], mesh: Mesh) -> None:
        self.factors, self.mesh = factors, mesh
        self._known: dict[tuple[object, ...], Placement] = {}

    def of(self, op: ir.Operation, operands: Sequence[Sharding], results: Sequence[Sharding]) -> Placement:
        """`place` with the factors and mesh of the function."""
        factors = self.factors[op_id(op)]
        # Equal factors are one object within a function.
        key = (id(factors), tuple(operands), tuple(results))
        found = self._known.get(key)
        if found is None:
            found = place(op, factors, operands, results, self.mesh)
            # Whether an op may take partial operands depends on more than its factors.
            if not any(s.partial for s in operands):
                self._known[key] = found
        return found


def _monoid(op: ir.Operation, factors: OpFactors, axes: tuple[Axes, ...], carried: Axes) -> str:
    """What combines the partial results: sums where operands are partial, else what the reduced factors say."""
    kinds = sorted({factors.kinds[f] for f, on in enumerate(axes) if on and factors.is_reduction(f)})
    if len(kinds) > 1 or (carried and kinds not in ([], ["add"])):
        raise CompileError(f"{op.name} mixes partial sums of several kinds: {', '.join(kinds)} (P6)", op.location)
    return kinds[0] if kinds else "add"


def _natural(mapping: Mapping, axes: tuple[Axes, ...], partial: Axes) -> Sharding:
    return Sharding(tuple(tuple(a for f in dim for a in axes[f]) for dim in mapping), tuple(sorted(partial)))


def _ending(op: ir.Operation, natural: Sharding, wanted: Sharding, kind: str, mesh: Mesh) -> tuple[Step, ...]:
    if set(wanted.partial) - set(natural.partial):
        extra = sorted(set(wanted.partial) - set(natural.partial))
        raise CompileError(f"the result of {op.name} cannot be partial over axis {extra[0]!r} (P4)", op.location)
    steps = reshard_steps(natural, wanted, mesh)
    for step in steps:
        if step.kind not in (ALL_REDUCE, REDUCE_SCATTER):
            raise CompileError(
                f"{op.name} yields {_words(natural)} but its result is said to be {_words(wanted)} (P4)", op.location
            )
        if step.kind == REDUCE_SCATTER and kind != "add":
            raise CompileError(
                f"axis {step.axes[0]!r} ends a {kind} reduction: it cannot be scattered on dimension {step.dim} (P5)",
                op.location,
            )
    if wanted.partial and kind != "add":
        raise CompileError(
            f"axis {wanted.partial[0]!r} ends a {kind} reduction: it cannot stay partial (P5)", op.location
        )
    return steps


def _words(sharding: Sharding) -> str:
    return sharding.text("mesh")


class _Reader:
    """Collects the axes of each factor while the shardings of one op are read."""

    def __init__(self, op: ir.Operation, factors: OpFactors, mesh: Mesh) -> None:
        self.op = op
        self.factors = factors
        self.mesh = mesh
        self.axes: dict[int, Axes] = {}
        self.places: dict[int, str] = {}

    def read(self, who: str, sharding: Sharding, mapping: Mapping, ended: frozenset[str]) -> None:
        """Add one value's sharding; axes in `ended` (on reduction factors) may split result dimensions besides."""
        if len(sharding.dims) != len(mapping):
            raise self.error(f"{who} has rank {len(mapping)} but its sharding has {len(sharding.dims)} dimensions")
        for number, (axes, dim) in enumerate(zip(sharding.dims, mapping, strict=True)):
            where = f"dimension {number} of {who}"
            for factor, on in self._distribute(tuple(a for a in axes if a not in ended), dim, where).items():
                self._agree(factor, on, where)

    def _distribute(self, axes: Axes, dim: tuple[int, ...], where: str) -> dict[int, Axes]:
        """Axes of one dimension, major first, dealt to its factors, major first."""
        found: dict[int, Axes] = {f: () for f in dim}
        left = [(f, self.factors.sizes[f]) for f in dim]
        for axis in axes:
            parts = self.mesh.size(axis)
            while len(left) > 1 and left[0][1] == 1:
                left.pop(0)
            if not left or left[0][1] % parts:
                size = left[0][1] if left else 1
                raise self.error(
                    f"axis {axis!r} of size {parts} does not divide {size}, the factor it splits in {where} (P3)"
                )
            factor, size = left[0]
            if self.factors.kinds[factor] == FIXED and parts > 1:
                why = f": {self.factors.reason}" if self.factors.reason else ""
                raise self.error(f"axis {axis!r} splits {where}, which must stay whole (P2){why}")
            found[factor] = (*found[factor], axis)
            left[0] = (factor, size // parts)
        return found

    def _agree(self, factor: int, axes: Axes, where: str) -> None:
        known = self.axes.setdefault(factor, axes)
        first = self.places.setdefault(factor, where)
        if known != axes and self.factors.sizes[factor] != 1:
            raise self.error(f"{first} is split over {_list(known)} but {where} over {_list(axes)} (P1)")

    def reduced(self) -> Axes:
        """Axes on reduction factors so far."""
        return tuple(a for f, on in sorted(self.axes.items()) if self.factors.is_reduction(f) for a in on)

    def carried(self, operands: Sequence[Sharding]) -> Axes:
        """Axes over which operands are partial; the op must be linear in exactly those operands."""
        found = [a for a in self.mesh.axis_names if any(a in s.partial for s in operands)]
        for axis in found:
            which = frozenset(i for i, s in enumerate(operands) if axis in s.partial)
            if not is_linear(self.op, which):
                raise self.error(
                    f"operand {min(which)} is partial over axis {axis!r} and {self.op.name} is not linear in it (P6)"
                )
        return tuple(found)

    def check_carried(self, carried: Axes) -> None:
        """No axis over which operands are partial lies on a factor.

        (That no axis lies on two related factors follows from P1: some operand or result has both dimensions, and
        a sharding names each axis once.  Unrelated ones, as in a barrier of several values, may share an axis.)
        """
        for factor, axes in sorted(self.axes.items()):
            for axis in (a for a in axes if a in carried):
                raise self.error(
                    f"axis {axis!r} splits {self.places[factor]} while another operand is partial over it (P3)"
                )

    def error(self, message: str) -> CompileError:
        return CompileError(f"{self.op.name}: {message}", self.op.location)


def _list(axes: Axes) -> str:
    return "{" + ", ".join(axes) + "}"
