"""alpa-layers: phases and layers of real train steps, and the properties that hold for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.inter.dataflow import Dataflow, read_dataflow
from alpa_mlir.passes.layers import Layers
from alpa_mlir.passes.microbatch import Microbatch
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.pipeline import run_pipeline

WIDTH, BATCH, DEPTH = 16, 8, 6
FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Layered:
    """A level-3 module, and of each op of @microbatch its layer and phase."""

    module: ir.Module
    micro: Dataflow
    layers: list[int]
    phases: list[str]

    def contractions(self, phase: str) -> Counter[int]:
        """Contractions per layer."""
        return Counter(
            k for k, p, h in zip(self.layers, self.phases, self.micro.heavy, strict=True) if h and p == phase
        )


def microbatched(step: TrainStep, count: int = 2, allow: bool = False) -> ir.Module:
    """Level 2 of a step."""
    module = parse_module(print_module(lower(step)), make_context())
    run_pipeline(module, [Normalize()], [])
    Microbatch(count=count, allow_per_microbatch_statistics=allow).apply(module, [])
    return module


def layered(step: TrainStep, count: int, allow: bool = False, remarks: list[Remark] | None = None) -> Layered:
    """Level 3 of a step."""
    module = microbatched(step, allow=allow)
    run_pipeline(module, [Layers(count=count)], [] if remarks is None else remarks)
    micro = read_dataflow(functions(module)["microbatch"])
    layers = [alpa.get_int(op, alpa.LAYER) for op in micro.ops]
    phases = [alpa.get_string(op, alpa.PHASE) for op in micro.ops]
    assert None not in layers and None not in phases
    return Layered(module, micro, [k or 0 for k in layers], [p or "" for p in phases])


def check_data_flow(made: Layered) -> None:
    """Forward data never flows down or out of the backward pass, backward data never up."""
    for o, phase in enumerate(made.phases):
        for v in made.micro.operands[o]:
            p = made.micro.definition[v]
            if p < 0:
                continue
            if phase == FORWARD:
                assert made.phases[p] == FORWARD and made.layers[p] <= made.layers[o]
            elif made.phases[p] == BACKWARD:
                assert made.layers[p] >= made.layers[o]
            elif made.layers[p] < made.layers[o]:
                brought = {made.layers[u] for u in made.micro.uses[v] if made.phases[u] == FORWARD}
                assert made.layers[o] in brought, "a forward value is brought to a layer that it never visits"


def check_gradients(made: Layered) -> None:
    """A parameter's gradient ends in a layer whose forward pass uses the parameter."""
    update = read_dataflow(functions(made.module)["update"])
    where = {b: v for v, b in enumerate(made.micro.arguments)}
    produced = dict(zip(made.micro.yields, made.micro.returned, strict=True))
    for op in range(len(update.ops)):
        arguments = [update.arguments[v] for v in update.operands[op] if update.definition[v] < 0]
        sums = [b for b in arguments if b.kind == "sum"]
        states = [b for b in arguments if b.kind == "arg" and b in where]
        if len(sums) == len(states) == 1 and made.micro.definition[produced[sums[0]]] >= 0:
            users = {made.layers[u] for u in made.micro.uses[where[states[0]]] if made.phases[u] == FORWARD}
            assert made.layers[made.micro.definition[produced[sums[0]]]] in users


@pytest.mark.parametrize("name", ["gpt", "moe", "bert", "llama", "wide_resnet"])
def test_built_in_models(name: str) -> None:
    model = MODELS[name]
    made = layered(model.build(model.presets["tiny"]), 2, allow=name == "wide_resnet")
    check_data_flow(made)
    check_gradients(made)
    ahead, behind = made.contractions(FORWARD), made.contractions(BACKWARD)
    assert sorted(ahead) == [0, 1]
    for layer, count in ahead.items():
        assert 1.5 * count <= behind[layer] <= 2.5 * count


def chain(w: list[Any], x: Any) -> Any:
    for matrix in w:
        x = jnp.tanh(x @ matrix)
    return x


def loss(w: list[Any], x: Any, y: Any) -> Any:
    return jnp.mean((chain(w, x) - y) ** 2)


def step_of(result: Callable[..., tuple[Any, ...]], state: bool = True) -> TrainStep:
    """A step on a chain of products whose results `result(w, x, y)` gives, new weights first if `state`."""
    w = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * DEPTH
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    roles: tuple[Any, ...] = ("state" if state else "constant", "batch", "batch")
    return TrainStep("chain", result, (w, x, x), roles, ((0, 0),) if state else ())


def descend(w: list[Any], gradients: list[Any], rate: Any = 0.1) -> list[Any]:
    return [p - rate * g for p, g in zip(w, gradients, strict=True)]


