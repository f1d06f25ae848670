"""alpa-mlir-plan: plans, tables, and one located error for whatever cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.tools import export, opt
from alpa_mlir.tools import plan as plan_tool
from alpa_mlir.tools import run as run_tool
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.plan import NAME, main

CLUSTER = """
name = "desk"
nodes = 1
devices_per_node = 2
memory = "1GB"
memory_bandwidth = 1e10
efficiency = 0.5
flops = {f32 = 1e10}
[link]
device = {bandwidth = 1e9, start = 1e-5}
node = {bandwidth = 1e8, start = 1e-4}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mlp = MODELS["mlp"]
    path = tmp_path_factory.mktemp("plan") / "mlp.mlir"
    path.write_text(print_module(lower(mlp.build(mlp.config(layers=4, hidden=16, batch=16)))))
    return path


def run(*words: str | Path) -> int:
    return guarded(NAME, main, [str(w) for w in words])


def test_plans_stages_and_prints_them(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, figures = tmp_path / "plan.mlir", tmp_path / "plan.json"
    assert run(model, "-o", plan, "--stages", 2, "--microbatches", 4, "--json", figures) == 0
    printed = capsys.readouterr().out
    assert re.search(r"2 stages, 4 microbatches, [-a-z0-9]+, cluster cpu", printed) and "predicted step:" in printed
    assert "considered:" in printed and "against the best" in printed
    module = parse_module(plan.read_bytes(), make_context())
    assert 'alpa.level = "plan"' in plan.read_text() and "alpa.digest" in plan.read_text()
    assert {"stage_0_forward", "stage_1_forward", "stage_0_backward", "stage_1_backward"} <= set(functions(module))
    table = json.loads(figures.read_text())
    assert table["microbatches"] == 4 and [s["stage"] for s in table["stages"]] == [0, 1]
    assert sorted(d for s in table["stages"] for d in s["devices"]) == [0, 1, 2, 3]
    assert 0 <= table["bubble"] < 1 and table["step_seconds"] > 0
    assert all(s["memory_bytes"] > 0 and s["peak_bytes"] > 0 and s["forward_seconds"] > 0 for s in table["stages"])
    assert {c["schedule"] for c in table["considered"]} >= {"1f1b", "gpipe", "zero-bubble"}
    assert sum(table["costs"].values()) == pytest.approx(table["step_seconds"])


def test_same_bytes_twice(model: Path, tmp_path: Path) -> None:
    plans = [tmp_path / "a.mlir", tmp_path / "b.mlir"]
    for plan in plans:
        assert run(model, "-o", plan, "--stages", 2, "--microbatches", 2) == 0
    assert plans[0].read_bytes() == plans[1].read_bytes()


def test_a_mesh_is_one_stage(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.mlir"
    assert run(model, "-o", plan, "--mesh", "2x2", "--partitioner", "xla") == 0
    text = plan.read_text()
    assert 'sdy.mesh @stage_0 = <["x"=2, "y"=2]>' in text and "@stage_1" not in text
    assert "sdy.manual_computation" not in text
    assert run(model, "-o", plan, "--mesh", "4x1") == 0
    assert "sdy.manual_computation" in plan.read_text()


def test_everything_automatic_on_a_cluster_from_a_file(model: Path, tmp_path: Path) -> None:
    cluster, plan = tmp_path / "desk.toml", tmp_path / "plan.mlir"
    cluster.write_text(CLUSTER)
    assert run(model, "-o", plan, "--cluster", cluster) == 0
    assert 'name = "desk"' in plan.read_text()


@pytest.mark.parametrize(
    ("good", "bad", "where", "message"),
    [
        ("nodes = 1", "nodes = = 1", "3:9", "not a cluster file"),
        ("nodes = 1", "nodes = 1.5", "3:1", "whole number from 1 to 1048576 as nodes, got 1.5"),
        ("nodes = 1\n", "", "1:1", "whole number from 1 to 1048576 as nodes"),
        ('"1GB"', '"lots"', "5:1", "not an amount of memory: 'lots'"),
        ("0.5", "nan", "7:1", "positive number efficiency, got nan"),
        ("f32", "f16", "8:1", "needs flops.f32"),
        ("bandwidth = 1e8", "bandwidth = 'x'", "11:9", "positive number link.node.bandwidth, got 'x'"),
    ],
)
def test_a_wrong_cluster_file_is_an_error_at_its_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], good: str, bad: str, where: str, message: str
) -> None:
    cluster, plan = tmp_path / "desk.toml", tmp_path / "plan.mlir"
    cluster.write_text(CLUSTER.replace(good, bad, 1))
    assert run(model, "-o", plan, "--cluster", cluster) == 1
    _is_one_error(capsys, f"^{cluster}:{where}: error: .*{re.escape(message)}")
    assert not plan.exists()


