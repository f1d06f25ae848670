"""A folded program costs what the whole one costs: the same layers, the same prices of all ranges."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.inter.fold import fold
from alpa_mlir.passes.inter.fold_layers import NotFoldable
from alpa_mlir.passes.inter.interleave import interleavings, near_shapes
from alpa_mlir.passes.inter.layout import read_layout
from alpa_mlir.passes.inter.listed import ListedStages
from alpa_mlir.passes.inter.pricing import Pricer, RangePrices
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.stage_cost import StageProfiler
from alpa_mlir.passes.layers import Layers
from alpa_mlir.passes.microbatch import Microbatch
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.passes.rematerialize import Rematerialize
from alpa_mlir.passes.road import folded


def normal(name: str, size: str, **fields: Any) -> ir.Module:
    model = MODELS[name]
    config = dataclasses.replace(model.presets[size], batch=16, **fields)
    module = parse_module(print_module(lower(model.build(config))), make_context())
    run_pipeline(module, [Normalize()], [])
    return module


def layered(level1: ir.Module, count: int) -> ir.Module:
    module = clone_module(level1)
    run_pipeline(module, [Microbatch(count=4, allow_per_microbatch_statistics=True), Layers(count=count)], [])
    return module


def prices(module: ir.Module, mesh: tuple[int, ...]) -> tuple[int, RangePrices]:
    """Number of layers of a module of level 3, prices without memory."""
    layout = read_layout(module)
    pricer = Pricer(read_program(module), layout)
    return layout.layers, next(pricer.prices(Mesh.from_shape("stage", mesh), 2, 1.0, load_cluster("dgx-h100")))


@pytest.mark.parametrize(
    ("name", "size", "fields", "mesh"),
    [
        ("gpt", "125M", {"layers": 13}, (2, 4)),
        ("llama", "8B", {"layers": 12}, (4,)),
        ("moe", "380M", {"layers": 16}, (2,)),
        ("wide_resnet", "250M", {"depth": 101}, (4,)),
    ],
)
def test_folded_prices_are_those_of_the_whole(
    name: str, size: str, fields: dict[str, Any], mesh: tuple[int, ...]
) -> None:
    module = normal(name, size, **fields)
    small = fold(module)
    assert small is not module
    (layers, whole), (segments, folded) = prices(layered(module, 5), mesh), prices(layered(small, 5), mesh)
    assert layers == 5 < segments and whole.repeated.shape == folded.repeated.shape == (5, 5)
    check_equal(whole, folded)


@pytest.mark.parametrize(
    ("name", "size", "layers", "count", "mesh"),
    [
        ("gpt", "15B", 24, 8, (8,)),
        ("gpt", "350M", 21, 4, (2,)),
        ("llama", "405B", 16, 8, (4,)),
        ("moe", "10B", 24, 12, (2,)),
    ],
)
def test_folded_prices_with_all_layers_run_again(
    name: str, size: str, layers: int, count: int, mesh: tuple[int, ...]
) -> None:
    module = normal(name, size, layers=layers)
    found = []
    for level1 in (module, fold(module)):
        level3 = layered(level1, count)
        run_pipeline(level3, [Rematerialize()], [])
        assert len(ir.DenseI64ArrayAttr(level3.operation.attributes[alpa.REMAT])) == count
        found.append((len(functions(level3)["microbatch"].regions[0].blocks[0].operations), prices(level3, mesh)[1]))
    (many, whole), (few, folded) = found
    assert few < many
    # Labels differ as well where gradients of a layer's blocks are alive together. What the last layer of a mixture of
    # experts keeps is whole there, split here.
    check_equal(whole, folded, 0.25, count - 1 if name == "moe" else count)


def test_interleavings_at_their_prices() -> None:
    """What prices say of interleaved stages is near what solving them says, on a folded program as well."""
    module, cluster = normal("gpt", "15B", layers=12), load_cluster("dgx-h100").with_sizes(1, 4)
    whole, folded = (layered(m, 8) for m in (module, fold(module)))
    assert not read_layout(folded).whole
    profiles = [StageProfiler(whole, cluster, 4)]
    listed = [ListedStages(Pricer(read_program(m), read_layout(m)), cluster) for m in (whole, folded)]
    found = [interleavings(p, cluster, ((1,), (2,)), 8, 4, 0, 0) for p in (*profiles, *listed)]
    exact = found[0][0]
    for every in found[1:]:
        assert exact.mesh.shape in near_shapes(every, cluster.device_count)
        assert every[0].step.makespan == pytest.approx(exact.step.makespan, rel=0.2)


def check_equal(whole: RangePrices, folded: RangePrices, memory: float = 0.1, layers: int = 0) -> None:
    """`layers`: of how many ranges keep the same (0: all)."""
    ranges = np.triu_indices(len(whole.repeated))
    alike = np.triu_indices(layers or len(whole.repeated))
    assert folded.kept[alike] == pytest.approx(whole.kept[alike], rel=1e-6)
    for part in ("least_stored", "least_kept"):
        assert getattr(folded, part)[ranges] == pytest.approx(getattr(whole, part)[ranges], rel=1e-6), part
    # What is fused across two segments of one layer passes through memory here: labels may be others for that.
    steps = [4 * p.repeated[ranges] + p.once[ranges] for p in (folded, whole)]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert folded.memory(2)[ranges] == pytest.approx(whole.memory(2)[ranges], rel=memory)


def test_what_repeats_without_contractions_is_not_folded_into_layers() -> None:
    """Ops repeat of which no layer says that it does."""
    module = fold(normal("gpt", "tiny", layers=12))
    for view in functions(module)["main"].regions[0].blocks[0].operations:
        if view.operation.name == "stablehlo.dot_general" and alpa.REPEATS in view.operation.attributes:
            del view.operation.attributes[alpa.REPEATS]
    with pytest.raises(NotFoldable):
        run_pipeline(module, [Microbatch(count=2), Layers()], [])


def test_layers_that_are_cut_unequally_run_again_folded() -> None:
    """Their blocks run again one by one, of which there are as many as in the whole program."""
    found = []
    for level1 in (normal("gpt", "tiny", layers=12), fold(normal("gpt", "tiny", layers=12))):
        level3 = layered(level1, 5)
        run_pipeline(level3, [Rematerialize()], [])
        found.append(prices(level3, (2,))[1])
    assert found[1].kept[0, -1] == pytest.approx(found[0].kept[0, -1], rel=0.25)


def test_single_layers_do_not_run_again_folded() -> None:
    level3 = layered(fold(normal("gpt", "tiny", layers=12)), 4)
    with pytest.raises(NotFoldable):
        run_pipeline(level3, [Rematerialize("0-1")], [])


def test_layers_of_the_user_are_not_folded() -> None:
    module = normal("gpt", "tiny", layers=10)
    assert folded(module) is not None
    alpa.set_int(functions(module)["main"].regions[0].blocks[0].operations[0], alpa.LAYER, 0)
    assert folded(module) is None
