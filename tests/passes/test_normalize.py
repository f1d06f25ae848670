"""`alpa-normalize`: the same numbers before and after on one device, and what the result looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.mlir import ir
from on_devices import assert_close, random_inputs, run_all

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import argument_attributes, result_attributes
from alpa_mlir.models import MODELS
from alpa_mlir.passes import normalize, splat
from alpa_mlir.passes.pipeline import run_pipeline

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


@jax.jit
def halves(x):
    return jnp.where(x > 0, x, 0.5 * x) + 0.0


def composite(x):
    return jax.lax.composite(lambda y: jnp.tanh(y) * 2.0, name="test.tanh_twice")(x)


def loop(x):
    def body(c):
        i, y = c
        return i + 1, halves(y) @ jnp.ones((8, 8)) * 0.1 + composite(y)

    return jax.lax.while_loop(lambda c: c[0] < 3, body, (0, x))


def scanned(x):
    return jax.lax.scan(lambda c, row: (halves(c) + row, c.sum()), jnp.zeros(8), x)


TWIDDLES = np.exp(2j * np.pi * np.arange(4 * 64).reshape(4, 64) / 256).astype(np.complex64)


def spectral(x):
    """Complex constants of all kinds: splats, short lists, large tables, in regions."""
    z = jnp.fft.fft(x) * (1 + 2j) + np.arange(8) * np.complex64(1j)
    total = jax.lax.reduce(z, np.complex64(0), jax.lax.add, (1,))
    wide = jnp.pad(x, ((0, 0), (0, 56))) * TWIDDLES
    return jnp.abs(z), total.real, total.imag, (wide * jnp.conj(TWIDDLES)).real


PROGRAMS = {
    "complex": (spectral, (X,)),
    "calls": (lambda x: halves(halves(x) @ halves(x.T)), (X,)),
    "composites": (composite, (X,)),
    "chlo": (lambda x: (jax.scipy.special.erf(x), jax.lax.top_k(x, 2), jax.scipy.special.erfinv(jnp.tanh(x))), (X,)),
    "while": (loop, (X,)),
    "scan": (scanned, (X,)),
    "branches": (lambda x: jax.lax.cond(x[0, 0] > 0, halves, composite, x), (X,)),
    "random": (lambda key: jax.random.normal(key, (4, 8)), (KEY,)),
    "constants": (lambda x: (x * np.arange(8, dtype=np.float32) + np.eye(4, 8), jnp.full((3,), 2.0) * 4 + 1), (X,)),
    "indices": (lambda x: (jax.lax.dynamic_slice(x, (9, 1), (2, 3)), x.at[1:3].set(0.0), x[jnp.array([2, 0])]), (X,)),
    "bfloat16": (lambda x: (x.astype(jnp.bfloat16) * jnp.bfloat16(1.1) + jnp.bfloat16(0.3)).astype(jnp.float32), (X,)),
    "identities": (
        lambda x: (x.T.T.reshape(2, 16).reshape(4, 8) * 1 - 0 + 0, jax.lax.neg(jax.lax.neg(x)), x[0:4], jnp.pad(x, 0)),
        (X,),
    ),
}


def lowered(function, arguments, **options):
    text = jax.jit(function, **options).lower(*arguments).as_text()
    return parse_module(text, make_context())


def normalized(module, pipeline="alpa-normalize"):
    """A normalized copy in the same context, and the remarks."""
    copy, remarks = clone_module(module), []
    run_pipeline(copy, pipeline, remarks)
    return copy, remarks


def op_names(module):
    return [op.name for op in alpa.walk(module.operation)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_are_those_of_the_source(name):
    module = lowered(*PROGRAMS[name])
    after, _ = normalized(module)
    assert list(functions(after)) == ["main"]
    assert not {"func.call", "stablehlo.composite"} & set(op_names(after))
    assert not any(n.startswith("chlo.") for n in op_names(after))
    inputs = random_inputs(module, np.random.default_rng(0))
    found, expected = run_all([after, module], [inputs, inputs])
    assert_close(found, expected, name, tolerance=1e-6)


@pytest.mark.parametrize("name", ["mlp", "gpt", "moe", "wide_resnet"])
def test_training_steps_keep_their_results(name):
    model = MODELS[name]
    config = model.presets["tiny"]
    step = model.build(config)
    values = jax.tree.leaves(model.initial_values(config, 0))
    module = lowered(step.function, step.arguments, keep_unused=True)
    after, _ = normalized(module)
    found, expected = run_all([after, module], [values, values])
    assert_close(found, expected, name, tolerance=1e-5)
    again, _ = normalized(after)
    assert print_module(again) == print_module(after)


def test_removes_what_frontends_leave_behind():
    after, _ = normalized(lowered(*PROGRAMS["identities"]))
    assert op_names(after) == ["func.func", "func.return"]


def test_each_use_has_its_own_small_constant():
    after, _ = normalized(lowered(*PROGRAMS["while"]))
    constants = [op for op in alpa.walk(after.operation) if op.name == splat.CONSTANT]
    assert constants
    for op in constants:
        (use,) = op.results[0].uses
        assert op.block == use.owner.operation.block


def test_large_constants_stay_one():
    table = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    module = lowered(lambda x: ((x @ table) * 2.0 + 1.0, (-x) @ table), (X,))
    assert table.nbytes > normalize.SMALL_CONSTANT
    after, _ = normalized(module)
    uses = [len(list(op.results[0].uses)) for op in alpa.walk(after.operation) if op.name == splat.CONSTANT]
    assert sorted(uses) == [1, 1, 2]


def roles(module):
    entries = argument_attributes(functions(module)["main"])
    return [
        (ir.StringAttr(e[alpa.ROLE]).value, ir.IntegerAttr(e[alpa.UPDATES]).value if alpa.UPDATES in e else None)
        for e in entries
    ]


def step(w, m, x, y, key, scale):
    g = x.T @ (x @ w - y) + scale * jax.random.normal(key, (8, 8))
    return jnp.sum(g), m * 0.9 + g, w - m


SHAPES = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 8), (8, 8), (4, 8), (4, 8))]
STEP = (step, (*SHAPES, KEY, jax.ShapeDtypeStruct((), jnp.float32)))


def test_donated_arguments_are_state_and_what_shares_the_leading_dimension_is_batch():
    module = lowered(*STEP, donate_argnums=(0, 1))
    after, remarks = normalized(module)
    assert [r for r in remarks if r.message.startswith("unrolled")], "threefry counts its rounds"
    assert roles(after) == [("state", 1), ("state", 2), ("batch", None), ("batch", None), *[("constant", None)] * 2]
    assert "arguments 2, 3 (dimension 0 is 4)" in remarks[0].message


def test_options_name_state_and_batch():
    after, remarks = normalized(lowered(*STEP), "alpa-normalize{state-args=1 batch-args=2-3,5}")
    assert [r for r, _ in roles(after)] == ["constant", "state", "batch", "batch", "constant", "batch"]
    assert roles(after)[1] == ("state", 1)
    assert not [r for r in remarks if r.message.startswith("taken")]


def test_without_state_everything_is_constant():
    after, remarks = normalized(lowered(*STEP))
    assert {r for r, _ in roles(after)} == {"constant"}
    assert not [r for r in remarks if r.message.startswith("taken")]


def test_the_file_says_roles():
    text = """
    func.func public @main(%a: tensor<4xf32> {alpa.role = "state", alpa.updates = 1 : i64},
                           %b: tensor<4xf32> {alpa.role = "state"},
                           %c: tensor<2x4xf32> {alpa.role = "batch"}, %d: tensor<2xf32>)
        -> (tensor<4xf32> {jax.result_info = "b", tf.other = 1 : i64}, tensor<4xf32>) {
      return %b, %a : tensor<4xf32>, tensor<4xf32>
    }"""
    after, _ = normalized(parse_module(text, make_context()))
    assert roles(after) == [("state", 1), ("state", 0), ("batch", None), ("constant", None)]
    assert [list(e) for e in result_attributes(functions(after)["main"])] == [["jax.result_info"], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("state-args=9", "state-args names argument 9, but @main has 6 arguments (0 to 5)"),
        ("state-args=0 batch-args=0-1", "argument 0 is named by both state-args and batch-args"),
        ("state-args=2", "argument 2 is state, but no result of type tensor<4x8xf32> is left to replace it"),
        ("batch-args=3-1", "the range 3-1 is empty"),
        ("batch-args=x", "must be a list of argument numbers"),
    ],
)
def test_contradictory_options_are_refused(options, message):
    with pytest.raises(CompileError) as e:
        normalized(lowered(*STEP), f"alpa-normalize{{{options}}}")
    assert message in e.value.message


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int32", "int8", "uint8", "uint32"])
def test_folded_arithmetic_is_that_of_the_device_to_the_last_bit(dtype):
    """Every operation on every pair of awkward numbers, against XLA."""
    kind = jnp.dtype(dtype)
    if kind.kind in "iu":
        numbers = np.array([0, 1, 3, 100, np.iinfo(kind).max, np.iinfo(kind).min], kind)
    else:
        with np.errstate(over="ignore"):
            numbers = np.array([0.0, -0.0, 1.0, -1.1, 3e-5, 7e4, 1e30, np.inf, 1 / 3], np.float64).astype(kind)
    left, right = (v.ravel() for v in np.meshgrid(numbers, numbers))
    element = {"f": "f", "V": "bf", "i": "i", "u": "ui"}[kind.kind] + str(8 * kind.itemsize)
    context = make_context()
    folded = 0
    with jax.enable_x64(True):
        for operation in splat.ARITHMETIC:
            device = _on_device(operation, left, right)
            for i in range(len(left) if device is not None else 0):
                a, b = (splat.Splat(v[i].item(), element) for v in (left, right))
                number = splat.arithmetic(operation, a, b)
                if number is not None:
                    folded += 1
                    attribute = splat.element_attribute(number, ir.Type.parse(element, context))
                    got = np.array(ir.FloatAttr(attribute).value if a.is_float else ir.IntegerAttr(attribute).value)
                    assert got.astype(kind).tobytes() == device[i].tobytes(), (operation, a, b, got, device[i])
    assert folded > 100


def _on_device(operation, left, right):
    name = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}.get(operation, operation)
    if left.dtype.kind not in "iu" and name.startswith("bitwise"):
        return None
    function = {"maximum": jax.lax.max, "minimum": jax.lax.min, "divide": jax.lax.div}.get(operation)
    function = function or getattr(jnp, name)
    return np.asarray(jax.jit(function)(left, right))
