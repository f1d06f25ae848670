"""The graph of a whole program with what looks alike tied, on one mesh after another.

Prices of ranges (`pricing.py`) need labellings of the whole program on many meshes, at several prices on memory.
Which nodes look alike does not depend on the mesh: colour refinement (`intra/tying.py`) on the sketch ties them once.
On a mesh the strategies of each class are made and the small problem of the classes is solved; a figure of a class
is the figure of all its members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpa_mlir.passes.intra.shared import Matrices, SharedGraph
from alpa_mlir.passes.intra.sketch import Sketch
from alpa_mlir.passes.intra.strategies import Enumerator, StrategySet
from alpa_mlir.passes.intra.sweeps import Start, near_optimum
from alpa_mlir.passes.intra.tying import numbered, refined

Ids = npt.NDArray[np.int64]
Table = npt.NDArray[np.float64]
DEPTH = 3
"""Rounds of refinement: nodes alike up to this distance are tied. (Elimination comes after, so this is far.)"""


@dataclass(frozen=True, eq=False)
class TiedSketch:
    """Classes of the nodes of a sketch. Node v counts `times[v]` times, edge e `edge_times[e]` times."""

    sketch: Sketch
    of_node: Ids
    """[nodes]: the class of each."""
    first: Ids
    """[classes]: a member of each."""
    count: Table
    """[classes]: how often members count, together."""
    ends: Ids
    kinds: Ids
    edge_count: Table
    """[tied edges]: classes of the ends, kind of the sketch, how often such edges count, together."""
    of_edge: Ids
    """[edges]: the tied edge of each."""

    @staticmethod
    def of(sketch: Sketch, alike: Ids, times: Ids, edge_times: Ids) -> TiedSketch:
        """Tie nodes of equal recipe, weight and number in `alike` whose surroundings look alike."""
        weights = np.array([n.weight for n in sketch.nodes], dtype=np.int64)
        own = np.column_stack([sketch.recipe, weights, alike])
        colours = np.unique(own, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
        for _ in range(DEPTH):
            colours = refined(colours, sketch.ends, sketch.kinds)
        of_node, first = numbered(colours)
        count = np.bincount(of_node, weights=times).astype(np.float64)
        edges = np.column_stack([of_node[sketch.ends].reshape(-1, 2), sketch.kinds])
        found, of_edge = np.unique(edges, axis=0, return_inverse=True)
        of_edge = of_edge.ravel()
        edge_count = np.bincount(of_edge, weights=edge_times, minlength=len(found)).astype(np.float64)
        return TiedSketch(sketch, of_node, first, count, found[:, :2], found[:, 2], edge_count, of_edge)


class TiedGraph:
    """A tied sketch on a mesh."""

    def __init__(self, tied: TiedSketch, enumerator: Enumerator) -> None:
        self.tied, self.enumerator = tied, enumerator
        sketch = tied.sketch
        made = sketch.choices(enumerator)
        numbers = sketch.edges(enumerator, made)
        self.choices: list[StrategySet] = [made[r] for r in sketch.recipe[tied.first].tolist()]
        self.weights = [sketch.nodes[v].weight for v in tied.first.tolist()]
        self.seconds = [w * c.seconds for w, c in zip(self.weights, self.choices, strict=True)]
        self.edge_tables = [enumerator.edge_seconds(numbers[k]) for k in tied.kinds.tolist()]
        loops = tied.ends[:, 0] == tied.ends[:, 1]
        self.loops, self.between = np.flatnonzero(loops).tolist(), np.flatnonzero(~loops)
        known: dict[tuple[int, float], int] = {}
        scaled: list[Table] = []
        found = []
        for e in self.between.tolist():
            key = (id(self.edge_tables[e]), float(tied.edge_count[e]))
            if key not in known:
                known[key] = len(scaled)
                scaled.append(key[1] * self.edge_tables[e])
            found.append(known[key])
        self.numbers = np.array(found, dtype=np.int64)
        self.matrices = Matrices.of(scaled)
        self.start: Start | None = None
        """What led to the last labelling: the next begins with it."""

    def labelling(self, rates: Sequence[float] = ()) -> Ids:
        """The label of each class in a cheap labelling; `rates`: seconds charged per byte that a node of it holds."""
        tied = self.tied
        charged = self.seconds
        if len(rates):
            pairs = zip(self.seconds, rates, self.choices, strict=True)
            charged = [own + rate * c.held if rate else own for own, rate, c in pairs]
        costs = [n * cost for n, cost in zip(tied.count.tolist(), charged, strict=True)]
        for e in self.loops:
            costs[tied.ends[e, 0]] = costs[tied.ends[e, 0]] + tied.edge_count[e] * np.diag(self.edge_tables[e])
        graph = SharedGraph.of_numbered(costs, tied.ends[self.between], self.numbers, self.matrices)
        graph.eliminate()
        labels, self.start = near_optimum(graph, self.start)
        return np.array(graph.invert(labels), dtype=np.int64)

    def per_node(self, figure: Callable[[int], float]) -> Table:
        """[nodes]: the figure of each one's class."""
        found = np.array([figure(c) for c in range(len(self.choices))])
        result: Table = found[self.tied.of_node]
        return result

    def edge_seconds(self, labels: Ids) -> Table:
        """[edges]: seconds of each under a labelling."""
        ends = labels[self.tied.ends].reshape(-1, 2)
        found = np.array([m[a, b] for m, (a, b) in zip(self.edge_tables, ends.tolist(), strict=True)])
        result: Table = found[self.tied.of_edge] if len(found) else np.zeros(0)
        return result
