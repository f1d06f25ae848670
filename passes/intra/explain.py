"""Why a decision is as it is: its cost terms, and the best plan in which it is another one.

The terms of a node are the seconds of a step that its strategy costs: computing, ending its sums, and the reshards
on the edges at it.  Its *runner-up* is the strategy that the best plan has in its place if the chosen one is
barred: the `NEAR` nodes nearest to it decide again, under the same memory limit, the others stay as they are.  In
a graph of no more nodes that is the exact answer, in a larger one the difference may be a little less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.intra.graph import StageGraph
from alpa_mlir.passes.intra.problem import Array, DoesNotFit, Problem
from alpa_mlir.passes.intra.solve import solve
from alpa_mlir.passes.intra.strategies import Strategy
from alpa_mlir.passes.local.steps import Step, reshard_steps

NEAR = 64
"""How many nodes decide again when a decision is barred."""
TIE = 1e-9
"""Differences of less, in parts of what they are differences of, are rounding."""

Labels = Sequence[int]


@dataclass(frozen=True)
class Reshard:
    """What an edge costs: the value changes from one sharding to another between two nodes."""

    producer: int
    consumer: int
    operand: int
    source: Sharding
    target: Sharding
    steps: tuple[Step, ...]
    seconds: float


@dataclass(frozen=True)
class Terms:
    """Seconds of a step of one node under some labelling; `weight` times a step it runs."""

    strategy: Strategy
    weight: int
    compute: float
    ending: float
    reshards: tuple[Reshard, ...]
    held: float
    """Bytes per device."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.ending + sum(r.seconds for r in self.reshards)


@dataclass(frozen=True)
class RunnerUp:
    """The best other plan around a node: its terms there, seconds of a step more, bytes at the peak."""

    terms: Terms
    difference: float
    peak: float
    changed: int
    """How many decisions besides this one are others."""


