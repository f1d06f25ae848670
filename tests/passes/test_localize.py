"""Localised programs on virtual devices compute what the unsplit program computes on one."""

import random

import numpy as np
import on_devices
import pytest
from jaxlib.mlir import ir
from op_kinds import ROWS
from random_sharding import annotate
from small_programs import PROGRAMS, normalized

from alpa_mlir.dialect import staged_main
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.local.census import (
    Collective,
    compiled_collectives,
    planned_collectives,
    written_collectives,
)
from alpa_mlir.passes.localize import ExportToShardy, Localize

MESHES = [(4,), (2, 2), (2, 4), (2, 2, 2)]


def mesh_of(shape: tuple[int, ...]) -> Mesh:
    return Mesh.from_shape("stage_0", shape)


def localized(module: ir.Module) -> ir.Module:
    Localize().apply(module, [])
    assert module.operation.verify()
    return module


@pytest.mark.parametrize("number", range(len(PROGRAMS)), ids=list(PROGRAMS))
def test_random_strategies_of_programs(number):
    name = list(PROGRAMS)[number]
    rng = np.random.default_rng(number)
    whole = normalized(name, make_context())
    inputs = on_devices.random_inputs(whole, rng)
    expected = on_devices.run_all([whole], [inputs])[0]
    follow = 0.9 if number < 3 else 0.5
    for turn in range(2):
        mesh = mesh_of(MESHES[(number + turn) % len(MESHES)])
        module = normalized(name, make_context())
        annotate(module, functions(module)["main"], mesh, random.Random(turn), 0.2, follow)
        planned = planned_collectives(functions(module)["main"], mesh)
        localized(module)
        assert written_collectives(module.operation, mesh) == planned
        values = on_devices.as_addends(inputs, module, rng)
        found = on_devices.run_all([module], [values], mesh)[0]
        on_devices.assert_close(found, expected, f"{name} on {mesh.shape}", 2e-2 if name == "mlp" else 1e-4)


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_random_strategies_of_every_op_kind(shape):
    rng, dice, mesh = np.random.default_rng(0), random.Random(str(shape)), mesh_of(shape)
    context = make_context()
    plain = ("ij->ij", "ij,ij->ij") if shape != MESHES[1] else ()
    # XLA on CPU: no all-gather right after an fft, no initial value over dimensions of size one.
    refused = ("fft", "rfft", "reduce_add_init")
    rows = [row for row in ROWS if row.name not in refused and row.factors not in plain]
    whole = [row.module(context) for row in rows]
    inputs = [on_devices.random_inputs(m, rng) for m in whole]
    modules = []
    for row in rows:
        module = row.module(context)
        annotate(module, functions(module)["main"], mesh, dice)
        modules.append(localized(module))
    values = [on_devices.as_addends(v, m, rng) for v, m in zip(inputs, modules, strict=True)]
    expected = on_devices.run_all(whole, inputs)
    for row, a, b in zip(rows, on_devices.run_all(modules, values, mesh), expected, strict=True):
        narrow = "bf16" in row.name or row.name == "convert"
        on_devices.assert_close(a, b, f"{row.name} on {shape}", 2e-2 if narrow else 2e-5)


@pytest.mark.parametrize("name", ["transformer", "conv_net", "mixture"])
def test_both_partitioners_agree(name):
    rng, mesh = np.random.default_rng(1), mesh_of((2, 2))
    whole = normalized(name, make_context())
    inputs = on_devices.random_inputs(whole, rng)
    expected = on_devices.run_all([whole], [inputs])[0]
    ours, theirs = normalized(name, make_context()), normalized(name, make_context())
    for module in (ours, theirs):
        annotate(module, functions(module)["main"], mesh, random.Random(7), 0.0, 0.9)
    localized(ours)
    ExportToShardy().apply(theirs, [])
    assert theirs.operation.verify()
    assert "sdy.reshard " not in print_module(theirs)
    assert "unreduced" not in print_module(theirs)
    for module in (ours, theirs):
        on_devices.assert_close(on_devices.run_all([module], [inputs], mesh)[0], expected, name, 1e-4)


HEAD = 'sdy.mesh @m = <["x"=2, "y"=2]>\n'


def refusal(body: str) -> str:
    module = parse_module(HEAD + body, make_context())
    with pytest.raises(CompileError) as caught:
        Localize().apply(module, [])
    return str(caught.value)


def dot(lhs: str, rhs: str, result: str, size: int = 8) -> str:
    return (
        f"func.func @main(%a: tensor<{size}x8xf32> {{sdy.sharding = #sdy.sharding<@m, {lhs}>}}, "
        f"%b: tensor<8x8xf32> {{sdy.sharding = #sdy.sharding<@m, {rhs}>}}) -> (tensor<{size}x8xf32> "
        f"{{sdy.sharding = #sdy.sharding<@m, {result}>}}) {{\n"
        "%0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] "
        f"{{sdy.sharding = #sdy.sharding_per_value<[<@m, {result}>]>}} "
        f": (tensor<{size}x8xf32>, tensor<8x8xf32>) -> tensor<{size}x8xf32>\n"
        f"return %0 : tensor<{size}x8xf32> }}"
    )


