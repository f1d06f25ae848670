"""A stage before its mesh is known: the nodes and edges of its graph, each by the number of its kind.

What a program's ops and values are to each other is the same on every mesh; only the strategies differ. So the
graph is read off the program once (`sketch_stage.py`) as a *sketch*: a node names a *recipe* for its strategies, an
edge the recipes of its ends. On a mesh each distinct recipe is made once, each distinct edge priced once, however many
layers the program has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from alpa_mlir.passes.costs.memory import Ids, Moments
from alpa_mlir.passes.intra.copies import Operand
from alpa_mlir.passes.intra.program import OpKind, OpRecord, Program, Source, TensorType
from alpa_mlir.passes.intra.restrictions import clash_on_op, clash_on_value
from alpa_mlir.passes.intra.rules import Clash, Rules
from alpa_mlir.passes.intra.strategies import EdgeKind, Enumerator, StrategySet
from alpa_mlir.passes.memo import digest


@dataclass(frozen=True)
class OpRecipe:
    """The strategies of ops of a kind (see `Enumerator.of_op`); `example` is the first of them."""

    kind: OpKind
    partial: bool
    carried: tuple[int, ...]
    rules: Rules
    example: OpRecord = field(compare=False)


@dataclass(frozen=True)
class ValueRecipe:
    """The shardings of stored or arriving values (see `Enumerator.of_value`); `example` is the first's slot."""

    type: TensorType
    incoming: bool
    partial: bool
    rules: Rules
    example: str = field(compare=False)


@dataclass(frozen=True)
class CopyRecipe:
    """The shardings of copies of result `result` of nodes of recipe `maker` (see `Enumerator.of_copy`)."""

    type: TensorType
    maker: int
    result: int


Recipe = OpRecipe | ValueRecipe | CopyRecipe


@dataclass(frozen=True)
class SketchNode:
    """A node whose strategies are made by recipe number `recipe`; the rest as of `graph.Node`."""

    recipe: int
    weight: int
    source: Source
    function: str
    incoming: bool = False


@dataclass(frozen=True)
class SketchEdge:
    """A kind of edge: recipe and result number of its producers, recipe and operand number of its consumers."""

    producer: int
    result: int
    consumer: int
    operand: int
    size: float
    weight: int
    function: str


@dataclass(frozen=True, eq=False)
class Sketch:
    """The nodes and edges of a stage on any mesh; the fields that `graph.StageGraph` has mean the same there."""

    program: Program
    recipes: Sequence[Recipe]
    nodes: Sequence[SketchNode]
    recipe: Ids
    """[nodes]: their recipes."""
    ends: Ids
    edge_kinds: Sequence[SketchEdge]
    kinds: Ids
    """[edges]: numbers of `edge_kinds`."""
    moments: Moments
    of_op: Mapping[int, int]
    of_slot: Mapping[str, int]
    of_incoming: Mapping[Source, int]
    of_ended: Mapping[str, int]
    of_copy: Mapping[Operand, tuple[int, ...]]

    @cached_property
    def content(self) -> str:
        """A digest of all that decides the problem on a given mesh. Which ops and values its nodes are does not."""
        return digest(self.unlimited, self.moments.signature())

    @cached_property
    def unlimited(self) -> str:
        """A digest of all that decides the problem if memory is no object."""
        weights = [n.weight for n in self.nodes]
        functions = [n.function for n in self.nodes]
        incoming = [n.incoming for n in self.nodes]
        arrays = [self.recipe.tobytes(), self.ends.tobytes(), self.kinds.tobytes()]
        recipes = [_told(recipe) for recipe in self.recipes]
        microbatches = self.program.microbatches
        return digest(recipes, weights, functions, incoming, *arrays, list(self.edge_kinds), microbatches)

    def keeping(self, times: int) -> Sketch:
        """The same with `times` times as many copies kept."""
        kept = replace(self, moments=self.moments.keeping(times))
        vars(kept)["unlimited"] = self.unlimited
        return kept

    def choices(self, enumerator: Enumerator) -> list[StrategySet]:
        """The strategies of each recipe on a mesh. CompileError where what users want cannot be."""
        found: list[StrategySet] = []
        for recipe in self.recipes:
            if isinstance(recipe, OpRecipe):
                found.append(_of_op(recipe, enumerator))
            elif isinstance(recipe, ValueRecipe):
                found.append(_of_value(recipe, enumerator))
            else:
                found.append(enumerator.of_copy(recipe.type, found[recipe.maker].results[recipe.result]))
        return found

    def edges(self, enumerator: Enumerator, choices: Sequence[StrategySet]) -> list[int]:
        """The enumerator's number of each kind of edge."""
        return [
            enumerator.edge(
                EdgeKind(choices[e.producer], e.result, choices[e.consumer], e.operand, e.size, e.weight, e.function)
            )
            for e in self.edge_kinds
        ]


def _told(recipe: Recipe) -> object:
    """What a recipe holds, with a repr that tells it: ops and slots have names of their own."""
    if isinstance(recipe, OpRecipe):
        kind = recipe.kind
        types = (kind.captured, kind.operand_types, kind.result_types, kind.traffic)
        return kind.factors, *types, recipe.partial, recipe.carried, recipe.rules
    if isinstance(recipe, ValueRecipe):
        return recipe.type, recipe.incoming, recipe.partial, recipe.rules
    return recipe


def _of_op(recipe: OpRecipe, enumerator: Enumerator) -> StrategySet:
    try:
        return enumerator.of_op(recipe.example, recipe.partial, recipe.carried, recipe.rules)
    except Clash as e:
        raise clash_on_op(e, recipe.example, enumerator.mesh) from None


def _of_value(recipe: ValueRecipe, enumerator: Enumerator) -> StrategySet:
    try:
        return enumerator.of_value(recipe.type, recipe.incoming, recipe.partial, recipe.rules)
    except Clash as e:
        raise clash_on_value(e, recipe.example, recipe.type, enumerator.mesh) from None
