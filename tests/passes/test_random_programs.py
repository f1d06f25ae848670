"""Whole stages of random small programs against brute force: states that results replace, several mesh axes, memory.

The programs are steps of a few ops on matrices whose sizes some axes do not divide; a state argument and the result
that replaces it are one decision. All labellings of the stage's graph are priced, cost and bytes.
"""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.intra.graph import StageGraph, build_graph
from alpa_mlir.passes.intra.optimize import optimum
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.normalize import Normalize

MOST = 60_000
"""Labellings up to which a program is tried."""
BLOCKS, EACH = 10, 40
SIZES = (2, 4, 3)


def random_program(rng: np.random.Generator) -> str:
    """A step that replaces one or two states: products, sums, transposes and tanh of what there is."""
    kinds: dict[str, tuple[int, int]] = {}
    arguments = [f"%a{i}" for i in range(int(rng.integers(2, 4)))]
    for name in arguments:
        kinds[name] = (int(rng.choice(SIZES)), int(rng.choice(SIZES)))
    body, made = [], []
    for number in range(int(rng.integers(1, 4))):
        name = f"%v{number}"
        x = str(rng.choice(made[-1:] * 3 + list(kinds)))
        a, b = kinds[x]
        same = [k for k, shape in kinds.items() if shape == (a, b)]
        fitting = [k for k, shape in kinds.items() if shape[0] == b]
        choice = rng.random()
        if choice < 0.5 and fitting:
            y = str(rng.choice(fitting))
            kinds[name] = (a, kinds[y][1])
            body.append(
                f"{name} = stablehlo.dot_general {x}, {y}, contracting_dims = [1] x [0] : "
                f"({text(kinds[x])}, {text(kinds[y])}) -> {text(kinds[name])}"
            )
        elif choice < 0.7:
            kinds[name] = (a, b)
            body.append(f"{name} = stablehlo.add {x}, {rng.choice(same)} : {text((a, b))}")
        elif choice < 0.85:
            kinds[name] = (b, a)
            body.append(f"{name} = stablehlo.transpose {x}, dims = [1, 0] : ({text((a, b))}) -> {text((b, a))}")
        else:
            kinds[name] = (a, b)
            body.append(f"{name} = stablehlo.tanh {x} : {text((a, b))}")
        made.append(name)
    results = [m for m in made if kinds[m] == kinds["%a0"]][-1:] or [made[-1]]
    alias = ' {alpa.role = "state", alpa.updates = 0 : i64}' if kinds[results[0]] == kinds["%a0"] else ""
    results += [made[-1]] if made[-1] not in results else []
    heads = [f"{a}: {text(kinds[a])}{alias if a == '%a0' else ''}" for a in arguments]
    return (
        f"func.func public @main({', '.join(heads)}) -> ({', '.join(text(kinds[r]) for r in results)}) {{\n  "
        + "\n  ".join(body)
        + f"\n  return {', '.join(results)} : {', '.join(text(kinds[r]) for r in results)}\n}}"
    )


def text(shape: tuple[int, int]) -> str:
    return f"tensor<{shape[0]}x{shape[1]}xf32>"


def graph_of(source: str, shape: tuple[int, ...]) -> StageGraph:
    module = parse_module(source, make_context())
    Normalize(batch_args="none").apply(module, [])
    cluster = load_cluster("cpu").with_sizes(1, prod(shape))
    enumerator = Enumerator(mesh_links(Mesh.from_shape("m", shape), cluster), cluster)
    return build_graph(read_program(module), enumerator, lambda op: True)


def brute_force(graph: StageGraph) -> tuple[np.ndarray, np.ndarray]:
    """(cost, peak bytes) of every labelling, an axis per node."""
    sizes = [len(c) for c in graph.costs]

    def spread(array: np.ndarray, *nodes: int) -> np.ndarray:
        return array.reshape([sizes[v] if v in nodes else 1 for v in range(len(sizes))])

    cost = np.zeros(sizes)
    for v, own in enumerate(graph.costs):
        cost = cost + spread(own, v)
    for (u, v), kind in zip(graph.ends.tolist(), graph.kinds.tolist(), strict=True):
        seconds = graph.enumerator.edge_seconds(kind)
        cost = cost + spread(seconds if u < v else seconds.T, u, v)
    peak = np.zeros(sizes)
    for row in graph.moments.rows().toarray():
        used = np.zeros(sizes)
        for v, held in enumerate(graph.held):
            used = used + row[v] * spread(held, v)
        peak = np.maximum(peak, used)
    return cost, peak


@pytest.mark.parametrize("block", range(BLOCKS))
def test_optima_equal_brute_force(block: int) -> None:
    rng = np.random.default_rng(block)
    tried = bound = aliased = several = 0
    while tried < EACH:
        source = random_program(rng)
        shape = [(2,), (4,), (2, 2), (1, 2), (2, 1, 2)][int(rng.integers(5))]
        graph = graph_of(source, shape)
        if prod(len(c) for c in graph.costs) > MOST:
            continue
        tried += 1
        aliased += "alpa.updates" in source
        several += len([n for n in shape if n > 1]) > 1
        cost, peak = brute_force(graph)
        free = optimum(graph, float("inf"), "highs")
        assert free.cost == pytest.approx(cost.min(), rel=1e-6), source
        assert cost[free.labels] == pytest.approx(free.cost, rel=1e-6), source
        assert free.bound <= free.cost * (1 + 1e-9)
        lower = float(peak.min())
        if lower < free.peak:
            limit = lower + rng.random() * 0.9 * (free.peak - lower)
            tight = optimum(graph, limit, "highs")
            assert peak[tight.labels] <= limit * (1 + 1e-9), source
            assert tight.cost == pytest.approx(cost[peak <= limit * (1 + 1e-9)].min(), rel=1e-6), source
            bound += 1
    assert bound >= EACH // 10 and aliased >= EACH // 5 and several >= EACH // 10, (bound, aliased, several)
