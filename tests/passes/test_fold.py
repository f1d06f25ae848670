"""Folding: a deep model without most of its equal layers is the shallow model."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.inter.fold import fold
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.passes.unstack import Unstack


def normal(step: TrainStep) -> ir.Module:
    """Level 1 of a step."""
    module = parse_module(print_module(lower(step)), make_context())
    run_pipeline(module, [Normalize(), Unstack()], [])
    return module


def tiny(name: str, **fields: Any) -> ir.Module:
    model = MODELS[name]
    return normal(model.build(dataclasses.replace(model.presets["tiny"], **fields)))


def body(module: ir.Module) -> list[str]:
    """The ops of @main with arguments renamed in the order of their first use."""
    text = re.sub(r",? ?alpa.repeats = [0-9]+ : i64", "", print_module(module)).replace(" {}", "")
    found: dict[str, str] = {}
    lines = [line for line in text.splitlines() if "func.func" not in line and "return" not in line]
    return [re.sub(r"%arg[0-9]+", lambda m: found.setdefault(m[0], f"%a{len(found)}"), line) for line in lines]


def repeats(module: ir.Module) -> list[int]:
    ops = functions(module)["main"].regions[0].blocks[0].operations
    return [n for n in (alpa.get_int(op, alpa.REPEATS) for op in ops) if n is not None]


@pytest.mark.parametrize(
    ("name", "fields", "period"),
    [
        ("gpt", {}, 1),
        ("gpt", {"remat": True}, 1),
        ("gpt", {"scan": True}, 1),
        ("llama", {}, 1),
        ("moe", {}, 2),
        ("bert", {"optimizer": "sgd"}, 1),
    ],
)
def test_a_folded_model_is_the_model_with_fewer_layers(name: str, fields: dict[str, Any], period: int) -> None:
    folded = fold(tiny(name, layers=10 * period, **fields))
    assert folded.operation.verify()
    alpa.verify(folded)
    (copies,) = set(repeats(folded))
    assert copies >= 3
    shallow = tiny(name, layers=(10 - copies) * period, **fields)
    assert body(folded) == body(shallow)
    assert sorted(_roles(folded)) == sorted(_roles(shallow))


def _roles(module: ir.Module) -> list[str]:
    """Type and role of each argument, and the type of the result that replaces it."""
    main = functions(module)["main"]
    returned = list(main.regions[0].blocks[0].operations)[-1].operation.operands
    found = []
    for argument, entry in zip(main.regions[0].blocks[0].arguments, alpa.argument_attributes(main), strict=True):
        result = returned[int(ir.IntegerAttr(entry[alpa.UPDATES]).value)].type if alpa.UPDATES in entry else ""
        found.append(f"{argument.type} {entry[alpa.ROLE]} {result}")
    return found


def chain(joined: bool) -> TrainStep:
    """Ten equal layers without an update; `joined`: an op that reads all of their results."""

    def step(w: list[Any], x: Any) -> Any:
        every = []
        for matrix in w:
            x = jnp.tanh(jnp.sin(x @ matrix + 1) * jnp.cos(x) + jnp.exp(x)) - 0.5
            every.append(x)
        return jnp.concatenate(every) if joined else x

    w = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 10
    return TrainStep("chain", step, (w, jax.ShapeDtypeStruct((4, 8), jnp.float32)), ("constant", "batch"))


def encoder_decoder() -> TrainStep:
    """A scan over ten layers and one over six, trained with momentum."""

    def layer(x: Any, w: Any) -> tuple[Any, None]:
        return x + jnp.tanh(x @ w), None

    def loss(w: Any, x: Any) -> Any:
        return jnp.mean(jax.lax.scan(layer, jax.lax.scan(layer, x, w["encoder"])[0] * 2, w["decoder"])[0] ** 2)

    def step(w: Any, momentum: Any, x: Any) -> Any:
        momentum = jax.tree.map(lambda m, d: 0.9 * m + d, momentum, jax.grad(loss)(w, x))
        return jax.tree.map(lambda p, m: p - 0.1 * m, w, momentum), momentum

    w = {name: jax.ShapeDtypeStruct((n, 8, 8), jnp.float32) for name, n in (("encoder", 10), ("decoder", 6))}
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    return TrainStep("encoder_decoder", step, (w, w, x), ("state", "state", "batch"), ((0, 0), (1, 1)))


def test_a_scanned_stack_folds_beside_another() -> None:
    module = normal(encoder_decoder())
    folded = fold(module)
    arguments = [len(functions(m)["main"].regions[0].blocks[0].arguments) for m in (module, folded)]
    assert arguments == [33, 25]


def test_inference_folds() -> None:
    module = normal(chain(joined=False))
    folded = fold(module)
    arguments = [len(functions(m)["main"].regions[0].blocks[0].arguments) for m in (module, folded)]
    assert arguments[0] == 11 and arguments[1] < 11 and repeats(folded)


def test_what_reads_all_layers_prevents_folding() -> None:
    module = normal(chain(joined=True))
    assert fold(module) is module


def test_few_layers_stay() -> None:
    module = tiny("gpt", layers=4)
    assert fold(module) is module
