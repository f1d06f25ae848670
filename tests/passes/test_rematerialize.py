"""alpa-remat: the same numbers from fewer kept values, at the price of the forward ops once more."""

from __future__ import annotations

import re

import jax
import pytest
from jaxlib.mlir import ir
from on_devices import run_all
from staged_steps import assert_same_step, layered, one_device, replicated

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.staged import Fragment, PlanMain
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.pipeline import parse_pipeline, run_pipeline
from alpa_mlir.passes.rematerialize import Rematerialize
from alpa_mlir.passes.schedule import SchedulePass
from alpa_mlir.passes.split import Split
from alpa_mlir.runtime.executable import Compiler, jax_mesh
from alpa_mlir.runtime.execute import run_plan
from alpa_mlir.runtime.stage_function import extract


def products(module: ir.Module, phase: str, layer: int) -> int:
    ops = alpa.walk(functions(module)["microbatch"])
    here = [o for o in ops if (alpa.get_string(o, alpa.PHASE), alpa.get_int(o, alpa.LAYER)) == (phase, layer)]
    return sum(op.name == "stablehlo.dot_general" for op in here)


def ends_of_networks(module: ir.Module) -> int:
    """Products in the backward pass of values four times as long as those between blocks with a weight."""
    ops = [o for o in alpa.walk(functions(module)["microbatch"]) if alpa.get_string(o, alpa.PHASE) == "backward"]
    shapes = [[tuple(v.type.shape) for v in o.operands] for o in ops if o.name == "stablehlo.dot_general"]
    return sum(s == [(2, 16, 128), (128, 32)] for s in shapes)


def kept(main: PlanMain) -> list[tuple[int, ...]]:
    """Shapes of what forward parts leave for the parts behind them."""
    forward = {s.id for s in main.steps if isinstance(s, Fragment) and s.phase == "forward"}
    behind = [s for s in main.steps if isinstance(s, Fragment) and s.phase in ("backward", "weight")]
    return [main.type_of(r).shape for r in dict.fromkeys(r for s in behind for r in s.operands) if r.op in forward]


@pytest.mark.parametrize(
    ("name", "layers", "chosen", "stages", "kind"),
    [
        ("mlp", 3, "full", 3, "1f1b"),
        ("mlp", 3, "1-2", 3, "zero-bubble"),
        ("gpt", 2, "full", 1, "1f1b"),
    ],
)
def test_equals_one_device(name: str, layers: int, chosen: str, stages: int, kind: str) -> None:
    module, values = layered(name, 4, layers, depth=6 if name == "mlp" else 0)
    expected = run_all([one_device(module)], [values])[0]
    Rematerialize(layers=chosen).apply(module, [])
    assert module.operation.verify()
    alpa.verify(module)
    module = replicated(module, stages)
    Split(weight_apart=kind == "zero-bubble").apply(module, [])
    SchedulePass(kind=kind).apply(module, [])
    assert_same_step(run_plan(print_module(module), values), expected)


def test_only_the_layers_inputs_are_kept() -> None:
    """Six dense layers in three stages keep two activations each and relu's mask; with remat one, the stage's input.

    That input is a microbatch or comes by transfer, so that forward parts leave nothing at all.
    """
    module, _ = layered("mlp", 4, 3, depth=6)
    Rematerialize(layers="none").apply(module, [])
    module = replicated(module, 3)
    Split().apply(module, [])
    assert len(kept(read_main(module))) >= 5
    module, _ = layered("mlp", 4, 3, depth=6)
    Rematerialize().apply(module, [])
    module = replicated(module, 3)
    Split().apply(module, [])
    assert kept(read_main(module)) == []


def test_the_blocks_of_a_layer_run_again_one_by_one() -> None:
    """Of two layers of three transformer blocks each, every one but the first keeps its input; so does the head."""
    module, _ = layered("gpt", 4, 2, depth=6)
    Rematerialize().apply(module, [])
    module = replicated(module, 1)
    Split().apply(module, [])
    assert kept(read_main(module)) == [(2, 16, 32)] * 6