@dataclass(frozen=True, eq=False)
class Explainer:
    """Explains the decisions of one stage."""

    graph: StageGraph
    labels: tuple[int, ...]
    limit: float
    solver: str

    @cached_property
    def edges_at(self) -> list[list[int]]:
        """The edges at each node."""
        found: list[list[int]] = [[] for _ in self.graph.nodes]
        for number, (u, v) in enumerate(self.graph.ends.tolist()):
            found[u].append(number)
            found[v].append(number)
        return found

    def terms(self, node: int, labels: Labels | None = None) -> Terms:
        """What a node costs under a labelling (the chosen one)."""
        labels = self.labels if labels is None else labels
        place, label = self.graph.nodes[node], labels[node]
        strategy = place.choices.strategies[label]
        reshards = [self._reshard(edge, labels) for edge in self.edges_at[node]]
        return Terms(
            strategy,
            place.weight,
            place.weight * strategy.compute,
            place.weight * strategy.communication,
            tuple(r for r in reshards if r.steps),
            float(place.choices.held[label]),
        )

    def seconds(self, node: int) -> float:
        """The seconds of `terms`, at less expense: for ranking."""
        arriving = [e for e in self.edges_at[node] if self.graph.ends[e, 1] == node]
        own = float(self.graph.costs[node][self.labels[node]])
        return own + sum(self._edge_seconds(e, self.labels) for e in arriving)

    def _edge_seconds(self, edge: int, labels: Labels) -> float:
        u, v = self.graph.ends[edge].tolist()
        return float(self.graph.enumerator.edge_seconds(int(self.graph.kinds[edge]))[labels[u], labels[v]])

    def _reshard(self, edge: int, labels: Labels) -> Reshard:
        enumerator = self.graph.enumerator
        kind = enumerator.edge_kinds[int(self.graph.kinds[edge])]
        u, v = self.graph.ends[edge].tolist()
        source = enumerator.table.sharding(int(kind.producer.results[kind.result][labels[u]]))
        target = enumerator.table.sharding(int(kind.consumer.operands[kind.operand][labels[v]]))
        steps = reshard_steps(source, target, enumerator.mesh)
        return Reshard(u, v, kind.operand, source, target, tuple(steps), self._edge_seconds(edge, labels))

    def runner_up(self, node: int) -> RunnerUp | None:
        """The best plan without the chosen strategy of a node; None where there is none within memory."""
        if len(self.graph.nodes[node].choices) == 1:
            return None
        near = self._near(node)
        problem = self._around(near)
        barred = problem.costs[near.index(node)].copy()
        barred[self.labels[node]] = np.inf
        costs = tuple(barred if v == node else c for v, c in zip(near, problem.costs, strict=True))
        found = self._solve(near, Problem(costs, problem.edges))
        if found is None:
            return None
        chosen = [self.labels[v] for v in near]
        labels = list(self.labels)
        for v, label in zip(near, found, strict=True):
            labels[v] = label
        before, after = problem.cost(chosen), problem.cost(found)
        return RunnerUp(
            self.terms(node, labels),
            after - before if abs(after - before) > TIE * before else 0.0,
            float(self.graph.usage(labels).max(initial=0.0)),
            sum(a != b for a, b in zip(found, chosen, strict=True)) - 1,
        )

    def _solve(self, near: list[int], problem: Problem) -> tuple[int, ...] | None:
        try:
            found = solve(problem, self.solver).labels
            labels = list(self.labels)
            for v, label in zip(near, found, strict=True):
                labels[v] = label
            if self.graph.usage(labels).max(initial=0.0) <= self.limit * (1 + 1e-9):
                return found
            return solve(self._within(near, problem), self.solver).labels
        except DoesNotFit:
            return None

    def _near(self, node: int) -> list[int]:
        """The `NEAR` nodes nearest to a node, itself among them, in order of their numbers."""
        found = {node: None}
        waiting = [node]
        while waiting and len(found) < NEAR:
            reached: dict[int, None] = {}
            for v in waiting:
                reached.update(dict.fromkeys(u for e in self.edges_at[v] for u in self.graph.ends[e].tolist()))
            waiting = [v for v in sorted(reached) if v not in found][: NEAR - len(found)]
            found.update(dict.fromkeys(waiting))
        return sorted(found)

    def _around(self, near: list[int]) -> Problem:
        """The decisions of some nodes, given those of all others."""
        place = {v: i for i, v in enumerate(near)}
        costs: list[Array] = [self.graph.costs[v].copy() for v in near]
        edges: dict[tuple[int, int], Array] = {}
        for edge in sorted({e for v in near for e in self.edges_at[v]}):
            u, v = self.graph.ends[edge].tolist()
            matrix = self.graph.enumerator.edge_seconds(int(self.graph.kinds[edge]))
            if u not in place:
                costs[place[v]] += matrix[self.labels[u]]
            elif v not in place:
                costs[place[u]] += matrix[:, self.labels[v]]
            else:
                key, matrix = ((place[u], place[v]), matrix) if u < v else ((place[v], place[u]), matrix.T)
                edges[key] = edges[key] + matrix if key in edges else matrix
        return Problem(tuple(costs), edges)

    def _within(self, near: list[int], problem: Problem) -> Problem:
        """The same problem with what the others leave of the memory: each row is scaled to the whole limit."""
        held = self.graph.held
        rows = self.graph.moments.rows()
        counted = rows[:, near]
        chosen = np.array([h[x] for h, x in zip(held, self.labels, strict=True)])
        room = self.limit - (rows @ chosen - counted @ chosen[near])
        scale = sparse.diags(self.limit / np.maximum(room, 1e-9 * self.limit))
        some = np.flatnonzero(np.diff(counted.indptr))
        scaled = sparse.csr_matrix(scale @ counted)[some]
        return Problem(problem.costs, problem.edges, tuple(held[v] for v in near), scaled, self.limit)


def changed(before: StageGraph, after: StageGraph, labels: tuple[Labels, Labels]) -> Iterator[tuple[int, int]]:
    """(node before, node after) of ops and stored values whose strategies are not the same in two plans of a stage."""
    pairs = [(v, after.of_op[key]) for key, v in before.of_op.items()]
    pairs += [(v, after.of_slot[key]) for key, v in before.of_slot.items()]
    for old, new in pairs:
        if before.strategy(old, labels[0]) != after.strategy(new, labels[1]):
            yield old, new
