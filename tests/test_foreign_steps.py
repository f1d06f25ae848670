"""Steps that call LAPACK and sort by a comparator with constants of its own, through the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

BIN = Path(sys.executable).parent


def step(weight: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least squares by Cholesky, loss by the smaller half of the sorted errors."""

    def loss(weight: jax.Array) -> jax.Array:
        features = jnp.tanh(x @ weight)
        normal = jnp.einsum("bij,bik->bjk", features, features) + jnp.eye(features.shape[-1])
        root = jnp.linalg.cholesky(normal)
        right = jnp.einsum("bij,bi->bj", features, y)[..., None]
        half = jax.lax.linalg.triangular_solve(root, right, left_side=True, lower=True)
        found = jax.lax.linalg.triangular_solve(root, half, left_side=True, lower=True, transpose_a=True)
        errors = jnp.abs(jnp.einsum("bij,bjk->bi", features, found) - y)
        return jnp.mean(jnp.sort(errors, axis=-1)[:, :4])

    value, gradient = jax.value_and_grad(loss)(weight)
    return weight - 0.1 * gradient, value


def test_lapack_and_sort(tmp_path: Path) -> None:
    """In processes that never lowered an op of jax's own: LAPACK must be found there too."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 4), (8, 8, 6), (8, 8))]
    model, plan = tmp_path / "step.mlir", tmp_path / "plan.mlir"
    model.write_text(jax.jit(step, donate_argnums=0).lower(*shapes).as_text())
    assert "@lapack_" in model.read_text()
    cluster = ["--cluster", "cpu", "--devices-per-node", "4", "--mesh", "2x2"]
    subprocess.run([BIN / "alpa-mlir-plan", model, *cluster, "-o", plan], check=True, timeout=300, capture_output=True)
    run = [BIN / "alpa-mlir-run", "--local", plan, "--reference", model, "--steps", "2"]
    ran = subprocess.run(run, timeout=300, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.rstrip().endswith("equal") or ran.stdout.rstrip().endswith("equal")
