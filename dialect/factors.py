"""An op as factors: the one place that knows what an op means for distribution.

Shardy's `sdy-populate-op-sharding-rules` describes each op as an einsum over *factors*, for example
`([i, k], [k, j])->([i, j]) reduction={k}` for a matrix product.  Placing a mesh axis (of devices, or
of time: microbatches) on a factor shrinks every dimension in which the factor appears:

* ``pass``   the factor goes from operands to results: each part computes its part of the result;
* a reduction kind (``add``, ``max``, ``min``, ``mul``, ``and``, ``or``)  each part yields a partial
  result, to be combined by that operation;
* ``fixed``  the factor cannot be split: it must be gathered first.

The upstream rules are refined here where a plain split of the op would compute something else
(indexed dimensions of gather and scatter, spatial dimensions of convolutions, random bits), and
completed for ops without a rule (constants, iota, barriers).  Source: Shardy's op_sharding_rule
registry; the StableHLO specification for the ops' semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy, stablehlo

from alpa_mlir.dialect import alpa, rounds
from alpa_mlir.dialect.context import op_id, passmanager

RULE = "sdy.sharding_rule"
PASS = "pass"
FIXED = "fixed"
REDUCER_OF = {
    "stablehlo.add": "add",
    "stablehlo.maximum": "max",
    "stablehlo.minimum": "min",
    "stablehlo.multiply": "mul",
    "stablehlo.and": "and",
    "stablehlo.or": "or",
}
_OF_BOOLEANS = {"add": "or", "mul": "and"}
"""StableHLO adds and multiplies booleans as logical or, and."""

Mapping = tuple[tuple[int, ...], ...]
"""Per dimension of one tensor the factors it is made of, major first."""


@dataclass(frozen=True)
class OpFactors:
    """The factors of one op. `kinds[f]` is ``pass``, ``fixed`` or a reduction kind."""

    sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    operands: tuple[Mapping, ...]
    results: tuple[Mapping, ...]
    reason: str = ""
    """Why the op is one indivisible unit, where it is (no factor can be split)."""
    whys: tuple[tuple[int, str], ...] = ()
    """(factor, why it is fixed) where that is known of the factor itself."""

    def is_reduction(self, factor: int) -> bool:
        """Whether splitting the factor leaves partial results."""
        return self.kinds[factor] not in (PASS, FIXED)

    def with_fixed(self, factors: set[int], why: str) -> OpFactors:
        """The same op with some factors made indivisible."""
        kinds = tuple(FIXED if f in factors else k for f, k in enumerate(self.kinds))
        known = [(f, text) for f, text in self.whys if f not in factors]
        return replace(self, kinds=kinds, whys=tuple(sorted([*known, *((f, why) for f in factors)])))

    def why_fixed(self, factor: int) -> str:
        """Why a fixed factor cannot be split."""
        return dict(self.whys).get(factor, self.reason) or "the op needs it whole"


def factors_in(mappings: Iterable[Mapping]) -> set[int]:
    """The factors that dimensions of some operands or results are made of."""
    return {f for mapping in mappings for dim in mapping for f in dim}


def read_factors(root: ir.Operation) -> dict[int, OpFactors]:
    """The factors of every op under `root` (a module or function), keyed by `op_id`.

    Rules that users wrote themselves on ops are honoured; none is left behind on ops that had none.
    """
    root = root.operation
    before = {op_id(op) for op in alpa.walk(root) if RULE in op.attributes}
    _populate(root)
    reader = _Reader()
    found: dict[int, OpFactors] = {}
    for op in alpa.walk(root):
        if not len(op.results):
            continue
        key, attributes = op_id(op), op.attributes
        rule = attributes.get(RULE)
        found[key] = reader.of(op, rule)
        if rule is not None and key not in before:
            del attributes[RULE]
    return found


class _Reader:
    """Decodes each distinct rule once; equal factors become one object."""

    def __init__(self) -> None:
        self.rules: dict[ir.Attribute, OpFactors] = {}
        self.known: dict[tuple[object, ...], OpFactors] = {}
        self.equal: dict[OpFactors, OpFactors] = {}

    def of(self, op: ir.Operation, rule: ir.Attribute | None) -> OpFactors:
        """The factors of an op and its rule, if it has one."""
        name = op.name
        if name in _OWN:
            key = (name, *[v.type for v in op.operands], None, *[v.type for v in op.results])
            if key not in self.known:
                self.known[key] = self._shared(_OWN[name](op))
            return self.known[key]
        if rule is None:
            return self._shared(indivisible(op, f"{name} has no sharding rule"))
        factors = self.rules.get(rule)
        if factors is None:
            factors = self.rules[rule] = self._shared(_from_rule(rule))
        refine = _REFINE.get(name)
        return factors if refine is None else self._shared(refine(op, factors))

    def _shared(self, factors: OpFactors) -> OpFactors:
        return self.equal.setdefault(factors, factors)


def indivisible_ops(function: ir.Operation) -> list[tuple[ir.Operation, str]]:
    """The outermost ops of a function that cannot be split along any dimension, each with the reason, in order.

    Much cheaper than `read_factors`: no rule is decoded.
    """
    # The copy stands in the module: rules look up the meshes that shardings name, and crash without one.
    copy = function.operation.clone(ip=ir.InsertionPoint(function)).operation
    _populate(copy)
    found = list(_indivisible(function.operation, copy))
    copy.erase()
    return found


def _indivisible(root: ir.Operation, ruled: ir.Operation) -> Iterator[tuple[ir.Operation, str]]:
    for op, same in zip(_children(root), _children(ruled), strict=True):
        special = _OWN.get(op.name)
        if special is not None:
            reason = special(same).reason
        else:
            reason = "" if RULE in same.attributes or not len(op.results) else f"{op.name} has no sharding rule"
        if not reason:
            yield from _indivisible(op, same)
        elif any(size != 1 for result in op.results for size in shape_of(result) or ()):
            yield op, reason


def _children(op: ir.Operation) -> Iterator[ir.Operation]:
    return (child.operation for region in op.regions for block in region.blocks for child in block.operations)


def _populate(root: ir.Operation) -> None:
    name = "func.func" if root.name == "func.func" else "builtin.module"
    rules = "sdy-populate-op-sharding-rules"
    text = f"func.func({rules})" if name == "func.func" else f"builtin.module(func.func({rules}))"
    passmanager.PassManager.parse(text, root.context).run(root)


def shape_of(value: ir.Value) -> tuple[int, ...] | None:
    """Shape of a ranked, static tensor value; None for tokens, tuples and dynamic shapes."""
    return _shape_of_type(value.type)


@lru_cache(maxsize=65536)
def _shape_of_type(kind: ir.Type) -> tuple[int, ...] | None:
    if not isinstance(kind, ir.RankedTensorType):
        return None
    kind = ir.RankedTensorType(kind)
    return tuple(kind.shape) if kind.has_static_shape else None


def reducer_of(region: ir.Region) -> str | None:
    """The monoid of a reducer body that is one known binary op per result, else None."""
    operations = list(region.blocks[0].operations)
    kinds = {_monoid(op.operation) for op in operations[:-1]}
    count = len(operations) - 1
    arguments = list(region.blocks[0].arguments)
    if len(kinds) != 1 or None in kinds or len(arguments) != 2 * count:
        return None
    for i, op in enumerate(operations[:-1]):
        if set(op.operation.operands) != {arguments[i], arguments[count + i]}:
            return None
    return kinds.pop()


def _monoid(op: ir.Operation) -> str | None:
    kind = REDUCER_OF.get(op.name)
    if kind not in _OF_BOOLEANS:
        return kind
    element = ir.RankedTensorType(op.results[0].type).element_type
    boolean = isinstance(element, ir.IntegerType) and element.width == 1
    return _OF_BOOLEANS[kind] if boolean else kind


def _from_rule(attribute: ir.Attribute) -> OpFactors:
    rule = sdy.OpShardingRuleAttr(attribute)
    kinds = [PASS] * len(rule.factor_sizes)
    whys = [(f, "the op needs it whole") for f in rule.need_replication_factors]
    whys += [(f, "elements move from one part to another") for f in rule.permutation_factors]
    for f, _ in whys:
        kinds[f] = FIXED
    for f in rule.reduction_factors:
        kinds[f] = "add" if kinds[f] == PASS else FIXED
    return OpFactors(
        tuple(rule.factor_sizes),
        tuple(kinds),
        _mappings(rule.operand_mappings),
        _mappings(rule.result_mappings),
        whys=tuple(sorted(dict(whys).items())),
    )


def _mappings(tensors: list[ir.Attribute]) -> tuple[Mapping, ...]:
    return tuple(
        tuple(tuple(sdy.DimMappingAttr(d).factor_indices) for d in sdy.TensorMappingAttr(t).dim_mappings)
        for t in tensors
    )


def indivisible(op: ir.Operation, reason: str) -> OpFactors:
    """An op that must see whole operands: each dimension a fixed factor of its own."""
    return _separate(op, FIXED, reason)


def _separate(op: ir.Operation, kind: str, reason: str = "") -> OpFactors:
    sizes: list[int] = []

    def mapping(value: ir.Value) -> Mapping:
        dims = []
        for size in shape_of(value) or ():
            dims.append((len(sizes),))
            sizes.append(size)
        return tuple(dims)

    operands = tuple(mapping(v) for v in op.operands)
    results = tuple(mapping(v) for v in op.results)
    return OpFactors(tuple(sizes), (kind,) * len(sizes), operands, results, reason)


def _source(op: ir.Operation) -> OpFactors:
    """Constants and iota: any dimension can be produced in parts."""
    return _separate(op, PASS)


def _elementwise(op: ir.Operation) -> OpFactors:
    """All operands and results of one shape, dimension by dimension (identity, map)."""
    shape = shape_of(op.results[0]) or ()
    mapping: Mapping = tuple((d,) for d in range(len(shape)))
    kinds = (PASS,) * len(shape)
    return OpFactors(shape, kinds, (mapping,) * len(op.operands), (mapping,) * len(op.results))


def _per_round(stack: ir.Value, why: str) -> OpFactors:
    """A round's slice of a stack along dimension 0, which must be whole; the others pass."""
    shape = shape_of(stack) or ()
    whole: Mapping = tuple((d,) for d in range(len(shape)))
    kinds = (FIXED,) + (PASS,) * (len(shape) - 1)
    return OpFactors(shape, kinds, (whole,), (whole[1:],), whys=((0, why),))