def test_opt_prints_the_same_plan(model: Path, tmp_path: Path) -> None:
    planned, passed = tmp_path / "plan.mlir", tmp_path / "opt.mlir"
    options = ["--cluster", "cpu", "--devices-per-node", 4, "--stages", 2, "--microbatches", 4]
    assert run(model, "-o", planned, *options) == 0
    flag = "--alpa-parallelize-pipeline=cluster=cpu devices-per-node=4 stages=2 microbatches=4"
    assert guarded("alpa-mlir-opt", opt.main, [str(model), flag, "-o", str(passed)]) == 0
    assert planned.read_bytes() == passed.read_bytes()
    assert guarded("alpa-mlir-opt", opt.main, [str(planned), "-o", str(passed)]) == 0
    assert planned.read_bytes() == passed.read_bytes()


def test_writes_the_plan_only_with_its_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, figures = tmp_path / "plan.mlir", tmp_path / "nowhere" / "plan.json"
    assert run(model, "-o", plan, "--mesh", "4", "--json", figures) == 1
    _is_one_error(capsys, "plan.json:1:1: error: cannot write the file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["!stablehlo.token", "memref<4xf32>", "tuple<tensor<4xf32>>", "tensor<?xf32>"])
def test_what_is_no_static_tensor_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, plan = tmp_path / "model.mlir", tmp_path / "plan.mlir"
    source.write_text(f"func.func @main(%a: {kind}) -> {kind} {{\n  return %a : {kind}\n}}\n")
    assert run(source, "-o", plan) == 1
    _is_one_error(capsys, f"model.mlir:1:1: error: argument 0 has the (type|dynamic shape) {re.escape(kind)}")
    assert not plan.exists()


def test_ops_of_other_dialects_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, plan = tmp_path / "model.mlir", tmp_path / "plan.mlir"
    add = "%0 = arith.addf %a, %a : tensor<4xf32>"
    source.write_text(
        f"func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {{\n  {add}\n  return %0 : tensor<4xf32>\n}}\n"
    )
    assert run(source, "-o", plan) == 1
    _is_one_error(capsys, "model.mlir:2:\\d+: error: arith.addf is not StableHLO")


@pytest.mark.parametrize("command", [export, opt, plan_tool, run_tool], ids=lambda module: module.NAME)
def test_every_command_says_its_version(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert stop.value.code == 0
    assert re.match(rf"{command.NAME} \d+\.\d+\.\d+ \(jaxlib", capsys.readouterr().out)


def test_stops_after_a_pass(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "layers.mlir"
    assert run(model, "-o", out, "--microbatches", 2, "--layers", 3, "--emit-after", "alpa-layers") == 0
    assert 'alpa.level = "layered"' in out.read_text() and "alpa.layer = 2" in out.read_text()


def test_inference_is_planned_forward_only(tmp_path: Path) -> None:
    mlp = MODELS["mlp"]
    source, plan = tmp_path / "serve.mlir", tmp_path / "plan.mlir"
    source.write_text(print_module(lower(mlp.build_inference(mlp.presets["tiny"]))))
    assert run(source, "-o", plan, "--stages", 2, "--microbatches", 2) == 0
    assert "_forward" in plan.read_text() and "_backward" not in plan.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "3x1"], "the mesh 3x1 has 3 devices, but the cluster has 4"),
        (["--mesh", "2by2"], "a mesh is written as 2x4"),
        (["--mesh", "4x²"], "a mesh is written as 2x4"),
        (["--nodes", "10000000000000000000000"], "nodes must be from 1 to 1048576"),
        (["--solver", "nosuch"], "unknown solver 'nosuch': the mixed-integer solvers here are"),
        (["--microbatches", "3"], "3"),
        (["--stages", "2", "--microbatches", "1", "--memory", "1KB"], "no plan fits in 0.001 MB per device"),
        (["--mesh", "4", "--memory", "1KB"], "memory|fit"),
        (["--stages", "5", "--microbatches", "1"], "5 stages need at least 5 devices, there are 4"),
        (["--stages", "3", "--layers", "2", "--microbatches", "1"], "3 stages cannot be made of 2 layers"),
        (["--layers", "99", "--microbatches", "1"], "99 layers were asked for"),
        (["--batch-args", "99"], "99"),
        (["--cluster", "nowhere.toml"], "neither a preset .* nor a readable file"),
    ],
)
def test_what_cannot_be_is_one_located_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    plan = tmp_path / "plan.mlir"
    assert run(model, "-o", plan, *options) == 1
    _is_one_error(capsys, message)
    assert not plan.exists()