@pytest.mark.parametrize("layers", [4, 5, 7])
def test_what_a_block_ends_with_does_not_run_again(layers: int) -> None:
    """Of a transformer's block the second product of the feed-forward network has most work of those that need not run
    again: wherever layers begin in blocks, only those do that a layer divides from the rest of their block."""
    module, _ = layered("gpt", 4, layers, depth=6)
    before = ends_of_networks(module)
    Rematerialize().apply(module, [])
    assert ends_of_networks(module) - before <= 1


def test_layers_of_a_stage_keep_their_inputs() -> None:
    module, _ = layered("mlp", 4, 3, depth=6)
    Rematerialize().apply(module, [])
    module = replicated(module, 1)
    Split().apply(module, [])
    assert kept(read_main(module)) == [(4, 32), (4, 32)]


def test_forward_work_is_done_twice_in_the_chosen_layers_alone() -> None:
    module, _ = layered("mlp", 4, 3, depth=6)
    before = [products(module, "backward", k) for k in range(3)]
    Rematerialize(layers="0,2").apply(module, [])
    added = [products(module, "backward", k) - before[k] for k in range(3)]
    assert added == [products(module, "forward", 0), 0, products(module, "forward", 2)]
    assert list(ir.DenseI64ArrayAttr(module.operation.attributes[alpa.REMAT])) == [0, 2]


def test_xla_does_not_find_out() -> None:
    """The backward function of a stage of three layers runs all products that stand in it."""
    module, _ = layered("mlp", 2, 3, depth=6)
    Rematerialize().apply(module, [])
    module = replicated(module, 1)
    Split().apply(module, [])
    function = extract(module, "stage_0_backward")
    compiled = Compiler().compile(function, jax_mesh(Mesh.from_shape("stage_0", (1,)), jax.devices()[:1]))
    text = compiled.as_text()
    assert text is not None
    assert len(re.findall(r" dot\(", text)) == function.text.count("stablehlo.dot_general") == 17


def test_stages_cost_more_and_hold_less() -> None:
    found = []
    for layers in ("none", "full"):
        module, _ = layered("gpt", 4, 2)
        run_pipeline(module, parse_pipeline(f"alpa-remat{{layers={layers}}}"), [])
        run_pipeline(module, parse_pipeline("alpa-stages{cluster=cpu devices-per-node=2 stages=2},alpa-shard"), [])
        run_pipeline(module, parse_pipeline("alpa-split,alpa-price,alpa-schedule{kind=gpipe}"), [])
        entries = [ir.DictAttr(a) for a in ir.ArrayAttr(module.operation.attributes[alpa.STAGES])]
        seconds = sum(float(ir.FloatAttr(e["microbatch_seconds"]).value) for e in entries)
        peaks = [int(ir.IntegerAttr(e["peak_bytes"]).value) for e in entries]
        planned = [int(ir.IntegerAttr(e["memory_bytes"]).value) for e in entries]
        found.append((seconds, peaks, planned))
    (quick, much, much_planned), (slow, little, little_planned) = found
    assert slow > 1.1 * quick
    assert little[0] < 0.6 * much[0] and little[1] < 0.8 * much[1]
    assert sum(little_planned) < sum(much_planned)


def test_inference_and_errors() -> None:
    module, _ = layered("mlp", 2, 2, train=False)
    before = print_module(module)
    Rematerialize().apply(module, [])
    del module.operation.attributes[alpa.REMAT]
    assert print_module(module) == before
    with pytest.raises(CompileError, match="no layer 4 to rematerialise: the layers are 0 to 1"):
        Rematerialize(layers="0,4").apply(module, [])
    for text in ("some", "1-0"):
        with pytest.raises(CompileError, match=f"full, none, or numbers such as 0-3,5, not '{text}'"):
            Rematerialize(layers=text).apply(module, [])
    alpa.set_string(module.operation, alpa.LEVEL, "normal")
    with pytest.raises(CompileError, match="run alpa-layers first"):
        Rematerialize().apply(module, [])
