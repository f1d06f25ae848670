"""`alpa-shard`: the plans that must be found, and that a sharded module computes the same."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.models import MODELS
from alpa_mlir.passes.check import CheckShardings
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.layers import Layers
from alpa_mlir.passes.localize import Localize
from alpa_mlir.passes.microbatch import Microbatch
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.shard import Shard
from alpa_mlir.passes.stages import Stages
from tests.on_devices import assert_close, random_inputs, run_all


def train_step(name: str, **sizes: object) -> ir.Module:
    """A built-in model's train step at level 1."""
    model = MODELS[name]
    step = model.build(model.config(**sizes))
    text = jax.jit(step.function, keep_unused=True).lower(*step.arguments).as_text()
    leaves = [len(jax.tree.leaves(a)) for a in step.arguments]
    roles = [r for r, n in zip(step.roles, leaves, strict=True) for _ in range(n)]
    module = parse_module(text, make_context())
    named = {k: ",".join(str(i) for i, r in enumerate(roles) if r == k) for k in ("batch", "state")}
    Normalize(batch_args=named["batch"], state_args=named["state"]).apply(module, [])
    return module


CASES = [("mlp", {}, "2x2"), ("gpt", {"layers": 1, "hidden": 64, "vocabulary": 64, "sequence": 16}, "2x2")]


@pytest.mark.parametrize(("name", "sizes", "mesh"), CASES)
def test_a_sharded_step_computes_the_same(name: str, sizes: dict[str, object], mesh: str) -> None:
    module = train_step(name, **sizes)
    sharded = clone_module(module)
    Shard(mesh=mesh, cluster="cpu").apply(sharded, [])
    assert sharded.operation.verify()
    alpa.verify(sharded)
    CheckShardings().apply(sharded, [])
    Localize().apply(sharded, [])
    inputs = [np.abs(v) * 0.1 if v.dtype.kind == "f" else v for v in random_inputs(module, np.random.default_rng(0))]
    expected = run_all([module], [inputs])[0]
    found = run_all([sharded], [inputs], Mesh.from_shape("stage_0", tuple(int(n) for n in mesh.split("x"))))[0]
    assert_close(found, expected, name, tolerance=1e-4)


def test_same_bytes_twice_and_under_another_hash_seed(tmp_path: os.PathLike[str]) -> None:
    source = os.path.join(tmp_path, "m.mlir")
    with open(source, "w", encoding="utf-8") as f:
        f.write(print_module(train_step("mlp")))
    texts = []
    for seed in ("1", "2"):
        opt = os.path.join(os.path.dirname(sys.executable), "alpa-mlir-opt")
        command = [opt, source, "--alpa-shard=mesh=2x2 cluster=cpu"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        texts.append(subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240).stdout)
    assert texts[0] == texts[1] and b"sdy.sharding" in texts[0]


def test_less_memory_means_a_smaller_and_slower_plan() -> None:
    module = train_step("mlp", layers=2, hidden=64, batch=16)
    free, tight = clone_module(module), clone_module(module)
    Shard(mesh="4", cluster="cpu").apply(free, [])
    figures = [_figures(free)]
    Shard(mesh="4", cluster="cpu", memory=f"{int(figures[0][1] * 0.9)}").apply(tight, [])
    figures.append(_figures(tight))
    CheckShardings().apply(tight, [])
    assert figures[1][1] <= figures[0][1] * 0.9 and figures[1][0] >= figures[0][0]


def _figures(module: ir.Module) -> tuple[float, int]:
    stage = ir.DictAttr(ir.ArrayAttr(module.operation.attributes[alpa.STAGES])[0])
    return ir.FloatAttr(module.operation.attributes[alpa.COST]).value, ir.IntegerAttr(stage["memory_bytes"]).value


def test_a_mesh_must_have_the_clusters_devices() -> None:
    module = train_step("mlp", layers=2, hidden=32, batch=16)
    with pytest.raises(CompileError, match="a mesh is written as 2x4"):
        Shard(mesh="2x", cluster="cpu").apply(module, [])
    module.operation.attributes[alpa.CLUSTER] = load_cluster("cpu").attribute(module.context)
    with pytest.raises(CompileError, match="has 8 devices, but the cluster has 4"):
        Shard(mesh="2x4").apply(module, [])


def test_gradients_are_summed_over_microbatches_before_they_are_reduced() -> None:
    """A data-parallel step of several microbatches keeps addends: one reduction per parameter and step."""
    module = train_step("mlp", layers=3, hidden=64, batch=2048)
    Microbatch(count=4).apply(module, [])
    Shard(mesh="4", cluster="cpu").apply(module, [])
    CheckShardings().apply(module, [])
    text = print_module(module)
    kept = [line for line in text.splitlines() if "func.func private @microbatch" in line]
    assert len(kept) == 1 and kept[0].count('unreduced={"x"}') >= 6
    assert "sdy.reshard" not in text.split("@microbatch")[1].split("return")[0]


def test_submeshes_may_have_less_memory_each() -> None:
    """The shardings of one stage hold less, those of the other stay as they are."""
    module = train_step("mlp", layers=4, hidden=64, batch=16)
    cluster = load_cluster("cpu").with_sizes(1, 4)
    module.operation.attributes[alpa.CLUSTER] = cluster.attribute(module.context)
    Microbatch(count=1).apply(module, [])
    Layers(count=2).apply(module, [])
    Stages(stages=2).apply(module, [])
    free, tight = clone_module(module), clone_module(module)
    Shard().apply(free, [])
    held = [ir.IntegerAttr(entry["memory_bytes"]).value for entry in stage_entries(free)]
    Shard(memory=f"{held[0]},{int(0.9 * held[1])}").apply(tight, [])
    less = [ir.IntegerAttr(entry["memory_bytes"]).value for entry in stage_entries(tight)]
    assert less[0] == held[0] and less[1] <= 0.9 * held[1]
    with pytest.raises(CompileError, match="memory says 3 amounts, there are 2 submeshes"):
        Shard(memory="1GB,1GB,1GB").apply(module, [])
