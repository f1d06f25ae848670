"""The communication that a good plan needs, counted in the planned program: kinds, axes and bytes per device.

The cluster `unit` prices α = β = 1 along each mesh axis and makes products dear, so that they are split over all
devices and the rest is a matter of communication. The cases are those of Alpa's evaluation and others of their kind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import clone_module, make_context, parse_module, print_module
from alpa_mlir.dialect.mesh import parse_mesh
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes import all as _registered  # noqa: F401
from alpa_mlir.passes.costs.cluster import Cluster, Link, load_cluster
from alpa_mlir.passes.local.census import planned_collectives
from alpa_mlir.passes.localize import sharded_functions
from alpa_mlir.passes.parallelize import plan
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.passes.plan_passes import PlanOptions
from tests.on_devices import assert_close, random_inputs, run_all

Key = tuple[str, str, int]


def unit(mesh: str, *beta: float) -> Cluster:
    """α = 1 and the given β (1 by default) along each axis of a mesh."""
    shape = parse_mesh(mesh)
    axes = tuple(Link(1.0 / b, 1.0, 0.0) for b in beta or (1.0,) * len(shape))
    return replace(load_cluster("unit", devices_per_node=prod(shape)), axes=axes)


def collectives(name: str, mesh: str, *beta: float, constrain: str = "", **sizes: object) -> Counter[Key]:
    """(kind, axes, bytes) of the collectives of a whole planned step; sums of scalars left out."""
    return count(planned(name, mesh, *beta, constrain=constrain, **sizes))


def planned(name: str, mesh: str, *beta: float, constrain: str = "", **sizes: object) -> ir.Module:
    model = MODELS[name]
    module = parse_module(print_module(lower(model.build(model.config(**sizes)))), make_context())
    options = PlanOptions(unit(mesh, *beta), mesh, microbatches=1, constrain=constrain)
    return plan(module, options, stop_after="alpa-shard")


def count(sharded: ir.Module) -> Counter[Key]:
    names = ("prologue", "microbatch", "update")
    found = [c for n, m, f in sharded_functions(sharded) if n in names for c in planned_collectives(f, m)]
    return Counter((c.kind, "".join(c.axes), c.bytes) for c in found if c.bytes > 4)


def seconds(sharded: ir.Module) -> float:
    """The predicted seconds of a step."""
    return float(ir.FloatAttr(sharded.operation.attributes["alpa.cost"]).value)


def per_layer(layers: int, *bytes_of_each: int, axis: str) -> Counter[Key]:
    """One all-reduce over `axis` per layer for each of the sizes."""
    return Counter({("all_reduce", axis, b): layers * n for b, n in Counter(bytes_of_each).items()})


@pytest.mark.parametrize(
    ("mesh", "axis", "layers", "hidden", "batch"),
    [("4x1", "x", 6, 32, 256), ("1x4", "y", 6, 32, 256), ("1x8", "y", 6, 32, 256), ("2x2", "xy", 4, 32, 256),
     ("8", "x", 3, 48, 512)],
)  # fmt: skip
def test_small_layers_and_a_large_batch_are_data_parallel(
    mesh: str, axis: str, layers: int, hidden: int, batch: int
) -> None:
    """One gradient reduction per parameter and nothing else; over two equal axes as one ring."""
    found = collectives("mlp", mesh, layers=layers, hidden=hidden, batch=batch)
    assert found == per_layer(layers, 4 * hidden * hidden, 4 * hidden, axis=axis)


def test_a_slow_and_a_fast_axis() -> None:
    """Batch on the slow axis, hidden on the fast one: 6 gradient reductions, 5 of activations. Left to itself the
    planner finds better: the batch on both, gradients scattered and parameters gathered over the fast axis."""
    sizes = {"hidden": 32, "batch": 256, "bias": False}
    by_hand = planned("mlp", "2x2", 1.0, 0.1, constrain="x=data; y=tensor", **sizes)
    half, activation = 4 * 32 * 32 // 2, 4 * 128 * 32
    assert count(by_hand) == {("all_reduce", "x", half): 6, ("all_reduce", "y", activation): 5}
    free = planned("mlp", "2x2", 1.0, 0.1, **sizes)
    assert count(free) == {
        ("reduce_scatter", "y", half): 6, ("all_reduce", "x", half): 6, ("all_gather", "y", 2 * half): 6
    }  # fmt: skip
    gain = 5 * (1 + 0.1 * activation) - 12 * (1 + 0.1 * half)
    assert gain > 0 and seconds(by_hand) - seconds(free) == pytest.approx(gain, abs=10)


ZERO = {
    "x=zero1": {("all_reduce", 4 * 32 * 32): 3, ("all_gather", 4 * 32 * 32): 3},
    "x=zero2": {("reduce_scatter", 32 * 32): 3, ("all_gather", 4 * 32 * 32): 3},
    "x=zero3": {("reduce_scatter", 32 * 32): 3, ("all_gather", 4 * 32 * 32): 5},
}


@pytest.mark.parametrize("constrain", ZERO)
def test_ways_to_split_state(constrain: str) -> None:
    """ZeRO-3 gathers each weight forwards and backwards, but the first layer's, for the input needs no gradient."""
    found = collectives("mlp", "4", constrain=constrain, layers=3, hidden=32, batch=256, bias=False)
    assert found == {(kind, "x", size): n for (kind, size), n in ZERO[constrain].items()}