def test_refuses_a_factor_split_two_ways():
    message = refusal(dot('[{}, {"x"}]', '[{"y"}, {}]', "[{}, {}]"))
    assert message.startswith("-:3:") and "(P1)" in message
    assert "dimension 1 of operand 0 is split over {x} but dimension 0 of operand 1 over {y}" in message


def test_refuses_a_result_split_otherwise():
    assert "(P1)" in refusal(dot('[{"x"}, {}]', "[{}, {}]", '[{"y"}, {}]'))


def test_refuses_a_partial_result_without_partial_sums():
    assert "cannot be partial over axis 'y' (P4)" in refusal(dot("[{}, {}]", "[{}, {}]", '[{}, {}], unreduced={"y"}'))


def test_refuses_a_split_over_an_axis_with_addends():
    message = refusal(dot('[{}, {}], unreduced={"x"}', '[{}, {"x"}]', '[{}, {"x"}]'))
    assert "axis 'x' splits dimension 1 of operand 1 while another operand is partial over it (P3)" in message


def test_unrelated_values_of_a_barrier_share_an_axis():
    kinds = [("8x4", '[{"x"}, {}]'), ("4x8", '[{}, {"x"}]')]
    values = ", ".join(f"<@m, {s}>" for _, s in kinds)
    args = [
        f"%{n}: tensor<{k}xf32> {{sdy.sharding = #sdy.sharding<@m, {s}>}}"
        for n, (k, s) in zip("ab", kinds, strict=True)
    ]
    results = [a.partition(": ")[2] for a in args]
    module = parse_module(
        f"{HEAD}func.func @main({', '.join(args)}) -> ({', '.join(results)}) {{\n"
        f"%0:2 = stablehlo.optimization_barrier {{sdy.sharding = #sdy.sharding_per_value<[{values}]>}} %a, %b "
        ": tensor<8x4xf32>, tensor<4x8xf32>\nreturn %0#0, %0#1 : tensor<8x4xf32>, tensor<4x8xf32> }",
        make_context(),
    )
    assert "optimization_barrier %arg2, %arg3 : tensor<4x4xf32>, tensor<4x4xf32>" in print_module(localized(module))


def test_xla_runs_the_planned_collectives():
    mesh = Mesh("m", (("x", 2), ("y", 2)))
    module = parse_module(HEAD + dot('[{"x"}, {"y"}]', '[{"y"}, {}]', '[{"x"}, {"y"}]'), make_context())
    planned = planned_collectives(functions(module)["main"], mesh)
    text = on_devices.compile_all([localized(module)], mesh).as_text()
    assert compiled_collectives(text, mesh) == planned == [Collective("reduce_scatter", ("y",), 4 * 4 * 4)]


def test_sums_over_several_axes_are_scattered_onto_a_dimension_at_once():
    rng, mesh = np.random.default_rng(2), Mesh("m", (("x", 2), ("y", 2)))
    text = HEAD + dot('[{}, {"x", "y"}]', '[{"x", "y"}, {}]', '[{}, {"x", "y"}]')
    module = parse_module(text, make_context())
    values = on_devices.random_inputs(module, rng)
    planned = planned_collectives(functions(module)["main"], mesh)
    assert planned == [Collective("reduce_scatter", ("x", "y"), 8 * 2 * 4)]
    assert written_collectives(localized(module).operation, mesh) == planned
    found = on_devices.run_all([module], [values], mesh)[0]
    on_devices.assert_close(found, [values[0] @ values[1]], "a product", 1e-5)


def test_refuses_what_does_not_divide():
    assert "7 is not divisible by 2" in refusal(dot('[{"x"}, {}]', "[{}, {}]", '[{"x"}, {}]', size=7))


def test_refuses_an_op_without_sharding():
    body = 'func.func @main(%a: tensor<8xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}]>}) -> tensor<8xf32> {\n'
    assert "-:3:7: error: stablehlo.tanh has no sdy.sharding" in refusal(
        body + " %0 = stablehlo.tanh %a : tensor<8xf32>\nreturn %0 : tensor<8xf32> }"
    )


def test_refuses_a_nonlinear_use_of_a_partial_value():
    sharding = '<@m, [{}], unreduced={"x"}>'
    body = f"func.func @main(%a: tensor<8xf32> {{sdy.sharding = #sdy.sharding{sharding}}}) -> tensor<8xf32> {{\n"
    op = f"%0 = stablehlo.tanh %a {{sdy.sharding = #sdy.sharding_per_value<[{sharding}]>}} : tensor<8xf32>\n"
    assert "partial over axis 'x' and stablehlo.tanh is not linear in it (P6)" in refusal(
        body + op + "return %0 : tensor<8xf32> }"
    )