def _unstacked(op: ir.Operation) -> OpFactors:
    return _per_round(op.operands[0], "each round of the loop takes one of them")


def _stacked(op: ir.Operation) -> OpFactors:
    made = _per_round(op.results[0], "each round of the loop makes one of them")
    return replace(made, operands=made.results, results=made.operands)


def _barrier(op: ir.Operation) -> OpFactors:
    """optimization_barrier: operand i passes to result i, nothing else is related."""
    sizes: list[int] = []
    mappings: list[Mapping] = []
    for value in op.operands:
        shape = shape_of(value) or ()
        mappings.append(tuple((len(sizes) + d,) for d in range(len(shape))))
        sizes.extend(shape)
    return OpFactors(tuple(sizes), (PASS,) * len(sizes), tuple(mappings), tuple(mappings))


def _never(reason: str) -> Callable[[ir.Operation], OpFactors]:
    return lambda op: indivisible(op, reason)


def _reduce(op: ir.Operation, factors: OpFactors) -> OpFactors:
    kind = reducer_of(op.regions[0])
    summed = {f for f in range(len(factors.kinds)) if factors.is_reduction(f)}
    if kind is None:
        return factors.with_fixed(summed, "the reducer is not one op that could combine the parts' results")
    return replace(factors, kinds=tuple(kind if f in summed else k for f, k in enumerate(factors.kinds)))


