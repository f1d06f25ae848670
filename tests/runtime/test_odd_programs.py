"""Programs as jax does not write them: planned for two devices they compute what one device does, or are refused.

`odd_programs.mlir` holds the ones that run, each headed by `// name: options`; `refused_programs.mlir` the others,
headed by `// name: message`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import forked_runs
import numpy as np
import pytest

from alpa_mlir.tools import plan
from alpa_mlir.tools.diagnostics import guarded

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run() -> Iterator[forked_runs.Runs]:
    """The command `alpa-mlir-run`."""
    runs = forked_runs.Runs()
    yield runs
    runs.end()


def read(name: str) -> list[tuple[str, str, str]]:
    """(name, what stands behind it, text) of each program."""
    parts = HERE.joinpath(name).read_text().split("\n// -----\n\n")
    heads = [part.partition("\n")[0].removeprefix("// ").partition(":") for part in parts]
    return [(head, rest.strip(), text) for (head, _, rest), text in zip(heads, parts, strict=True)]


def planned(text: str, options: list[str], folder: Path) -> tuple[int, Path, Path]:
    model, found = folder / "model.mlir", folder / "plan.mlir"
    model.write_text(text)
    arguments = [str(model), "--cluster", "cpu", "--devices-per-node", "2", *options, "-o", str(found)]
    return guarded(plan.NAME, plan.main, arguments), model, found


@pytest.mark.parametrize(("name", "options", "text"), read("odd_programs.mlir"))
def test_computes_what_one_device_does(
    name: str, options: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], run: forked_runs.Runs
) -> None:
    microbatches = "2" if "--batch-args" in options else "1"
    mesh = ["--mesh", "2", "--microbatches", microbatches]
    code, model, found = planned(text, [*options.split(), *mesh], tmp_path)
    assert code == 0, capfd.readouterr().err
    said = run("--local", found, "--reference", model, "--steps", 2)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1].endswith("equal")


@pytest.mark.parametrize(("name", "message", "text"), read("refused_programs.mlir"))
def test_is_refused_at_a_line(
    name: str, message: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, model, found = planned(text, [], tmp_path)
    said = capfd.readouterr().err
    assert (code, found.exists()) == (1, False)
    first = said.splitlines()[0]
    assert first.startswith(f"{model}:")
    assert "error: " in first
    assert message in first


def test_an_op_that_xla_does_not_know_is_told_in_the_plan(tmp_path: Path, run: forked_runs.Runs) -> None:
    text = (
        "func.func @main(%a: tensor<8x4xf32>) -> tensor<8x4xf32> {\n"
        "  %0 = stablehlo.custom_call @my_magic(%a) : (tensor<8x4xf32>) -> tensor<8x4xf32>\n"
        "  return %0 : tensor<8x4xf32>\n}\n"
    )
    code, _, found = planned(text, [], tmp_path)
    assert code == 0
    said = run("--local", found)
    assert said.code == 1
    assert f"{found}:1:1: error: XLA cannot compile @stage_0_forward: " in said.err
    assert "my_magic" in said.err


def test_results_larger_than_all_memory_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kind = "tensor<100000x100000xf32>"
    text = f"func.func @main() -> {kind} {{\n  %c = stablehlo.constant dense<1.0> : {kind}\n  return %c : {kind}\n}}\n"
    code, model, _ = planned(text, [], tmp_path)
    said = capfd.readouterr().err
    assert code == 1
    assert f"{model}:1:1: error: " in said
    assert "not an amount of memory" not in said


def test_state_in_short_types_goes_through_files(tmp_path: Path, run: forked_runs.Runs) -> None:
    """Checkpoints, results and inputs; a value that no program touches is one of its type all the same."""
    kinds = ("tensor<8x4xi4>", "tensor<8x4xi2>", "tensor<8x4xf8E5M2>", "tensor<8x4xf4E2M1FN>", "tensor<8x4xf32>")
    arguments = ", ".join(f"%{n}: {kind}" for n, kind in zip("abcde", kinds, strict=True))
    text = f"""func.func @main({arguments}) -> ({", ".join(kinds)}) {{
  %a2 = stablehlo.add %a, %a : {kinds[0]}
  %w = stablehlo.convert %a2 : ({kinds[0]}) -> {kinds[4]}
  %v = stablehlo.convert %c : ({kinds[2]}) -> {kinds[4]}
  %s = stablehlo.add %w, %v : {kinds[4]}
  %e2 = stablehlo.add %s, %e : {kinds[4]}
  %c2 = stablehlo.convert %e2 : ({kinds[4]}) -> {kinds[2]}
  return %a2, %b, %c2, %d, %e2 : {", ".join(kinds)}
}}"""
    code, model, found = planned(text, ["--state-args", "0-3", "--mesh", "2", "--microbatches", "1"], tmp_path)
    assert code == 0
    saved, out = tmp_path / "saved", tmp_path / "out.npz"
    for start in (["--checkpoint", saved, "--outputs", out], ["--restore", saved]):
        said = run("--local", found, "--reference", model, *start)
        assert said.code == 0, said.err
        assert "largest relative difference 0 " in said.out.splitlines()[-1]
    results = np.load(out)
    given = tmp_path / "in.npz"
    np.savez(given, **{f"arg{i}": results[f"out{i}"] for i in range(5)})
    said = run("--local", found, "--reference", model, "--inputs", given)
    assert said.code == 0, said.err
