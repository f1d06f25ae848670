"""The Python API: planned functions compute what jax.jit does, random numbers included; plans go to files and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alpa_mlir
from alpa_mlir import CompileError

WIDTH, BATCH = 16, 8
ROLES = ("state", "state", "batch", "batch")


def loss(params, x, y, key):
    for layer, weight in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(key, layer), 0.8, x.shape)
        noise = jax.random.normal(jax.random.fold_in(key, 9 + layer), weight.shape)
        x = jnp.where(keep, jnp.tanh(x @ (weight + 0.01 * noise)) / 0.8, 0.0)
    return jnp.mean((x - y) ** 2)


def dropout_step(params, key, x, y):
    """A training step with its own key as state: a mask per example, noise per weight."""
    now, after = jax.random.split(key)
    value, gradients = jax.value_and_grad(loss)(params, x, y, now)
    return [p - 0.1 * g for p, g in zip(params, gradients, strict=True)], after, value


def start(implementation: str = "threefry2x32"):
    rng = np.random.default_rng(0)
    params = [np.asarray(rng.standard_normal((WIDTH, WIDTH)) / 4, np.float32) for _ in range(2)]
    x, y = (np.asarray(rng.standard_normal((BATCH, WIDTH)), np.float32) for _ in range(2))
    return params, jax.random.key(1, impl=implementation), x, y


ENDLESS = pytest.mark.skipif(
    not jax.__version__.startswith("0.10."), reason="on these programs XLA's CPU compiler in jaxlib 0.11.2 does not end"
)
PLANS = [
    pytest.param("threefry2x32", {"devices_per_node": 4, "mesh": "2x2"}, marks=ENDLESS),
    pytest.param("threefry2x32", {"devices_per_node": 4, "stages": 2, "microbatches": 2}, marks=ENDLESS),
    ("rbg", {"devices_per_node": 4, "stages": 2, "microbatches": 2}),
]


@pytest.mark.parametrize(("implementation", "options"), PLANS)
def test_random_numbers_are_those_of_one_device(implementation: str, options: dict[str, object]) -> None:
    """The key is state: it goes through three steps, and masks and noise with it."""
    parallel = alpa_mlir.parallelize(dropout_step, roles=ROLES, **options)
    single = jax.jit(dropout_step)
    params, key, x, y = start(implementation)
    found = expected = (params, key)
    for _ in range(3):
        *found, value = parallel(*found, x, y)
        *expected, other = single(*expected, x, y)
        assert float(value) == pytest.approx(float(other), rel=1e-5)
    assert jax.random.key_impl(found[1]) == jax.random.key_impl(key)
    assert (jax.random.key_data(found[1]) == jax.random.key_data(expected[1])).all()
    for a, b in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_state_stays_on_its_devices_and_is_taken_over() -> None:
    @alpa_mlir.parallelize(roles=("state", "batch"), devices_per_node=2, mesh="2")
    def step(weights, x):
        """Adds the batch's sum."""
        return weights + x.sum(0), (weights * x).sum()

    assert step.__doc__ == "Adds the batch's sum." and step.__name__ == "step"
    start, x = np.ones(4, np.float32), np.ones((8, 4), np.float32)
    first, _ = step(start, x)
    assert isinstance(first, jax.Array) and len(first.sharding.device_set) == 2
    second, value = step(first, x)
    assert float(value) == 9 * 32 and (second == 17).all()
    assert first.is_deleted() or (first == 9).all()
    again, _ = step(start, x)  # not the state of the last step: given anew
    assert (again == 9).all() and (start == 1).all()
    wider, _ = step(np.ones(6, np.float32), np.ones((4, 6), np.float32))  # other shapes: another plan
    assert (wider == 5).all()
    assert step.plan_for(start, x).summary.stages[0].mesh == (2,)


def test_donated_arguments_are_state() -> None:
    def step(weights, x):
        return weights * 2, (weights * x).sum()

    parallel = alpa_mlir.parallelize(jax.jit(step, donate_argnums=0), devices_per_node=1, mesh="1")
    weights, value = parallel(jnp.ones(4), jnp.ones((2, 4)))
    assert float(value) == 8 and (weights == 2).all()


