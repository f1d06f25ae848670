"""Runs of plans that keep arrays in parts: whoever gives or gets values deals in the program's own arrays."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ranks

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.plan import read_plan
from alpa_mlir.lowering import lower
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime import checkpoint

LAYERS, WIDTH, BATCH, STEPS = 4, 8, 4, 4


def step(weights, count, x):
    """Layers one after the other, from one array, and a counter."""

    def loss(weights):
        return (jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), x, weights)[0] ** 2).mean()

    value, gradient = jax.value_and_grad(loss)(weights)
    return weights - 0.1 / (1 + count) * gradient, count + 1, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, its plans for two stages, in parts, and for one, whole, and inputs."""
    folder = tmp_path_factory.mktemp("stacks")
    kinds = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((LAYERS, WIDTH, WIDTH), (), (BATCH, WIDTH))]
    updates = ((0, 0), (1, 1))
    text = print_module(lower(TrainStep("scanned", step, tuple(kinds), ("state", "state", "batch"), updates)))
    (folder / "step.mlir").write_text(text)
    for name, stages, mesh in (("parts", 2, ""), ("whole", 0, "2")):
        cluster = load_cluster("cpu").with_sizes(1, max(stages, 2))
        options = PlanOptions(cluster, mesh, 2, stages, unstack=name == "parts")
        (folder / f"{name}.mlir").write_text(print_module(plan(parse_module(text, make_context()), options)))
    rng = np.random.default_rng(0)
    given = {f"arg{n}": np.float32(rng.standard_normal(kind.shape)) for n, kind in enumerate(kinds)}
    np.savez(folder / "in.npz", **{**given, "arg1": np.float32(0)})
    return folder


def run(folder: Path, plan_name: str, *options: object) -> str:
    found = ranks.run([*options, folder / f"{plan_name}.mlir", "--reference", folder / "step.mlir"])
    assert found.code == 0, found.err
    assert found.out.splitlines()[-1].endswith("equal")
    return found.out


def test_inputs_and_outputs_are_the_programs(folder: Path, tmp_path: Path) -> None:
    said = run(folder, "parts", "-n2", "--inputs", folder / "in.npz", "--outputs", tmp_path / "out.npz")
    assert said.startswith("step 0: out2 (")
    found, given = np.load(tmp_path / "out.npz"), np.load(folder / "in.npz")
    assert found.files == ["out0", "out1", "out2"]
    expected = jax.jit(step)(given["arg0"], given["arg1"], given["arg2"])
    np.testing.assert_allclose(found["out0"], expected[0], rtol=1e-5, atol=1e-6)
    assert found["out1"].shape == () and found["out1"] == 1
    run(folder, "parts", "--local")  # drawn, the same as for the reference


@pytest.mark.parametrize(("first", "then"), [("parts", "whole"), ("whole", "parts")])
def test_a_checkpoint_is_the_programs_state(first: str, then: str, folder: Path, tmp_path: Path) -> None:
    """Written by a plan that keeps an array in parts, read by one that does not, and the other way round."""
    saved, ends = tmp_path / "saved", []
    run(folder, first, "--local", "--steps", STEPS // 2, "--checkpoint", saved)
    main = read_plan(parse_module((folder / f"{first}.mlir").read_text(), make_context())).main
    stored, at = checkpoint.find(str(saved), main)
    assert at.step == STEPS // 2
    assert checkpoint.read(stored, 0, ((0, LAYERS), (0, WIDTH), (0, WIDTH))).shape == (LAYERS, WIDTH, WIDTH)
    for name in (first, then):
        out = tmp_path / f"{name}.npz"
        run(folder, name, "--local", "--steps", STEPS // 2, "--restore", saved, "--outputs", out)
        ends.append(np.load(out)["out0"])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5, atol=1e-6)
