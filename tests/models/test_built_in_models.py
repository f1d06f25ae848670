"""The built-in models: they train, their shapes are their values' shapes, and their named sizes are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS, TrainStep, bert, gpt, llama, mlp, moe, optimizer, text, wide_resnet
from alpa_mlir.models.step import Shapes, Training, Values
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.layers import Layers
from alpa_mlir.passes.microbatch import Microbatch
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.pipeline import run_pipeline

FEWER = {"gpt": {"layers": 1}, "llama": {"layers": 1}, "bert": {"layers": 1}, "wide_resnet": {"image": 8, "batch": 4}}
TINY = {name: dataclasses.replace(model.presets["tiny"], **FEWER.get(name, {})) for name, model in MODELS.items()}
QUICK = {"xla_backend_optimization_level": 0}  # compile in half the time; these programs are tiny
VARIANTS = [
    ("mlp", {"bias": False, "activation": "tanh", "optimizer": "sgd"}),
    ("gpt", {"dtype": "float16", "loss_scale": 1024.0}),
    ("gpt", {"dtype": "bfloat16", "master": False}),
    ("gpt", {"dtype": "float16", "master": False, "moments": "bfloat16", "sums": "float16"}),
    ("gpt", {"shift": True, "remat": True}),
    ("gpt", {"scan": True, "remat": True, "layers": 2}),
    ("moe", {"embeddings": False, "layers": 1, "moe_every": 1}),
    ("wide_resnet", {"norm": "group"}),
    ("bert", {"embeddings": False}),
    ("llama", {"dtype": "bfloat16", "scan": True, "layers": 2}),
]


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (tuple(leaf.shape), np.dtype(leaf.dtype)), tree)


def train(step: TrainStep, arguments, steps: int) -> list[float]:
    """Losses of `steps` steps on one batch."""
    state = len(step.updates)
    function = jax.jit(step.function, compiler_options=QUICK)
    losses = []
    for _ in range(steps):
        result = function(*arguments)
        losses.append(float(result[-1]))
        arguments = (*result[:state], *arguments[state:])
    return losses


@pytest.mark.parametrize(("name", "changes"), [(name, {}) for name in MODELS] + VARIANTS)
def test_trains_on_arguments_of_the_declared_shapes(name, changes):
    model = MODELS[name]
    config = dataclasses.replace(TINY[name], **changes)
    step, arguments = model.build(config), model.initial_values(config, 0)
    assert shapes_of(arguments) == shapes_of(step.arguments)
    results = jax.eval_shape(step.function, *step.arguments)
    for argument, result in step.updates:
        assert shapes_of(results[result]) == shapes_of(step.arguments[argument])
    losses = train(step, arguments, 4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("sums", ["float32", "float16"])
def test_gradients_are_added_up_in_the_wished_type(sums):
    """And the update of a parameter stays in its layer."""
    config = dataclasses.replace(TINY["gpt"], layers=4, dtype="float16", sums=sums)
    module = parse_module(print_module(lower(gpt.build(config))), make_context())
    run_pipeline(module, [Normalize(), Microbatch(count=2), Layers(count=2)], [])
    layers = [op.layer for op in read_program(module, 2).ops if op.function == "update"]
    assert min(layers.count(0), layers.count(1)) > 0.3 * len(layers)
    found = {
        s.type.dtype for name, s in read_program(module, 2).slots.items() if name.startswith("sum:") and s.type.shape
    }
    assert found == {{"float32": "f32", "float16": "f16"}[sums]}


def test_large_images_shrink_in_the_stem():
    config = dataclasses.replace(TINY["wide_resnet"], image=64)
    step = wide_resnet.build(config)
    assert "select_and_scatter" in jax.jit(step.function).lower(*step.arguments).as_text()


@pytest.mark.parametrize("name", list(MODELS))
def test_inference_has_constant_parameters_and_no_state(name):
    step = MODELS[name].build_inference(TINY[name])
    assert step.updates == () and step.roles[-1] == "batch" and set(step.roles[:-1]) == {"constant"}
    (output,) = jax.tree.leaves(jax.eval_shape(step.function, *step.arguments))
    assert output.shape[0] == TINY[name].batch


BILLIONS = [
    (name, size, float(size[:-1]) * {"M": 1e-3, "B": 1.0}[size[-1]])
    for name, model in MODELS.items()
    for size in model.presets
    if size != "tiny"
]


@pytest.mark.parametrize(("name", "size", "billions"), BILLIONS)
def test_named_size_has_its_parameters_within_five_percent(name, size, billions):
    config = MODELS[name].presets[size]
    parameters = {
        "gpt": gpt, "moe": moe, "wide_resnet": wide_resnet, "llama": llama, "bert": bert
    }[name].parameters(config, Shapes())  # fmt: skip
    if name == "wide_resnet":
        parameters = parameters[0]
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(parameters))
    assert abs(count / 1e9 / billions - 1) < 0.05


def test_gpt_learns_the_built_in_text():
    config = dataclasses.replace(TINY["gpt"], hidden=64, learning_rate=3e-3)
    step = jax.jit(gpt.build(config).function)
    params, state, *_ = gpt.initial_values(config, 0)
    losses = []
    for batch in gpt.batches(config, 20):
        params, state, loss = step(params, state, *batch)
        losses.append(float(loss))
    assert abs(losses[0] - np.log(config.vocabulary)) < 0.2  # untrained: as good as guessing
    assert losses[-1] < 0.85 * losses[0]


def test_text_targets_are_the_next_tokens():
    config = TINY["gpt"]
    tokens, targets = next(gpt.batches(config, 1))
    assert tokens.shape == targets.shape == (config.batch, config.sequence)
    assert (tokens[:, 1:] == targets[:, :-1]).all()
    assert text.decode(text.encode("A ship")) == "A ship"
    line = text.decode(tokens[0])
    assert line in text.TEXT + text.TEXT
    (shifted,) = next(gpt.batches(dataclasses.replace(config, shift=True), 1))
    assert (shifted[:, :-1] == tokens).all() and (shifted[:, 1:] == targets).all()


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_causal_models_do_not_look_ahead(name):
    model, config = MODELS[name], TINY[name]
    arguments = model.initial_values(config, 1)
    forward = jax.jit(model.build_inference(config).function)
    tokens = arguments[2]
    changed = tokens.copy()
    changed[:, -4:] = (changed[:, -4:] + 1) % config.vocabulary
    before, after = forward(arguments[0], tokens), forward(arguments[0], changed)
    np.testing.assert_allclose(before[:, :-4], after[:, :-4], atol=1e-6)
    assert np.abs(before[:, -4:] - after[:, -4:]).max() > 1e-3


def gradients(module, config):
    """A function of a step's arguments: the loss, and the momenta after it, which are the gradients."""
    step = jax.jit(module.build(config).function, compiler_options=QUICK)

    def run(*arguments):
        result = step(*arguments)
        return jax.device_get((result.loss, result.optimizer.first))

    return run


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        (mlp, {}),
        (gpt, {}),
        (moe, {}),
        (wide_resnet, {"norm": "group"}),
        (llama, {}),
    ],
)
def test_a_step_is_the_mean_of_its_halves(module, changes):
    config = dataclasses.replace(TINY[module.MODEL.name], optimizer="sgd", **changes)
    half = dataclasses.replace(config, batch=config.batch // 2)
    arguments = module.initial_values(config, 0)
    state = len(module.build(config).updates)
    whole, of_half = gradients(module, config)(*arguments), gradients(module, half)
    parts = [
        of_half(*arguments[:state], *(b[rows] for b in arguments[state:]))
        for rows in (slice(None, half.batch), slice(half.batch, None))
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    for want, got in zip(jax.tree.leaves(whole), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("capacity", [1, 3, 8])
def test_routing_equals_a_loop_over_tokens(capacity):
    groups, tokens, experts = 2, 8, 4
    gates = np.random.default_rng(0).dirichlet(np.ones(experts), (groups, tokens)).astype(np.float32)
    want = np.zeros((groups, tokens, experts, capacity), np.float32)
    for g in range(groups):
        taken = np.zeros(experts, int)
        order = np.argsort(-gates[g], axis=-1)
        for choice in (0, 1):
            for s in range(tokens):
                e = order[s, choice]
                if taken[e] < capacity:
                    want[g, s, e, taken[e]] = gates[g, s, e] / gates[g, s, order[s, :2]].sum()
                taken[e] += 1
    weights, balance = jax.jit(moe.route, static_argnums=1)(gates, capacity)
    np.testing.assert_allclose(weights, want, rtol=1e-6)
    even = np.full((1, experts, experts), 0.1, np.float32)
    even[0, range(experts), range(experts)] = 0.7
    np.testing.assert_allclose(moe.route(jnp.asarray(even), 4)[1], [1.0], rtol=1e-6)
    assert balance.shape == (groups,)


def test_rotation_depends_on_distances_alone():
    x = np.random.default_rng(0).standard_normal((2, 1, 1, 8), np.float32)
    turned = [llama.rotate(jnp.broadcast_to(v, (1, 6, 1, 8)), 100.0)[0, :, 0] for v in x]
    products = np.asarray(turned[0] @ turned[1].T)
    np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"), [("adam", optax.adam(1e-2, eps=1e-5)), ("sgd", optax.sgd(1e-2, momentum=0.9))]
)
def test_optimizer_equals_optax(name, reference):
    config = Training(optimizer=name, learning_rate=1e-2)
    params = {"w": Values(0).normal((4, 4), "float32", 1.0)}
    state, theirs, expected = optimizer.initial_state(config, params, Values(0)), reference.init(params), params
    for seed in range(3):
        gradient = {"w": Values(seed).normal((4, 4), "float32", 1.0)}
        params, state = optimizer.apply_gradients(config, params, state, gradient)
        updates, theirs = reference.update(gradient, theirs)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


def test_running_statistics_follow_the_batch():
    config = TINY["wide_resnet"]
    params, _, statistics, images, _ = wide_resnet.initial_values(config, 0)
    forward = jax.jit(wide_resnet.forward, static_argnums=0, static_argnames="training")
    _, after = forward(config, params, statistics, images, training=True)
    stem = np.asarray(wide_resnet.convolve(images, params["stem"]["kernel"], 1))
    np.testing.assert_allclose(after["stem"]["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(after["stem"]["variance"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "fault", "changes"),
    [
        (gpt.GptConfig, "multiple of heads", {"hidden": 30}),
        (gpt.GptConfig, "layers must be at least 1", {"layers": 0}),
        (gpt.GptConfig, "dtype must be one of", {"dtype": "int8"}),
        (moe.MoeConfig, "group", {"group": 96, "batch": 6}),
        (wide_resnet.WideResnetConfig, "depth must be one of", {"depth": 18}),
        (llama.LlamaConfig, "multiple of kv_heads", {"kv_heads": 3}),
    ],
)
def test_impossible_sizes_are_refused(config, fault, changes):
    with pytest.raises(ValueError, match=fault):
        config(**changes)
