"""`alpa-mlir-export`: forms, roles, sizes, one's own functions, and what it says to wrong usage."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, make_context
from alpa_mlir.model_file import read_model
from alpa_mlir.models import MODELS
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.export import NAME
from alpa_mlir.tools.export import main as unguarded

EXAMPLES = Path(__file__).parents[2] / "examples"


def main(arguments):
    return guarded(NAME, unguarded, arguments)


def signature_and_ops(path):
    """The first line of @main, and every op's name and result types in order (VHLO spells defaults out)."""
    module = read_model(path, make_context())
    ops = []

    def visit(op):
        ops.append((op.name, [str(r.type) for r in op.results]))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return str(module).splitlines()[1], ops


def argument_rows(path):
    """For each argument of @main: its attributes by name, as Python values."""
    module = read_model(path, make_context())
    entry = functions(module)["main"]
    rows = [{a.name: a.attr.value for a in ir.DictAttr(row)} for row in ir.ArrayAttr(entry.attributes["arg_attrs"])]
    results = ir.FunctionType(ir.TypeAttr(entry.attributes["function_type"]).value).results
    arguments = [str(a.type) for a in entry.regions[0].blocks[0].arguments]
    return rows, arguments, [str(t) for t in results]


@pytest.mark.parametrize("name", list(MODELS))
def test_every_argument_has_its_role_and_every_state_its_successor(name, tmp_path):
    out = tmp_path / "m.mlir"
    assert main([name, "--size", "tiny", "-o", str(out)]) == 0
    rows, arguments, results = argument_rows(out)
    step = MODELS[name].build(MODELS[name].presets["tiny"])
    leaves = [len(jax.tree.leaves(a)) for a in step.arguments]
    assert [r["alpa.role"] for r in rows] == [r for r, n in zip(step.roles, leaves, strict=True) for _ in range(n)]
    state = [i for i, r in enumerate(rows) if r["alpa.role"] == "state"]
    assert [rows[i]["alpa.updates"] for i in state] == list(range(len(state)))
    assert all(rows[i]["tf.aliasing_output"] == rows[i]["alpa.updates"] for i in state)
    assert all(arguments[i] == results[rows[i]["alpa.updates"]] for i in state)
    text = out.read_text()
    assert "result.params" in text and "result.loss" in text and "loc(" not in text


def test_inference_exports_constants(tmp_path):
    out = tmp_path / "m.mlir"
    assert main(["gpt", "--size", "tiny", "--inference", "-o", str(out)]) == 0
    rows, _, results = argument_rows(out)
    assert {r["alpa.role"] for r in rows[:-1]} == {"constant"} and rows[-1]["alpa.role"] == "batch"
    assert results == ["tensor<8x16x64xf32>"]


@pytest.mark.parametrize("form", [[], ["--bytecode"], ["--portable"]])
def test_forms_hold_the_same_program(form, tmp_path):
    plain, other = tmp_path / "plain.mlir", tmp_path / "other.mlir"
    assert main(["moe", "--size", "tiny", "-o", str(plain)]) == 0
    assert main(["moe", "--size", "tiny", *form, "-o", str(other)]) == 0
    assert signature_and_ops(plain) == signature_and_ops(other)
    assert list(tmp_path.iterdir()) in ([plain, other], [other, plain])


def test_locations_are_kept_on_request(tmp_path):
    for form in ([], ["--bytecode"]):
        out = tmp_path / "m.mlir"
        assert main(["mlp", "--size", "tiny", "--locations", *form, "-o", str(out)]) == 0
        text = read_model(out, make_context()).operation.get_asm(enable_debug_info=True)
        assert "mlp.py" in text


def test_inputs_are_start_values_of_the_program(tmp_path):
    out, inputs = tmp_path / "m.mlir", tmp_path / "m.npz"
    assert main(["gpt", "--size", "tiny", "--seed", "3", "-o", str(out), "--inputs", str(inputs)]) == 0
    values = np.load(inputs)
    _, arguments, _ = argument_rows(out)
    shapes = ["x".join([*map(str, values[f"arg{i}"].shape), ""]) for i in range(len(arguments))]
    assert len(values) == len(arguments)
    assert all(t.startswith(f"tensor<{s}") for t, s in zip(arguments, shapes, strict=True))
    want = MODELS["gpt"].initial_values(MODELS["gpt"].presets["tiny"], 3)
    np.testing.assert_array_equal(values[f"arg{len(arguments) - 1}"], want[-1])
    np.testing.assert_array_equal(values["arg0"], want[0]["embedding"])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_platform_needs_no_device(platform, tmp_path):
    out = tmp_path / "m.mlir"
    assert main(["moe", "--size", "tiny", "--platform", platform, "-o", str(out)]) == 0
    assert "stablehlo.dot_general" in out.read_text()


def test_fields_change_the_program(tmp_path):
    out = tmp_path / "m.mlir"
    fields = ["--layers", "3", "--hidden", "48", "--batch", "4", "--no-bias", "--dtype", "bfloat16"]
    assert main(["mlp", *fields, "-o", str(out)]) == 0
    _, arguments, _ = argument_rows(out)
    assert arguments.count("tensor<48x48xbf16>") == 3 and arguments[-1] == "tensor<4x48xbf16>"


