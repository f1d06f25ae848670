"""Explanations: terms that add up, runners-up against brute force, what-ifs against solving from the start."""

from __future__ import annotations

from itertools import product
from math import inf

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.explain import Explain
from alpa_mlir.passes.intra.explain import Explainer
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.shard import Decided, Shard
from alpa_mlir.value_names import name_values

LAYERS = """
func.func public @main(%x: tensor<64x64xf32>, %w: tensor<64x64xf32>) -> tensor<64x64xf32> {
  %a = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
    : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %b = stablehlo.tanh %a : tensor<64x64xf32>
  %c = stablehlo.dot_general %b, %x, contracting_dims = [1] x [0]
    : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %c : tensor<64x64xf32>
}
"""


def module() -> ir.Module:
    found = parse_module(LAYERS, make_context())
    Normalize(batch_args="none", state_args="none").apply(found, [])
    return found


def decided(memory: str = "", constrain: str = "") -> Decided:
    return Shard(mesh="2", cluster="cpu", memory=memory, constrain=constrain).decide(module(), [])


def explainer(of: Decided) -> Explainer:
    (stage,) = of.solved.stages
    return Explainer(stage.graph, stage.found.labels, stage.spec.memory, "highs")


@pytest.mark.parametrize("memory", ["", "44kB"])
def test_runners_up_are_the_best_other_plans(memory: str) -> None:
    why = explainer(decided(memory))
    graph = why.graph
    problem = graph.problem()
    best = [inf] * len(graph.nodes)
    chosen = problem.cost(why.labels)
    for labels in product(*(range(len(n.choices)) for n in graph.nodes)):
        if graph.usage(labels).max() <= why.limit:
            seconds = problem.cost(labels)
            for v, label in enumerate(labels):
                if label != why.labels[v]:
                    best[v] = min(best[v], seconds)
    for v in range(len(graph.nodes)):
        found = why.runner_up(v)
        if found is None:
            assert best[v] == inf
        else:
            assert found.difference == pytest.approx(best[v] - chosen, rel=1e-6, abs=1e-12)
            assert found.peak <= why.limit
            assert found.terms.strategy != why.terms(v).strategy
    assert any(why.runner_up(v) is not None for v in range(len(graph.nodes)))


def test_memory_takes_runners_up_away() -> None:
    free, tight = (explainer(decided(memory, constrain="arg1=[{?},{}]")) for memory in ("", "36kB"))
    assert free.graph.usage(free.labels).max() > tight.limit
    node = tight.graph.of_slot["arg:1"]
    assert len(tight.graph.nodes[node].choices) == 2
    assert tight.runner_up(node) is None and free.runner_up(node) is not None


def test_terms_add_up_to_the_cost() -> None:
    why = explainer(decided(constrain="arg0=[{},{x}]; value(line:6)=[{x},{}]"))
    terms = [why.terms(v) for v in range(len(why.graph.nodes))]
    own = sum(t.compute + t.ending for t in terms)
    reshards = sum(r.seconds for t in terms for r in t.reshards)
    assert reshards > 0  # each at its producer and at its consumer
    assert own + reshards / 2 == pytest.approx(why.graph.problem().cost(why.labels))


def test_what_if_is_what_solving_under_the_constraint_gives() -> None:
    text = "arg1=[{x},{}]; arg0=[{x},{}]"
    first, fresh = decided(), decided(constrain=text)
    remarks = []
    Shard(mesh="2", cluster="cpu", what_if=f"{text} | x=tensor").speak(first, remarks)
    assert [r.message.split(": ")[0] for r in remarks if r.severity == "remark"] == [
        f"what if {text}",
        "what if x=tensor",
    ]
    step = fresh.solved.stages[0].cost.microbatch_seconds
    assert step > first.solved.stages[0].cost.microbatch_seconds
    assert f"{1e6 * step:.4g} us instead of" in remarks[0].message


def test_explaining_changes_nothing() -> None:
    plain, explained = module(), module()
    remarks = []
    Shard(mesh="2").apply(plain, [])
    Shard(mesh="2", explain="*", what_if="arg0=[{},{}]").apply(explained, remarks)
    assert print_module(plain) == print_module(explained)
    assert sum(r.severity == "remark" and "of a step" in r.message for r in remarks) == 5


def test_what_cannot_be_explained() -> None:
    with pytest.raises(CompileError, match=r"nothing that is decided is called stablehlo\.sort"):
        Explain(mesh="2", only="stablehlo.sort").apply(module(), [])
    sharded = module()
    Shard(mesh="2").apply(sharded, [])
    with pytest.raises(CompileError, match="run alpa-explain before alpa-shard"):
        Explain().apply(sharded, [])


def test_values_are_found_by_name() -> None:
    context = make_context()
    written = parse_module(LAYERS, context)
    assert name_values(written, LAYERS.encode(), "%b; %w; stablehlo.*") == "%b; arg1; stablehlo.*"
    printed = parse_module(print_module(written, locations=True), context)  # locations say nothing of this text
    assert name_values(printed, print_module(printed).encode(), "%1;%arg0") == "%1; arg0"
    block = printed.body.operations[0].regions[0].blocks[0]
    assert ir.NameLoc(block.operations[1].location).name_str == "%1"