@pytest.mark.parametrize(("mesh", "axis", "layers"), [("4x1", "x", 6), ("1x4", "y", 6), ("1x8", "y", 4)])
def test_large_layers_and_a_small_batch_alternate_columns_and_rows(mesh: str, axis: str, layers: int) -> None:
    """Activations are reduced after each second product, forwards and backwards, but for the input's gradient."""
    found = collectives("mlp", mesh, layers=layers, hidden=256, batch=32)
    assert found == {("all_reduce", axis, 4 * 32 * 256): layers - 1}


@pytest.mark.parametrize(("mesh", "axis", "heads"), [("1x4", "y", 4), ("1x8", "y", 8)])
def test_large_bert_layers_are_split_as_in_megatron(mesh: str, axis: str, heads: int) -> None:
    """Four reductions of B·S·H a layer, two forwards, two backwards, but for the input's gradient."""
    sizes = {"layers": 2, "hidden": 128, "heads": heads, "batch": 8, "sequence": 8, "embeddings": False}
    assert collectives("bert", mesh, **sizes) == {("all_reduce", axis, 4 * 8 * 8 * 128): 7}


@pytest.mark.parametrize(("mesh", "axis"), [("4x1", "x"), ("2x2", "xy")])
def test_small_bert_layers_are_data_parallel(mesh: str, axis: str) -> None:
    sizes = {"layers": 2, "hidden": 32, "heads": 4, "batch": 64, "sequence": 64, "embeddings": False}
    attention, norms, mlp = (4 * 3 * 32 * 32, 4 * 32 * 32, 4 * 32), (4 * 32,) * 4, (4 * 32 * 128, 4 * 128) * 2
    assert collectives("bert", mesh, **sizes) == per_layer(2, *attention, *norms, *mlp[:3], 4 * 32, axis=axis)


@pytest.mark.parametrize(("mesh", "axis", "n"), [("1x4", "y", 4), ("1x8", "y", 8)])
def test_experts_are_spread_and_never_reduced(mesh: str, axis: str, n: int) -> None:
    """Tokens travel to their experts and back, forwards and backwards; only what is no expert is reduced."""
    sizes = {"layers": 1, "experts": 16, "batch": 64, "sequence": 16, "hidden": 64, "moe_every": 1, "embeddings": False}
    found = collectives("moe", mesh, **sizes)
    tokens = 4 * 16 * 16 * 8 * 64 // n
    norms_and_bias, gate, attention = (4 * 64,) * 5, 4 * 64 * 16, (4 * 64 * 64, 4 * 3 * 64 * 64)
    assert found.pop(("all_to_all", axis, tokens)) == 4
    assert found == per_layer(1, *norms_and_bias, gate, *attention, axis=axis)


DOT = "stablehlo.dot_general {}, {}, contracting_dims = [1] x [0] : (tensor<3x64xf32>, tensor<64x64xf32>) -> {}"
BRANCHES = f"""
func.func public @main(%x: tensor<3x64xf32>, %w: tensor<64x64xf32>, %v: tensor<64x64xf32>, %u: tensor<64x64xf32>,
                       %t: tensor<64x64xf32>) -> tensor<64x3xf32> {{
  %0 = {DOT.format("%x", "%w", "tensor<3x64xf32>")}
  %1 = stablehlo.tanh %0 : tensor<3x64xf32>
  %2 = {DOT.format("%1", "%v", "tensor<3x64xf32>")}
  %3 = {DOT.format("%x", "%u", "tensor<3x64xf32>")}
  %4 = stablehlo.tanh %3 : tensor<3x64xf32>
  %5 = {DOT.format("%4", "%t", "tensor<3x64xf32>")}
  %6 = stablehlo.negate %5 : tensor<3x64xf32>
  %7 = stablehlo.add %2, %6 : tensor<3x64xf32>
  %8 = stablehlo.transpose %7, dims = [1, 0] : (tensor<3x64xf32>) -> tensor<64x3xf32>
  return %8 : tensor<64x3xf32>
}}
"""


def test_partial_sums_are_added_before_they_are_reduced() -> None:
    """Two branches of two products each, added up: one all-reduce after the addition, and the result is right."""
    module = parse_module(BRANCHES, make_context())
    sharded = clone_module(module)
    run_pipeline(
        sharded, "builtin.module(alpa-shard{mesh=4 cluster=unit constrain={out0=[{},{}]}},alpa-check-shardings)", []
    )
    (_, mesh, main), *_ = sharded_functions(sharded)
    found = planned_collectives(main, mesh)
    assert [(c.kind, c.axes, c.bytes) for c in found] == [("all_reduce", ("x",), 4 * 3 * 64)]
    run_pipeline(sharded, "alpa-localize", [])
    inputs = random_inputs(module, np.random.default_rng(0))
    assert_close(run_all([sharded], [inputs], mesh)[0], run_all([module], [inputs])[0])


def test_gradients_of_three_projections_are_added_before_they_are_reduced() -> None:
    """LLaMA has three projections of one value and two of another: as many reductions as layers with one of each."""
    sizes = {"layers": 2, "hidden": 256, "inner": 512, "heads": 4, "kv_heads": 4, "batch": 2, "sequence": 8}
    found = collectives("llama", "1x4", vocabulary=64, **sizes)
    activation = 4 * 2 * 8 * 256
    assert found["all_reduce", "y", activation] + found["reduce_scatter", "y", activation // 4] == 8