def _gather(op: ir.Operation, factors: OpFactors) -> OpFactors:
    """A split of the indexed dimension would need masked look-ups: indexed dimensions stay whole."""
    indexed = {f for f in range(len(factors.sizes)) if factors.is_reduction(f)}
    return factors.with_fixed(indexed, "an index may point into any part")


def _scatter(op: ir.Operation, factors: OpFactors) -> OpFactors:
    """Indexed dimensions of the target stay whole; updates add up where the body is a monoid."""
    inputs = (len(op.operands) - 1) // 2
    targets = factors_in(factors.operands[:inputs])
    indexed = targets - factors_in(factors.operands[inputs:])
    return _reduce(op, factors.with_fixed(indexed, "an index may point into any part"))


def _convolution(op: ir.Operation, factors: OpFactors) -> OpFactors:
    """Only batch and feature dimensions are split; a window over a spatial one would need a halo."""
    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    spatial = set()
    for mapping, dims in zip(
        (*factors.operands, *factors.results),
        (
            numbers.input_spatial_dimensions,
            numbers.kernel_spatial_dimensions,
            numbers.output_spatial_dimensions,
        ),
        strict=True,
    ):
        spatial |= {f for d in dims for f in mapping[d]}
    return factors.with_fixed(spatial, "windows reach into the neighbouring parts (no halo exchange)")


