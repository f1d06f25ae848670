"""Loops keep for one another no more than they must, and what is computed again is the same."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import assert_close, run_all
from test_grouped_layers import BATCH, GROUPS, LAYERS, STEPS, UNROLL, WIDTH, Weights, inputs_of, module_of, step_of

from alpa_mlir.dialect import alpa, rounds
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.factors import shape_of
from alpa_mlir.passes import normalize
from alpa_mlir.passes.pipeline import run_pipeline


def normal(step: Any) -> Any:
    module = module_of(step)
    run_pipeline(module, f"alpa-normalize{{unroll-layers={UNROLL}}}", [])
    return module


def kept(module: Any) -> list[tuple[int, ...]]:
    """The shapes of stacks that one loop makes and another reads, in one group."""
    found = []
    for op in alpa.walk(functions(module)["main"]):
        if op.name == rounds.STACK and any(use.owner.name == rounds.SLICE for use in op.results[0].uses):
            found.append(tuple(shape_of(op.results[0]) or ()))
    assert len(found) % GROUPS == 0
    return sorted(found)[::GROUPS]


def normalised(w: Weights, x: Any) -> Any:
    """A layer norm before each product: the mean, the deviation and all between them are kept by jax."""

    def body(h: Any, own: Weights) -> tuple[Any, None]:
        mean = h.mean(-1, keepdims=True)
        centred = h - mean
        spread = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-3)
        return h + jnp.tanh(centred * spread * own["scale"] @ own["in"]) @ own["out"], None

    return jax.lax.scan(body, x @ w["first"], w["layers"])[0]


def test_what_is_cheap_is_computed_again() -> None:
    """Kept are what comes into a round, its two sums, and a product; neither what is made of them, nor weights."""
    length = LAYERS // GROUPS
    found = kept(normal(step_of(normalised)))
    assert sum(map(prod, found)) <= length * BATCH * (2 * WIDTH + 2)
    assert all(shape[:2] == (length, BATCH) for shape in found)


def test_fewer_bytes_are_kept_than_the_program_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    little = {name: sum(map(prod, kept(normal(step)))) for name, step in STEPS.items() if name != "counting"}
    monkeypatch.setattr(normalize, "keep_little", lambda block: None)
    much = {name: sum(map(prod, kept(normal(STEPS[name])))) for name in little}
    assert all(little[name] <= much[name] for name in little)
    assert little["scanned"] < much["scanned"]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_computed_again_is_the_same(reverse: bool) -> None:
    """Also where the backward loop goes through weights the other way than the forward one, and reads what lies
    outside of both."""

    def forward(w: Weights, x: Any) -> Any:
        shift = jnp.sin(x)

        def body(h: Any, own: Weights) -> tuple[Any, Any]:
            h = jnp.tanh(h * own["scale"] + shift) @ own["in"]
            return h, jnp.exp(-h * h)

        last, every = jax.lax.scan(body, x @ w["first"], w["layers"], reverse=reverse)
        return last + 0.1 * every.sum(0)

    step = step_of(forward)
    module, inputs = normal(step), inputs_of(step)
    run_pipeline(module, "alpa-roll", [])
    found, expected = run_all([module, module_of(step)], [inputs, inputs])
    assert_close(found, expected, "computed again")
    assert not np.array_equal(expected[0], inputs[0])
