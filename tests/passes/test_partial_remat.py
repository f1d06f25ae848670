"""Which layers run again, chosen stage by stage under memory; plans against brute force and XLA."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations

import jax
import numpy as np
import pytest
from jaxlib.mlir import ir
from on_devices import run_all
from staged_steps import assert_same_step, layered, one_device

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.inter.layout import read_layout
from alpa_mlir.passes.inter.partial_remat import layers_again, mixed
from alpa_mlir.passes.inter.pricing import Pricer, RangePrices
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.memo import remembering_meanwhile
from alpa_mlir.passes.number_list import number_ranges, number_text
from alpa_mlir.passes.rematerialize import Rematerialize
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime.execute import run_plan
from alpa_mlir.tools.plan_summary import PlanSummary, summarize

MODEL = MODELS["mlp"]
CONFIG = replace(MODEL.presets["tiny"], layers=8, hidden=128, batch=4096, optimizer="sgd")


@pytest.fixture(scope="module")
def mlp() -> str:
    return print_module(lower(MODEL.build(CONFIG)))


def planned(program: str, stages: int, layers: int, remat: str, memory: float = 0.0) -> ir.Module:
    """A plan with a device a stage, 1F1B and 8 microbatches."""
    cluster = load_cluster("cpu").with_sizes(1, stages, int(memory))
    options = PlanOptions(cluster, microbatches=8, stages=stages, layers=layers, schedule="1f1b", remat=remat)
    return plan(parse_module(program, make_context()), options)


def between(program: str, stages: int, layers: int, share: float) -> float:
    """Bytes between what plans need if all layers run again and if none do."""
    least, most = (
        max(
            float(ir.IntegerAttr(e["peak_bytes"]).value) for e in stage_entries(planned(program, stages, layers, remat))
        )
        for remat in ("full", "none")
    )
    return least + share * (most - least)


def seconds(module: ir.Module) -> float:
    return summarize(module).step_seconds


def prices(layers: str) -> RangePrices:
    module, _ = layered("mlp", 4, 3, depth=6)
    Rematerialize(layers=layers).apply(module, [])
    cluster, mesh = load_cluster("cpu").with_sizes(1, 1), Mesh.from_shape("m", (1,))
    return next(Pricer(read_program(module, 4), read_layout(module)).prices(mesh, 2, 1.0, cluster))


def test_prices_of_some_layers_follow_from_those_of_none_and_all() -> None:
    """On one device there is one labelling: a range costs what it does in the program that runs its layers again."""
    none, full = prices("none"), prices("full")
    for again in range(3):
        found = mixed(none, full, again)
        assert (found.repeated[np.tril_indices(3, again - 1)] == np.inf).all()
        for i, j in combinations(range(4), 2):
            if j - i <= again:
                continue
            layers = list(layers_again(found, i, j - 1))
            real = prices(number_text(layers) if layers else "none")
            for name in (f.name for f in fields(RangePrices)):
                said, is_so = getattr(found, name)[..., i, j - 1], getattr(real, name)[..., i, j - 1]
                if name != "working":
                    np.testing.assert_allclose(said, is_so, rtol=1e-9, atol=1e-12)
                else:
                    assert is_so <= said * (1 + 1e-9)
    assert list(layers_again(full, 1, 2)) == [1, 2]


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_brute_force_over_all_subsets_finds_nothing_better(mlp: str, share: float) -> None:
    with remembering_meanwhile():
        memory = between(mlp, 2, 4, share)
        found = seconds(planned(mlp, 2, 4, "auto", memory))
        every = [set(c) for n in range(5) for c in combinations(range(4), n)]
        best = np.inf
        for chosen in every:
            try:
                best = min(best, seconds(planned(mlp, 2, 4, number_text(sorted(chosen)) or "none", memory)))
            except DoesNotFit:
                continue
    assert found <= best * 1.01


def test_some_layers_run_again_where_that_is_quicker_and_the_plan_runs(mlp: str) -> None:
    """Four stages: only the first, which holds four microbatches, needs a layer to run again."""
    memory = between(mlp, 4, 8, 0.75)
    with remembering_meanwhile():
        some, none, full = (planned(mlp, 4, 8, remat, memory) for remat in ("auto", "none", "full"))
    summary: PlanSummary = summarize(some)
    assert 0 < len(summary.remat) < 8
    assert summary.step_seconds < 0.9 * min(seconds(none), seconds(full))
    assert number_text(summary.remat) in {other.remat for other in summary.considered}
    assert list(ir.DenseI64ArrayAttr(some.operation.attributes[alpa.REMAT])) == list(summary.remat)
    values = [np.asarray(v) for v in jax.tree.leaves(MODEL.initial_values(CONFIG, 0))]
    expected = run_all([one_device(parse_module(mlp, make_context()))], [values])[0]
    assert_same_step(run_plan(print_module(some), values), expected)


def test_lists_of_numbers() -> None:
    for text in ("3", "0-3", "0-3,5", "1,3,5-7"):
        ranges = number_ranges(text)
        assert ranges is not None
        assert number_text([n for low, high in ranges for n in range(low, high + 1)]) == text
