"""`read_model`: four forms of the same program, and one located error for everything else, never a crash."""

import os
import random
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.lowering import lower
from alpa_mlir.model_file import exported_module, module_from_bytes, read_model
from alpa_mlir.models.step import TrainStep
from alpa_mlir.tools.export import encode


def function(p, x):
    return {"w": p["w"] - 0.1 * x.T @ (x @ p["w"])}, jnp.sum(x @ p["w"])


ARGUMENTS = ({"w": jax.ShapeDtypeStruct((8, 8), "float32")}, jax.ShapeDtypeStruct((4, 8), "float32"))
STEP = TrainStep("function", function, ARGUMENTS, ("state", "batch"), ((0, 0),))


def exported() -> bytes:
    jitted = jax.jit(function, donate_argnums=0, keep_unused=True)
    return bytes(jax.export.export(jitted)(*ARGUMENTS).serialize())


@pytest.fixture(scope="module")
def forms() -> dict[str, bytes]:
    made = {form: encode(lower(STEP), form, False) for form in ("text", "bytecode", "portable")}
    return made | {"exported": exported()}


def ops(module) -> list[tuple[str, list[str]]]:
    """Every op's name and result types, constants aside: VHLO and jax.export write them in other places."""
    found = []

    def visit(op):
        if op.name != "stablehlo.constant":
            found.append((op.name, [str(r.type) for r in op.results]))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


@pytest.mark.parametrize("form", ["text", "bytecode", "portable", "exported"])
def test_form_is_recognised_by_content(form, forms, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(forms[form])
    module = read_model(path, make_context())
    assert module.operation.verify()
    assert ops(module) == ops(module_from_bytes(forms["text"], make_context(), "t"))
    assert "vhlo" not in str(module)
    assert "tf.aliasing_output = 0" in str(module)
    assert ('alpa.role = "state"' in str(module)) == (form != "exported")


def test_exported_module_is_the_field_that_jax_reads(forms):
    assert exported_module(forms["exported"]) == jax.export.deserialize(forms["exported"]).mlir_module_serialized
    assert all(exported_module(forms[form]) is None for form in ("text", "bytecode", "portable"))


def test_standard_input(forms):
    code = (
        "from alpa_mlir.model_file import read_model; from alpa_mlir.dialect.context import make_context;"
        "print(read_model('-', make_context()))"
    )
    for form in ("text", "portable"):
        done = subprocess.run([sys.executable, "-c", code], input=forms[form], capture_output=True, check=True)
        assert b"stablehlo.dot_general" in done.stdout


def test_pytree_classes_of_the_writer_are_not_needed(forms):
    # An optax state is a NamedTuple, which jax.export.deserialize refuses where it is not registered.
    code = """
import jax, jax.export, sys
from typing import NamedTuple
class State(NamedTuple):
    w: object
jax.export.register_namedtuple_serialization(State, serialized_name="somewhere.State")
e = jax.export.export(jax.jit(lambda s: State(s.w * 2)))(State(jax.ShapeDtypeStruct((4,), "float32")))
sys.stdout.buffer.write(e.serialize())
"""
    raw = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert "stablehlo.multiply" in str(module_from_bytes(raw, make_context(), "m"))


def refusal(raw: bytes) -> CompileError:
    with pytest.raises(CompileError) as caught:
        module_from_bytes(raw, make_context(), "model")
    assert caught.value.location.startswith("model:") and caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [b"", b" \n", b"\0" * 64, bytes(range(256)), b"ML\xefR", b"ML\xefR\rMLIR", b"ML\xefR\rStableHLO_v1.0.0\0", b"hello",
     b"module {", b"\xff\xfe\0\0", b"ML", b"func.func @main() { return %x : i32 }"],
)  # fmt: skip
def test_what_is_no_model_is_one_located_error(raw):
    refusal(raw)


def test_text_error_has_line_and_column():
    text = b"module {\n  func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {\n    return %b : tensor<4xf32>\n  }\n}\n"
    assert refusal(text).location == "model:3:12"


@pytest.mark.parametrize("form", ["bytecode", "portable", "exported"])
def test_truncated_files_are_refused(form, forms):
    raw = forms[form]
    for length in [1, 3, 4, 5, 17, 40, *range(100, len(raw) - 1, len(raw) // 4), len(raw) - 1]:
        if form == "exported" and exported_module(raw[:length]) is not None:
            continue  # what is missing lies behind the module
        refusal(raw[:length])


def test_many_truncations_do_not_end_the_interpreter(forms, tmp_path):
    """Every 16th length of every form in one process: the reader itself, without its protecting child."""
    code = """
import sys
from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
context = make_context()
for path in sys.argv[1:]:
    raw = open(path, "rb").read()
    for length in range(0, len(raw), 16):
        try:
            parse_module(raw[:length], context, path)
        except CompileError:
            continue
        sys.exit(f"{path}: {length} of {len(raw)} bytes were read as a module")
"""
    paths = []
    for form in ("bytecode", "portable"):
        paths.append(str(tmp_path / form))
        (tmp_path / form).write_bytes(forms[form])
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]


def test_damaged_bytecode_is_refused_or_read_but_never_fatal(forms):
    generator = random.Random(0)
    refused = 0
    for form in ("bytecode", "portable"):
        for _ in range(6):
            raw = bytearray(forms[form])
            for _ in range(8):
                raw[generator.randrange(8, len(raw))] = generator.randrange(256)
            try:
                module_from_bytes(bytes(raw), make_context(), "model")
            except CompileError:
                refused += 1
    assert refused >= 10


def test_a_reader_that_aborts_is_an_error(forms, monkeypatch):
    monkeypatch.setattr("alpa_mlir.model_file.sys.executable", "/bin/false")
    assert "damaged bytecode" in refusal(forms["bytecode"]).message


@pytest.mark.parametrize("name", ["missing.mlir", ".", "a/b", "nul\0byte"])
def test_unreadable_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompileError, match="cannot read the file"):
        read_model(name, make_context())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path):
    path = tmp_path / "m.mlir"
    path.write_text("module {}")
    path.chmod(0)
    with pytest.raises(CompileError, match="Permission denied"):
        read_model(path, make_context())


def test_symbolic_shapes_are_refused():
    shape = jax.export.symbolic_shape("b, 8")
    symbolic = jax.export.export(jax.jit(lambda x: x * 2))(jax.ShapeDtypeStruct(shape, "float32"))
    assert "symbolic shape tensor<?x8xf32>" in refusal(bytes(symbolic.serialize())).message


def test_several_platforms_are_refused():
    argument = jax.ShapeDtypeStruct((8,), "float32")
    several = jax.export.export(jax.jit(lambda x: x * 2), platforms=("cpu", "cuda"))(argument)
    assert "several platforms" in refusal(bytes(several.serialize())).message