def _reshape(op: ir.Operation, factors: OpFactors) -> OpFactors:
    """Factors on one side only (4x6 to 6x4 is 2·2 x 2·3 to 2·3 x 2·2) are regrouped, not passed on."""
    regrouped = factors_in(factors.operands) ^ factors_in(factors.results)
    return factors.with_fixed(regrouped, "the reshape regroups it")


def _dynamic_update_slice(op: ir.Operation, factors: OpFactors) -> OpFactors:
    """Where the update is smaller than the target its place depends on the whole dimension."""
    target, update = shape_of(op.operands[0]) or (), shape_of(op.operands[1]) or ()
    moved = {d for d, (n, m) in enumerate(zip(target, update, strict=True)) if n != m}
    placed = {f for d in moved for m in factors.operands[:2] for f in m[d]}
    return factors.with_fixed(placed, "the update may lie in any part")


def added_once(op: ir.Operation) -> tuple[int, ...]:
    """Operands that start the op's sums: of a split reduction they must count once, not once per part.

    Initial values of a reduce, the target of a scatter.  (StableHLO lets a reduce use its initial value any number
    of times, so only the monoid's identity is portable; XLA adds it once, except over dimensions of size one.)
    """
    if op.name == "stablehlo.reduce":
        return tuple(range(len(op.operands) // 2, len(op.operands)))
    if op.name == "stablehlo.scatter":
        return tuple(range((len(op.operands) - 1) // 2))
    return ()


_OWN: dict[str, Callable[[ir.Operation], OpFactors]] = {
    "stablehlo.constant": _source,
    "sdy.constant": _source,
    "stablehlo.iota": _source,
    "stablehlo.optimization_barrier": _barrier,
    "stablehlo.map": _elementwise,
    "sdy.reshard": _elementwise,
    "sdy.sharding_constraint": _elementwise,
    "stablehlo.rng_bit_generator": _never("random bits depend on the whole shape"),
    "stablehlo.rng": _never("random bits depend on the whole shape"),
    rounds.ENTER: _elementwise,
    rounds.LEAVE: _elementwise,
    rounds.INDEX: _source,
    rounds.SLICE: _unstacked,
    rounds.STACK: _stacked,
    "stablehlo.while": _never("control flow is one unit"),
    "stablehlo.case": _never("control flow is one unit"),
    "stablehlo.if": _never("control flow is one unit"),
}

_REFINE: dict[str, Callable[[ir.Operation, OpFactors], OpFactors]] = {
    "stablehlo.reduce": _reduce,
    "stablehlo.gather": _gather,
    "stablehlo.scatter": _scatter,
    "stablehlo.convolution": _convolution,
    "stablehlo.reshape": _reshape,
    "stablehlo.dynamic_update_slice": _dynamic_update_slice,
}


def splittable(factors: OpFactors, factor: int, parts: int) -> bool:
    """Whether a factor can be split evenly in `parts` so that every dimension stays contiguous.

    A factor that is not the major one of a compound dimension can only be split if all before it in
    that dimension have size one.
    """
    if factors.kinds[factor] == FIXED or factors.sizes[factor] % parts:
        return False
    for mapping in (*factors.operands, *factors.results):
        for dim in mapping:
            if factor in dim and prod(factors.sizes[f] for f in dim[: dim.index(factor)]) != 1:
                return False
    return True