def test_a_step_of_one_product_is_planned_and_takes_what_jit_takes() -> None:
    """One layer: nothing passes between layers. Arrays of numpy in 64 bits count in 32, as with jax.jit."""

    def step(table, tokens, y):
        loss = lambda table: ((jax.nn.one_hot(tokens, 8) @ table - y) ** 2).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(table)
        return table - 0.1 * gradient, value

    arguments = (np.ones((8, 4)), np.arange(16) % 8, np.linspace(0.0, 1.0, 64).reshape(16, 4))
    parallel = alpa_mlir.parallelize(step, roles=("state", "batch", "batch"))
    for found, expected in zip(parallel(*arguments), jax.jit(step)(*arguments), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_plans_go_to_a_file_and_back(tmp_path: Path) -> None:
    arguments = start()
    planned = alpa_mlir.plan(dropout_step, arguments=arguments, roles=ROLES, devices_per_node=2, stages=2)
    assert planned.summary.step_seconds is not None and "2 stages" in str(planned)
    path = tmp_path / "plan.mlir"
    planned.save(path)
    assert alpa_mlir.load(path).text == planned.text
    params, key, x, y = arguments
    found = alpa_mlir.run(path, [*params, jax.random.key_data(key), x, y])
    expected = jax.tree.leaves(jax.jit(dropout_step)(*arguments))
    np.testing.assert_allclose(found[-1], expected[-1], rtol=1e-5)
    path.write_text(planned.text.replace("stablehlo.tanh", "stablehlo.logistic"))
    with pytest.raises(CompileError, match="the plan was changed after it was made"):
        alpa_mlir.load(path)


def test_compiled_programs_are_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alpa_mlir.runtime import executable

    compiled: list[str] = []
    real = executable._compile
    monkeypatch.setattr(executable, "_compile", lambda lower, name: (compiled.append(name), real(lower, name))[1])
    monkeypatch.setenv("ALPA_MLIR_CACHE_DIR", str(tmp_path))
    losses = []
    for cache, compiles in ((False, True), (True, True), (True, False)):
        compiled.clear()
        step = alpa_mlir.parallelize(dropout_step, roles=ROLES, devices_per_node=2, stages=2, cache=cache)
        losses.append(float(step(*start())[-1]))
        assert bool(compiled) == compiles
        assert (tmp_path / "programs").exists() == cache
    assert losses[0] == losses[1] == losses[2]


def test_a_platform_that_is_not_here_is_refused() -> None:
    arguments = start()
    planned = alpa_mlir.plan(dropout_step, arguments=arguments, roles=ROLES, devices_per_node=2, stages=2)
    params, key, x, y = arguments
    flat = [*params, jax.random.key_data(key), x, y]
    here, told = (alpa_mlir.run(planned, flat, platform=platform)[-1] for platform in ("cpu", "auto"))
    assert here == told
    if jax.default_backend() == "cpu":
        with pytest.raises(CompileError, match="jax has no platform cuda in this process"):
            alpa_mlir.run(planned, flat, platform="cuda")
        with pytest.raises(CompileError, match="jax has no platform cuda in this process"):
            alpa_mlir.parallelize(dropout_step, roles=ROLES, platform="cuda")(*arguments)


def test_programs_come_as_files_modules_and_functions(tmp_path: Path) -> None:
    model = Path(__file__).parent / "runtime" / "mlp_step.mlir"
    options = {"devices_per_node": 2, "stages": 2, "microbatches": 2, "batch_args": "0-1"}
    from_file = alpa_mlir.plan(model, **options)
    cluster = tmp_path / "mine.toml"
    from alpa_mlir.passes.costs.presets import preset_text

    cluster.write_text(preset_text("cpu"))
    from_cluster = alpa_mlir.plan(str(model), str(cluster), **options)
    assert from_file.summary.stages == from_cluster.summary.stages


def test_decisions_are_explained_at_their_lines_of_python() -> None:
    def two_layers(w, x):
        return jnp.tanh(x @ w) @ w

    shapes = (jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32))
    found = alpa_mlir.plan(
        two_layers, arguments=shapes, roles=("constant", "batch"), mesh="4", explain="stablehlo.dot_general"
    ).remarks
    said = [r for r in found if r.message.startswith("stablehlo.dot_general [i,k],[k,j]->[i,j]")]
    line = two_layers.__code__.co_firstlineno + 1
    assert [r.location.split(":")[:2] for r in said] == [[__file__, str(line)]] * 2


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a jax function is planned for arguments"):
        alpa_mlir.plan(dropout_step)
    with pytest.raises(CompileError, match=r"none.toml:1:1: error: neither a preset \(.*cpu.*\) nor a readable file"):
        alpa_mlir.plan(dropout_step, "none.toml", arguments=start(), roles=ROLES)
    with pytest.raises(CompileError, match="cannot read the plan: No such file or directory"):
        alpa_mlir.load(tmp_path / "none.mlir")
    with pytest.raises(CompileError, match="the plan is for 16 devices, this process has 8"):
        alpa_mlir.parallelize(dropout_step, roles=ROLES, devices_per_node=16, mesh="16")(*start())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alpa_mlir.nothing


def test_the_package_alone_loads_nothing_heavy() -> None:
    code = "import sys, alpa_mlir; print(sorted({'jax', 'jaxlib', 'cvxpy', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