def with_loss(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
    value, g = jax.value_and_grad(loss)(w, x, y)
    return descend(w, g), value


def with_accuracy(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
    value, g = jax.value_and_grad(loss)(w, x, y)
    right = jnp.argmax(chain(w, x), -1) == jnp.argmax(y, -1)
    return descend(w, g), value, jnp.mean(right.astype(jnp.float32))


def with_gradient_norm(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
    value, g = jax.value_and_grad(loss)(w, x, y)
    norm = jnp.sqrt(sum(jnp.sum(v * v) for v in g))
    return descend(w, g, jnp.minimum(0.1, 1.0 / norm)), value, norm


def with_only_the_norm(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
    g = jax.grad(loss)(w, x, y)
    return descend(w, g), jnp.sqrt(sum(jnp.sum(v * v) for v in g))


def only_state(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
    return (descend(w, jax.grad(loss)(w, x, y)),)


def early_metric(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
    """The size of an early activation is reported beside the loss."""
    value, g = jax.value_and_grad(loss)(w, x, y)
    return descend(w, g), jnp.mean(chain(w[:2], x) ** 2), value


@pytest.mark.parametrize("result", [with_loss, with_accuracy, with_gradient_norm, early_metric])
def test_forward_is_what_the_loss_needs(result: Callable[..., tuple[Any, ...]]) -> None:
    made = layered(step_of(result), 3)
    check_data_flow(made)
    check_gradients(made)
    assert made.contractions(FORWARD) == {0: 2, 1: 2, 2: 2}
    assert sum(made.contractions(BACKWARD).values()) == 2 * DEPTH - 1


@pytest.mark.parametrize("result", [only_state, with_only_the_norm])
def test_without_a_loss_most_of_the_backward_pass_is_still_found(result: Callable[..., tuple[Any, ...]]) -> None:
    made = layered(step_of(result), 3)
    check_data_flow(made)
    ahead, behind = made.contractions(FORWARD), made.contractions(BACKWARD)
    assert sum(ahead.values()) + sum(behind.values()) == 3 * DEPTH - 1
    assert DEPTH <= sum(ahead.values()) <= DEPTH + 1


def test_returned_gradients_are_backward() -> None:
    made = layered(step_of(lambda w, x, y: jax.value_and_grad(loss)(w, x, y), state=False), 3)
    assert sum(made.contractions(FORWARD).values()) == DEPTH
    assert sum(made.contractions(BACKWARD).values()) == 2 * DEPTH - 1


def test_inference_has_no_backward_pass() -> None:
    made = layered(step_of(lambda w, x, y: (chain(w[:3], x), chain(w, x) + y), state=False), 3)
    assert set(made.phases) == {FORWARD}
    check_data_flow(made)


def test_running_statistics_are_forward() -> None:
    """A mean of activations that only feeds a state which the microbatch never reads."""

    def step(w: list[Any], mean: Any, x: Any, y: Any) -> tuple[Any, ...]:
        value, g = jax.value_and_grad(loss)(w, x, y)
        return descend(w, g), 0.9 * mean + 0.1 * jnp.mean(chain(w[:2], x), 0), value

    w = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * DEPTH
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)
    mean = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    made = layered(TrainStep("s", step, (w, mean, x, x), ("state", "state", "batch", "batch"), ((0, 0), (1, 1))), 3)
    at = made.micro.definition[made.micro.returned[made.micro.yields.index(_sum_of_length(made.micro, 4 * WIDTH))]]
    assert made.phases[at] == FORWARD and made.layers[at] == 0
    check_data_flow(made)


def _sum_of_length(micro: Dataflow, nbytes: int) -> alpa.Binding:
    (found,) = [b for b, v in zip(micro.yields, micro.returned, strict=True) if micro.nbytes[v] == nbytes]
    return found


def test_gradient_norm_sends_scalars_between_layers() -> None:
    """Squares are summed where the gradient is, and the clipping factor is broadcast where it is used."""
    made = layered(step_of(with_gradient_norm), 3)
    update = read_dataflow(functions(made.module)["update"])
    for o, op in enumerate(update.ops):
        for v in update.operands[o]:
            p = update.definition[v]
            if p >= 0 and alpa.get_int(update.ops[p], alpa.LAYER) != alpa.get_int(op, alpa.LAYER):
                assert update.nbytes[v] <= 4


def test_step_count_does_not_make_updates_wait() -> None:
    """Adam's bias corrections are computed again in each layer from the step count."""
    model = MODELS["mlp"]
    made = layered(model.build(model.presets["tiny"]), 2)
    update = read_dataflow(functions(made.module)["update"])
    for o, op in enumerate(update.ops):
        for p in update.producers(o):
            assert alpa.get_int(update.ops[p], alpa.LAYER) == alpa.get_int(op, alpa.LAYER)


def test_same_bytes_twice_and_executable_main_untouched() -> None:
    module = microbatched(step_of(with_gradient_norm))
    texts = []
    for _ in range(2):
        copy = clone_module(module)
        Layers(count=3).apply(copy, [])
        texts.append(print_module(copy))
        assert str(functions(copy)["main"]) == str(functions(module)["main"])
    assert texts[0] == texts[1]


def test_unbalanced_cuts_are_remarked() -> None:
    def step(w: list[Any], x: Any, y: Any) -> tuple[Any, ...]:
        return (jnp.tanh(jnp.tanh(x @ w[0]) @ jnp.concatenate(w * 20, 1)) @ jnp.ones((20 * DEPTH * WIDTH, 1)),)

    remarks: list[Remark] = []
    layered(step_of(step, state=False), 3, remarks=remarks)
    assert any("no cut into 3 layers is balanced within 50 %" in r.message for r in remarks)


def test_too_many_layers_are_refused_and_automatic_ones_fit() -> None:
    with pytest.raises(CompileError, match="7 layers were asked for, but the forward pass has only 6 contractions"):
        layered(step_of(with_loss), 7)
    assert max(layered(step_of(with_loss), 0).layers) == DEPTH - 1


def test_automatic_layers_are_equal_where_a_few_more_make_them_so() -> None:
    """18 equal blocks: nine layers of two rather than eight of two or three."""
    model = MODELS["gpt"]
    made = layered(model.build(replace(model.presets["tiny"], layers=18)), 0)
    assert max(made.layers) == 8
    forward = made.contractions(FORWARD)
    assert len({forward[k] for k in range(1, 8)}) == 1
