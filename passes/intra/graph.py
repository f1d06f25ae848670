"""From a program to the optimisation problem of one stage: nodes, edges with resharding seconds, live bytes.

Nodes are ops, *slots* (stored values: `arg:i`, `sum:k`, …, one node however many functions take them, so
that both sides agree, and a state argument agrees with the result that replaces it), and values that
arrive from another stage (any sharding, priced as a transfer). Constants and iota are no nodes: their
parts can be made anywhere for nothing. An edge prices the reshard from what a value's producer gives
to what its consumer wants, times how often the consumer runs in a step (M in `@microbatch`).
A value that several products use may be resharded once for all of them (`copies.py`): that copy is a node too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum

import numpy as np

from alpa_mlir.passes.costs.memory import Ids, Moments
from alpa_mlir.passes.intra.copies import Operand
from alpa_mlir.passes.intra.problem import Array, Problem
from alpa_mlir.passes.intra.program import OpRecord, Program, Source
from alpa_mlir.passes.intra.restrictions import Restrictions
from alpa_mlir.passes.intra.sketch import Sketch
from alpa_mlir.passes.intra.sketch_stage import sketch_stage
from alpa_mlir.passes.intra.strategies import Enumerator, Strategy, StrategySet
from alpa_mlir.passes.memo import digest


@dataclass(frozen=True)
class Node:
    """A decision: an op (`op` ≥ 0), a slot, or (`incoming`) a value from another stage; run `weight` times a step."""

    choices: StrategySet
    weight: int
    source: Source
    function: str
    """The function whose runs the weight counts."""
    incoming: bool = False


@dataclass(frozen=True, eq=False)
class StageGraph:
    """The nodes and edges of one stage and when its values are alive."""

    nodes: tuple[Node, ...]
    ends: Ids
    """[edges, 2]: the producer's and the consumer's node."""
    kinds: Ids
    """[edges]: the kind of each edge, a number of the enumerator's `edge_kinds`."""
    moments: Moments
    of_op: Mapping[int, int]
    of_slot: Mapping[str, int]
    of_incoming: Mapping[Source, int]
    of_ended: Mapping[str, int]
    """The whole value of a sum that may be kept as addends: what its users in @update see."""
    of_copy: Mapping[Operand, tuple[int, ...]]
    """The copies that lie between a value and an operand of a product, the common one first."""
    enumerator: Enumerator = field(repr=False)
    sketch: Sketch = field(repr=False)

    @cached_property
    def costs(self) -> tuple[Array, ...]:
        """Seconds of a step per strategy of each node; equal nodes share one array."""
        known: dict[tuple[int, int], Array] = {}
        found = []
        for n in self.nodes:
            key = (id(n.choices), n.weight)
            if key not in known:
                known[key] = n.weight * n.choices.seconds
            found.append(known[key])
        return tuple(found)

    @cached_property
    def held(self) -> tuple[Array, ...]:
        """Bytes per device per strategy of each node; equal nodes share one array."""
        return tuple(n.choices.held for n in self.nodes)

    def problem(self, limit: float = float("inf")) -> Problem:
        """The numbers of the graph: seconds of a step, bytes per device, `limit` bytes; equal edges share one array."""
        edges: dict[tuple[int, int], Array] = {}
        turned: dict[int, Array] = {}
        sums: dict[tuple[int, int], Array] = {}
        for (u, v), kind in zip(self.ends.tolist(), self.kinds.tolist(), strict=True):
            matrix = self.enumerator.edge_seconds(kind)
            if u > v:
                matrix = turned.setdefault(kind, matrix.T)
            key = (u, v) if u < v else (v, u)
            there = edges.get(key)
            if there is None:
                edges[key] = matrix
                continue
            pair = (id(there), id(matrix))
            if pair not in sums:
                sums[pair] = there + matrix
            edges[key] = sums[pair]
        return Problem(self.costs, edges, self.held, self.moments.rows(), limit)

    def usage(self, labels: Sequence[int]) -> Array:
        """Bytes alive at each moment under a labelling."""
        return self.moments.usage(np.array([h[x] for h, x in zip(self.held, labels, strict=True)]))

    def least_usage(self) -> Array:
        """Bytes that each moment needs at the very least (every node at its smallest strategy)."""
        return self.moments.usage(np.array([n.choices.least_held for n in self.nodes]))

    def content(self) -> str:
        """A digest of everything that decides the problem."""
        return digest(self.sketch.content, self.enumerator.content)

    def signature(self) -> tuple[object, ...]:
        """Equal for stages that are the same problem (layers repeat), for caches."""
        nodes = tuple([(id(n.choices), n.weight, n.function) for n in self.nodes])
        return nodes, self.ends.tobytes(), self.kinds.tobytes(), self.moments.signature()

    def seconds(self, labels: Sequence[int], program: Program) -> tuple[float, float]:
        """(seconds of all runs of @microbatch, seconds of everything else) of a labelling.

        A level-1 program has only @main, which counts as the microbatch.
        """
        often = {"microbatch", "main"} & set(program.functions)
        parts: tuple[list[float], list[float]] = ([], [])
        for node, cost, x in zip(self.nodes, self.costs, labels, strict=True):
            parts[node.function in often].append(float(cost[x]))
        chosen = np.asarray(labels)[self.ends].reshape(-1, 2)
        order = np.argsort(self.kinds, kind="stable")
        numbers, starts = np.unique(self.kinds[order], return_index=True)
        for number, members in zip(numbers.tolist(), np.split(order, starts)[1:], strict=True):
            costs = self.enumerator.edge_seconds(number)[chosen[members, 0], chosen[members, 1]]
            parts[self.enumerator.edge_kinds[number].function in often].extend(costs.tolist())
        return fsum(parts[True]), fsum(parts[False])

    def strategy(self, node: int, labels: Sequence[int]) -> Strategy:
        """The strategy that a labelling gives a node."""
        return self.nodes[node].choices.strategies[labels[node]]


def build_graph(
    program: Program,
    enumerator: Enumerator,
    included: Callable[[OpRecord], bool],
    stage: int = -1,
    in_flight: int = 1,
    restrictions: Restrictions | None = None,
) -> StageGraph:
    """The graph of the included ops on the enumerator's mesh: `graph_on(sketch_stage(…), enumerator)`."""
    return graph_on(sketch_stage(program, included, stage, in_flight, restrictions), enumerator)


def graph_on(sketch: Sketch, enumerator: Enumerator) -> StageGraph:
    """The graph of a sketch on a mesh. CompileError where what users want cannot be."""
    choices = sketch.choices(enumerator)
    kinds = np.array(sketch.edges(enumerator, choices), dtype=np.int64)
    return StageGraph(
        tuple([Node(choices[n.recipe], n.weight, n.source, n.function, n.incoming) for n in sketch.nodes]),
        sketch.ends,
        kinds[sketch.kinds],
        sketch.moments,
        sketch.of_op,
        sketch.of_slot,
        sketch.of_incoming,
        sketch.of_ended,
        sketch.of_copy,
        enumerator,
        sketch,
    )
