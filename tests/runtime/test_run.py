"""`alpa-mlir-run` in all its ways of starting: same numbers everywhere, errors told once, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlp_plan
import numpy as np
import pytest
import ranks

TWO_BY_TWO = ((0, 1), (2, 3))
WAYS = [
    ("--local", TWO_BY_TWO),
    (1, TWO_BY_TWO),  # one rank owns both stages
    (2, TWO_BY_TWO),  # a rank per stage, two devices each
    (4, TWO_BY_TWO),  # two ranks per stage
    (2, ((0, 1), (2, 3, 4, 5))),  # a rank owns a stage and a part of the other
    (3, ((0, 2), (3, 5))),  # a rank belongs to two stages that span ranks
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    values = mlp_plan.arguments()
    path = tmp_path_factory.mktemp("inputs") / "in.npz"
    np.savez(path, **{f"arg{i}": v for i, v in enumerate(values)})
    return path, values


@pytest.mark.parametrize(("way", "stages"), WAYS)
def test_same_results_however_started(way, stages, inputs, tmp_path) -> None:
    plan, out = tmp_path / "plan.mlir", tmp_path / "out.npz"
    plan.write_text(mlp_plan.plan_text(2, stages))
    start = ["--local"] if way == "--local" else ["-n", way]
    found = ranks.run([*start, plan, "--inputs", inputs[0], "--outputs", out, "--steps", 3])
    assert found.code == 0, found.err
    results = np.load(out)
    expected = mlp_plan.reference(inputs[1], 3, 2)
    assert sorted(results.files) == [f"out{i}" for i in range(len(expected))]
    for i, value in enumerate(expected):
        np.testing.assert_allclose(results[f"out{i}"], value, rtol=2e-5, atol=2e-5)
    steps = [line for line in found.out.splitlines() if line.startswith("step")]
    assert len(steps) == 3
    assert steps[2].startswith(f"step 2: out2 (loss) = {float(results['out2']):.6g}, ")
    assert ranks.living(str(tmp_path)) == []


def test_plain_mpirun_draws_the_same_arguments_as_one_process(tmp_path) -> None:
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    found = []
    for name, start, mpirun in (("a", ["--local"], 0), ("b", [], 2)):
        out = tmp_path / f"{name}.npz"
        assert ranks.run([*start, plan, "--seed", 7, "--outputs", out], mpirun=mpirun).code == 0
        found.append(dict(np.load(out)))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-6, atol=1e-7)
    rng = np.random.default_rng([7, 2])
    drawn = np.float32(0.02) * rng.standard_normal((mlp_plan.IN, mlp_plan.HIDDEN), np.float32)
    assert 0 < np.abs(found[0]["out0"] - drawn).max() < 0.02


def test_batches_that_change(inputs, tmp_path) -> None:
    plan, batches, out = tmp_path / "plan.mlir", tmp_path / "batches.npz", tmp_path / "out.npz"
    plan.write_text(mlp_plan.plan_text())
    values, other = inputs[1], mlp_plan.arguments(5)
    np.savez(
        batches, **{"arg0@0": values[0], "arg0@1": other[0], "arg1": values[1], "arg2": values[2], "arg3": values[3]}
    )
    assert ranks.run(["-n", 2, plan, "--inputs", batches, "--outputs", out, "--steps", 2]).code == 0
    first = mlp_plan.reference(values, 1, 2)
    second = mlp_plan.reference([other[0], values[1], first[0], first[1]], 1, 2)
    for i, value in enumerate(second):
        np.testing.assert_allclose(np.load(out)[f"out{i}"], value, rtol=2e-5, atol=2e-5)
    late = ranks.run(["--local", plan, "--inputs", batches, "--steps", 3])
    assert late.code == 1
    assert f"{batches}:1:1: error: arg0@2 is missing: the plan wants float32[8, 16]" in late.err


@pytest.mark.parametrize("ranks_given", [3, 8])
def test_ranks_that_do_not_divide_the_devices(ranks_given: int, tmp_path) -> None:
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    found = ranks.run(["-n", ranks_given, plan])
    message = f"{plan}:1:1: error: the plan is for 4 devices, which {ranks_given} ranks cannot share evenly"
    assert found.code == 1
    assert found.err.count(message) == 1
    assert "Traceback" not in found.err


def damaged(tmp_path: Path) -> list[tuple[str, str, str]]:
    text = mlp_plan.plan_text()
    return [
        ("changed", text.replace("1.000000e-01", "2.000000e-01"), "the plan was changed after it was made"),
        ("cut", text[: len(text) // 2], "error: "),
        ("other", "module {}", "not a plan"),
        ("empty", "", "the file is empty"),
    ]


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_a_damaged_plan_is_refused(case: int, tmp_path) -> None:
    name, text, message = damaged(tmp_path)[case]
    plan = tmp_path / f"{name}.mlir"
    plan.write_text(text)
    found = ranks.run(["--local", plan])
    assert found.code == 1
    assert message in found.err and found.err.startswith(f"{plan}:")
    assert "Traceback" not in found.err


def test_inputs_that_do_not_fit(inputs, tmp_path) -> None:
    plan, bad = tmp_path / "plan.mlir", tmp_path / "bad.npz"
    plan.write_text(mlp_plan.plan_text())
    values = {f"arg{i}": v for i, v in enumerate(inputs[1])}
    cases = [
        ({k: v for k, v in values.items() if k != "arg2"}, "arg2 is missing: the plan wants float32[16, 32]"),
        ({**values, "arg1": values["arg1"][:2]}, "arg1 is float32[2, 4], the plan wants float32[8, 4]"),
        ({**values, "arg9": values["arg0"]}, "arg9 is no argument of the plan, which has arg0 … arg3"),
    ]
    for arrays, message in cases:
        np.savez(bad, **arrays)
        found = ranks.run(["--local", plan, "--inputs", bad])
        assert (found.code, found.err) == (1, f"{bad}:1:1: error: {message}\n")
    bad.write_text("no arrays")
    found = ranks.run(["--local", plan, "--inputs", bad])
    assert found.err == f"{bad}:1:1: error: cannot read the inputs: this is no .npz file\n"
    none = tmp_path / "none.npz"
    found = ranks.run(["-n", 2, plan, "--inputs", none])
    assert found.code == 1
    assert found.err.count(f"{none}:1:1: error: cannot read the inputs: No such file or directory\n") == 1


@pytest.mark.parametrize("what", ["outputs", "trace"])
def test_files_that_cannot_be_written_are_refused_before_the_first_step(what, tmp_path) -> None:
    plan, out = tmp_path / "plan.mlir", tmp_path / "missing" / "out"
    plan.write_text(mlp_plan.plan_text())
    found = ranks.run([*(["-n", 2] if what == "outputs" else ["--local"]), plan, f"--{what}", out])
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith(f"{out}:1:1: error: cannot write the {what}: No such file or directory\n")


def test_outputs_are_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    from alpa_mlir.runtime import inputs

    out = tmp_path / "out.npz"
    inputs.write_outputs(str(out), [np.ones(3)])
    monkeypatch.setattr(inputs.np, "savez", lambda file, **_: (file.write(b"half"), file.flush(), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        inputs.write_outputs(str(out), [np.zeros(3)])
    assert (np.load(out)["out0"] == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]


def test_outputs_may_go_to_a_device(tmp_path) -> None:
    from alpa_mlir.runtime.inputs import write_outputs

    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    write_outputs(str(link), [np.ones(3)])
    assert link.is_symlink()


def test_ranks_that_share_stages_print_nothing_but_steps(tmp_path) -> None:
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    found = ranks.run(["-n", 4, plan, "--steps", 2])
    assert (found.code, found.err) == (0, "")
    assert [line.partition(":")[0] for line in found.out.splitlines()] == ["step 0", "step 1"]


def test_wrong_usage_exits_2(tmp_path) -> None:
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    for arguments in (
        [plan],
        ["--local", "-n", 2, plan],
        ["--local", plan, "--steps", 0],
        ["--local", plan, "--tolerance", 1],
    ):
        assert ranks.run(arguments).code == 2


def test_xla_lists_no_devices_however_it_is_loaded() -> None:
    code = "import alpa_mlir.dialect.context, jax; jax.config.update('jax_platforms', 'cpu'); jax.devices()"
    environment = {k: v for k, v in ranks.environment().items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stderr == ""
