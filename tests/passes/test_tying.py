"""Elimination and tying: what they leave has the same optimum, or one within the proven gap."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.intra import optimize
from alpa_mlir.passes.intra.graph import StageGraph, build_graph
from alpa_mlir.passes.intra.optimize import GAP, optimum
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.shared import SharedGraph
from alpa_mlir.passes.intra.solve import solve
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.intra.tying import Tying
from alpa_mlir.passes.normalize import Normalize
from tests.passes.small_programs import PROGRAMS, normalized

INF = float("inf")


def graph_of(module, shape: tuple[int, ...]) -> StageGraph:
    cluster = load_cluster("cpu", devices_per_node=8)
    links = mesh_links(Mesh.from_shape("m", shape), cluster)
    return build_graph(read_program(module), Enumerator(links, cluster), lambda op: True, 0)


def layers(count: int) -> str:
    """A training step of equal dense layers, as jax lowers it; the weights are arguments 0 … count-1."""

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return (x**2).sum()

    def step(weights, x):
        return [w - 0.1 * g for w, g in zip(weights, jax.grad(loss)(weights, x), strict=True)]

    shape = jax.ShapeDtypeStruct((256, 256), np.float32)
    x = jax.ShapeDtypeStruct((32, 256), np.float32)
    return jax.jit(step, donate_argnums=0).lower([shape] * count, x).as_text()


@pytest.fixture(scope="module")
def chain() -> StageGraph:
    module = parse_module(layers(10), make_context())
    Normalize().apply(module, [])
    return graph_of(module, (4,))


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_elimination_keeps_the_optimum(name: str) -> None:
    graph = graph_of(normalized(name, make_context()), (2, 2))
    found = optimum(graph, INF, "highs")
    best = solve(graph.problem(), engine="highs").cost
    assert best * (1 - 1e-9) <= found.cost <= best * (1 + GAP)
    assert graph.problem().cost(found.labels) == pytest.approx(found.cost, rel=1e-9)
    assert found.cost * (1 - GAP) <= found.bound <= best * (1 + 1e-9)


def test_layers_that_alternate_cost_nothing_where_every_second_is_tied(chain: StageGraph) -> None:
    best = solve(chain.problem()).cost
    shared = SharedGraph.of(chain)
    shared.eliminate()
    every, second = (shared.constant + solve(Tying.of(shared, period=p).apply()).cost for p in (1, 2))
    assert every > best * (1 + GAP)
    assert second == pytest.approx(best, rel=GAP)


def test_what_tying_costs_is_made_good(chain: StageGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    best = solve(chain.problem()).cost
    monkeypatch.setattr(optimize, "SMALL", 0)
    found = optimum(chain, INF, "highs")
    assert any(step.startswith("tie: ") for step in found.steps)
    assert found.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= found.cost <= best * (1 + GAP)
    assert chain.problem().cost(found.labels) == pytest.approx(found.cost, rel=1e-9)


def test_the_tied_problem_costs_and_holds_what_its_labelling_does(chain: StageGraph) -> None:
    shared = SharedGraph.of(chain)
    numbers: dict[int, int] = {}
    tying = Tying.of(shared, [numbers.setdefault(id(h), len(numbers)) for h in chain.held])
    assert tying.classes < len(chain.nodes) / 2
    problem, whole = tying.apply(chain.held, chain.moments, 1e9), chain.problem(1e9)
    random = np.random.default_rng(0)
    for _ in range(20):
        labels = tuple(int(random.integers(len(c))) for c in problem.costs)
        every = tying.invert(labels)
        expanded = tuple(every[v] for v in range(len(chain.nodes)))
        assert problem.cost(labels) == pytest.approx(whole.cost(expanded), rel=1e-9)
        assert problem.usage(labels).max() == pytest.approx(whole.usage(expanded).max(), rel=1e-9)
        assert chain.usage(expanded) == pytest.approx(whole.usage(expanded), rel=1e-9)


def test_a_tied_plan_keeps_within_memory(chain: StageGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "SMALL", 0)
    free = optimum(chain, INF, "highs")
    least = float(chain.least_usage().max())
    limit = (free.peak + least) / 2
    found = optimum(chain, limit, "highs")
    assert found.peak <= limit < free.peak
    assert found.cost >= free.cost
    assert found.bound <= solve(chain.problem(limit)).cost


def test_the_same_bytes_whatever_the_hash_seed(tmp_path) -> None:
    source = tmp_path / "chain.mlir"
    source.write_text(layers(40))
    texts = []
    for seed in ("1", "77"):
        command = [Path(sys.executable).parent / "alpa-mlir-opt", source]
        command += ["--alpa-normalize", "--alpa-shard=mesh=2x2 statistics=true"]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True)
        texts.append((done.stdout, done.stderr))
    assert b"tie" in texts[0][1]
    assert texts[0] == texts[1]