def _is_one_error(capsys: pytest.CaptureFixture[str], message: str) -> None:
    seen = capsys.readouterr()
    assert seen.out == ""
    errors = [line for line in seen.err.splitlines() if ": error: " in line]
    assert len(errors) == 1 and "Traceback" not in seen.err
    assert re.match(r"^\S+:\d+:\d+: error: ", errors[0]) and re.search(message, errors[0]), errors[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello", "unknown"), (b"", "empty"), (b"ML\xefR\x01broken", "."), (b"\x00\x01\x02", "neither")],
)
def test_what_is_no_program_is_one_located_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    source, plan = tmp_path / "model.mlir", tmp_path / "plan.mlir"
    source.write_bytes(content)
    assert run(source, "-o", plan) == 1
    _is_one_error(capsys, message)
    assert not plan.exists()


@pytest.mark.parametrize(
    ("argument", "op", "message"),
    [
        ("alpa.role = 3 : i64", "", r"model.mlir:1:1: error: alpa.role must be .* got 3 : i64 \(V1\)"),
        ('alpa.role = "batsch"', "", r"alpa.role must be .* got \"batsch\" \(V1\)"),
        ('alpa.role = "state", alpa.updates = -1 : i64', "", r"alpa.updates must be i64, not negative, got -1"),
        ('alpa.role = "batch"', 'alpa.layer = "x"', r"model.mlir:2:8: error: alpa.layer must be i64"),
        ('alpa.role = "batch"', "alpa.layer = 1000000000000 : i64", r"model.mlir:2:8: error: alpa.layer must be i64"),
        ('alpa.role = "batch"', "alpa.lair = 1 : i64", "unknown attribute alpa.lair"),
    ],
)
def test_what_the_program_says_of_itself_is_checked_before_it_is_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, op: str, message: str
) -> None:
    source, plan = tmp_path / "model.mlir", tmp_path / "plan.mlir"
    source.write_text(f"""func.func @main(%a: tensor<8x4xf32> {{{argument}}}) -> tensor<8x4xf32> {{
  %0 = stablehlo.add %a, %a {{{op}}} : tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}}""")
    assert run(source, "-o", plan) == 1
    _is_one_error(capsys, message)
    assert not plan.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--schedule", "zigzag"],
        ["--stages", "0"],
        ["--memory", "much"],
        ["--memory", "0"],
        ["--nodes", "٣"],
        ["--remat", "some"],
        ["--microbatches", "x"],
    ],
)
def test_wrong_usage_exits_2(model: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(model, "-o", tmp_path / "plan.mlir", *options)
    assert stop.value.code == 2
    assert not (tmp_path / "plan.mlir").exists()


def test_a_loop_over_layers_is_named_where_it_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def step(w: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(w: jax.Array) -> jax.Array:
            h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)
            return jnp.mean(h**2)

        value, gradient = jax.value_and_grad(loss)(w)
        return w - 0.1 * gradient, value

    source = tmp_path / "loop.mlir"
    lowered = jax.jit(step, donate_argnums=0).lower(jnp.zeros((4, 8, 8)), jnp.zeros((8, 8)))
    source.write_text(lowered.as_text())
    assert run(source, "-o", tmp_path / "plan.mlir", "--stages", 2, "--microbatches", 1) == 0
    assert "unrolled: 4 rounds" in capsys.readouterr().err
    assert run(source, "-o", tmp_path / "plan.mlir", "--stages", 2, "--microbatches", 1, "--unroll", 0) == 1
    said = capsys.readouterr().err
    loop = 1 + next(i for i, line in enumerate(source.read_text().splitlines()) if "stablehlo.while" in line)
    assert "2 stages cannot be made of 1 layer\n" in said
    assert re.search(
        rf"^{re.escape(str(source))}:{loop}:\d+: note: all of this stablehlo.while is one layer", said, re.M
    )


def test_xlas_partitioner_gets_no_partial_value_to_pass_on(model: Path, tmp_path: Path) -> None:
    """Where links cost nothing, sums are kept as addends; only the local partitioner can hold these."""
    cluster = tmp_path / "desk.toml"
    quick = CLUSTER.replace("1e9, start = 1e-5", "1e12, start = 1e-9").replace(
        "memory_bandwidth = 1e10", "memory_bandwidth = 1e6"
    )
    cluster.write_text(quick.replace("devices_per_node = 2", "devices_per_node = 4"))
    found = []
    for partitioner in ("local", "xla"):
        plan = tmp_path / f"{partitioner}.mlir"
        options = ["--stages", 2, "--microbatches", 4, "--partitioner", partitioner, "--emit-after", "alpa-split"]
        assert run(model, "-o", plan, "--cluster", cluster, *options) == 0
        boundaries = [line for line in plan.read_text().splitlines() if "mpmd.fragment_call" in line]
        found.append(any("unreduced" in line for line in boundaries))
    assert found == [True, False]