SPLIT = '''
sdy.mesh @stage_0 = <["x"=2, "y"=1]>
func.func private @stage_0_forward(%a: tensor<4x8xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{"x"}, {}]>})
    -> (tensor<8xf32> {sdy.sharding = #sdy.sharding<@stage_0, [{}], unreduced={"x"}>}) attributes {mesh_shape = #sdy.mesh<["x"=2, "y"=1]>} {
  %z = stablehlo.constant {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, []>]>} dense<0.0> : tensor<f32>
  %0 = stablehlo.reduce(%a init: %z) applies stablehlo.add across dimensions = [0]
    {sdy.sharding = #sdy.sharding_per_value<[<@stage_0, [{}], unreduced={"x"}>]>} : (tensor<4x8xf32>, tensor<f32>) -> tensor<8xf32>
  return %0 : tensor<8xf32>
}
func.func public @main(%x: !mpmd.mesh_tensor<"stage_0", tensor<8x8xf32>, sharding=<@stage_0, [{"x"}, {}]>>)
    -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>, sharding=<@stage_0, [{}], unreduced={"x"}>>
    attributes {topology = #mpmd.topology<<"stage_0" : <["x"=2, "y"=1]>>>} {
  %b = "alpa.microbatch"(%x) {alpa.dim = 0 : i64, alpa.id = 0 : i64} : (!mpmd.mesh_tensor<"stage_0", tensor<8x8xf32>, sharding=<@stage_0, [{"x"}, {}]>>)
    -> !mpmd.mesh_tensor<"stage_0", tensor<4x8xf32>, sharding=<@stage_0, [{"x"}, {}]>>
  %f = mpmd.fragment_call<mesh="stage_0", origin=["forward"]> @stage_0_forward(%b) {alpa.id = 1 : i64, alpa.phase = "forward", alpa.stage = 0 : i64}
    : (!mpmd.mesh_tensor<"stage_0", tensor<4x8xf32>, sharding=<@stage_0, [{"x"}, {}]>>)
    -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>, sharding=<@stage_0, [{}], unreduced={"x"}>>
  %s = "alpa.accumulate"(%f) {alpa.id = 2 : i64} : (!mpmd.mesh_tensor<"stage_0", tensor<8xf32>, sharding=<@stage_0, [{}], unreduced={"x"}>>)
    -> !mpmd.mesh_tensor<"stage_0", tensor<8xf32>, sharding=<@stage_0, [{}], unreduced={"x"}>>
  return %s : !mpmd.mesh_tensor<"stage_0", tensor<8xf32>, sharding=<@stage_0, [{}], unreduced={"x"}>>
}
'''  # fmt: skip  # noqa: E501


def test_partial_boundaries_of_a_split_module():
    module = localized(parse_module(SPLIT, make_context()))
    main = staged_main.read_main(module)
    kind = main.type_of(main.results[0])
    assert kind.shape == (2, 8) and kind.sharding.dims == (("x",), ()) and not kind.sharding.partial
    assert main.arguments[0].type.shape == (8, 8)
    module = parse_module(SPLIT, make_context())
    ExportToShardy().apply(module, [])
    assert module.operation.verify()
    assert staged_main.read_main(module).type_of(main.results[0]).shape == (8,)


def test_localizing_twice_changes_nothing():
    module = localized(parse_module(SPLIT, make_context()))
    once = print_module(module)
    assert print_module(localized(module)) == once


def test_same_input_same_bytes():
    def text() -> str:
        module = normalized("mixture", make_context())
        annotate(module, functions(module)["main"], mesh_of((2, 2)), random.Random(3))
        return print_module(localized(module))

    assert text() == text()


def stage_text(stage: int, sharding: str) -> str:
    mesh = f"@stage_{stage}"
    return f"""
  func.func private @stage_{stage}_forward(
      %x: tensor<4x8xf32> {{sdy.sharding = #sdy.sharding<{mesh}, [{{}}, {{"x"}}]>}},
      %w: tensor<8x4xf32> {{sdy.sharding = #sdy.sharding<{mesh}, [{{"x"}}, {{}}]>}})
      -> (tensor<4x4xf32> {{sdy.sharding = #sdy.sharding<{mesh}, [{sharding}]>}}) {{
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
      {{sdy.sharding = #sdy.sharding_per_value<[<{mesh}, [{sharding}]>]>}}
      : (tensor<4x8xf32>, tensor<8x4xf32>) -> tensor<4x4xf32>
    return %0 : tensor<4x4xf32>
  }}"""


def test_equal_stages_are_localized_alike() -> None:
    """A stage that equals another but for names comes out as it does alone; one that differs is no copy."""
    meshes = [f'  sdy.mesh @stage_{s} = <["x"=2]>' for s in (1, 10, 2)]
    bodies = [stage_text(1, "{}, {}"), stage_text(10, "{}, {}"), stage_text(2, '{"x"}, {}')]
    together = localized(parse_module("\n".join(["module {", *meshes, *bodies, "}"]), make_context()))
    for body, stage in zip(bodies, (1, 10, 2), strict=True):
        alone = localized(parse_module("\n".join(["module {", *meshes, body, "}"]), make_context()))
        name = f"stage_{stage}_forward"
        assert str(functions(together)[name]) == str(functions(alone)[name])
    assert list(functions(together)) == ["stage_1_forward", "stage_10_forward", "stage_2_forward"]
    assert "all_reduce" in str(functions(together)["stage_10_forward"])
    assert "reduce_scatter" in str(functions(together)["stage_2_forward"])