def test_largest_size_needs_no_memory(tmp_path):
    out = tmp_path / "m.mlir"
    assert main(["llama", "--size", "405B", "--layers", "4", "-o", str(out)]) == 0
    assert "tensor<16384x53248xbf16>" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no model 'nothing'"),
        ([], "required: NAME"),
        (["gpt", "--size", "1T"], "no size '1T'"),
        (["gpt", "--experts", "8"], "no option --experts"),
        (["gpt", "--hidden", "30"], "multiple of heads"),
        (["no.such.module:f"], "no module 'no.such.module'"),
        (["os:nothing"], "os has no 'nothing'"),
        (["os:sep"], "neither a function"),
        (["none.py:f"], "no file 'none.py'"),
        (["os:getcwd", "--layers", "3"], "--layers is for built-in models"),
        (["gpt", "--inference", "--inputs", "x.npz"], "--inputs is for training"),
    ],
)
def test_wrong_usage_exits_2_with_a_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == "" and "Traceback" not in printed.err


def test_list_names_every_size(capsys):
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, model in MODELS.items():
        assert f"{name}: " in printed
        assert all(re.search(rf"^  {re.escape(size)} ", printed, re.M) for size in model.presets)


OWN = """
import jax
import jax.numpy as jnp
from alpa_mlir.models import MODELS

def step(p, x):
    return (p @ x).sum(), p - x
step_arguments = (jnp.zeros((4, 4)), jnp.zeros((4, 4)))
step_roles = ("state", "batch")

donating = jax.jit(step, donate_argnums=0)
def donating_arguments():
    return step_arguments

def made():
    return step, step_arguments, ("constant", "batch")

def built():
    return MODELS["mlp"].build(MODELS["mlp"].presets["tiny"])

def mismatched(p, x):
    return p @ x
mismatched_arguments = (jnp.zeros((4, 4)), jnp.zeros((3, 4)))

def stateless(p):
    return p.sum()
stateless_arguments, stateless_roles = (jnp.zeros(4),), ("state",)

def wrong_roles(p):
    return p
wrong_roles_arguments, wrong_roles_roles = (jnp.zeros(4),), ("wheel",)

def bare(x):
    return x

def failing():
    raise KeyError("lost")

number = 3
def returns_number():
    return number
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own_steps.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    ("function", "roles"),
    [
        ("step", ["state", "batch"]),
        ("donating", ["state", "batch"]),
        ("made", ["constant", "batch"]),
        ("built", ["state"] * 13 + ["batch"] * 2),
    ],
)
def test_own_function(function, roles, own, tmp_path):
    out = tmp_path / "m.mlir"
    assert main([f"{own}:{function}", "-o", str(out)]) == 0
    rows, _, _ = argument_rows(out)
    assert [r["alpa.role"] for r in rows] == roles
    if function in ("step", "donating"):
        assert rows[0]["alpa.updates"] == 1  # the loss comes first


@pytest.mark.parametrize(
    ("function", "line", "message"),
    [
        ("mismatched", 22, "TypeError: dot_general requires contracting dimensions"),
        ("stateless", 25, "argument 0 of stateless is state"),
        ("wrong_roles", 29, "roles of wrong_roles"),
        ("bare", 33, "define bare_arguments"),
        ("failing", 37, "KeyError: 'lost'"),
        ("returns_number", 40, "must return a TrainStep"),
    ],
)
def test_fault_in_own_function_is_located(function, line, message, own, capsys):
    assert main([f"{own}:{function}"]) == 1
    printed = capsys.readouterr().err
    assert re.match(rf"{re.escape(str(own))}:{line}:\d+: error: ", printed) and message in printed


def test_unwritable_output_is_an_error(capsys):
    assert main(["mlp", "--size", "tiny", "-o", "/no/such/folder/m.mlir"]) == 1
    assert capsys.readouterr().err.startswith("/no/such/folder/m.mlir:1:1: error: cannot write")


@pytest.mark.parametrize("script", ["export_flax.py", "export_haiku.py"])
def test_scripts_of_other_libraries_export(script, tmp_path):
    done = subprocess.run([sys.executable, EXAMPLES / script], capture_output=True, check=True, timeout=120)
    out = tmp_path / "m.mlir"
    out.write_bytes(done.stdout)
    rows, arguments, results = argument_rows(out)
    donated = [i for i, r in enumerate(rows) if "tf.aliasing_output" in r]
    assert len(rows) - len(donated) == 2  # features or images, and labels
    assert all(arguments[i] == results[rows[i]["tf.aliasing_output"]] for i in donated)


def test_other_spellings_of_a_name(tmp_path):
    for name in ("wrn", "wide-resnet", "wide_resnet"):
        assert main([name, "--size", "tiny", "-o", str(tmp_path / f"{name}.mlir")]) == 0
    texts = {path.read_text() for path in tmp_path.iterdir()}
    assert len(texts) == 1
