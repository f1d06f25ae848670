"""Meshes and shardings: groups, local shapes, and the round trip through MLIR text."""

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh, declare_mesh, meshes_of
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    op_shardings,
    read_sharding,
    set_argument_attributes,
    set_op_shardings,
    sharding_attribute,
    value_sharding,
)

MODULE = """
func.func public @main(%a: tensor<8x8xf32>) -> tensor<8x8xf32> {
  %0 = stablehlo.add %a, %a : tensor<8x8xf32>
  return %0 : tensor<8x8xf32>
}
"""


def test_groups_join_the_devices_that_differ_only_along_the_axes():
    mesh = Mesh.from_shape("m", (2, 3))
    assert mesh.groups(("x",)) == [[0, 3], [1, 4], [2, 5]]
    assert mesh.groups(("y",)) == [[0, 1, 2], [3, 4, 5]]
    assert mesh.groups(("y", "x")) == [[0, 3, 1, 4, 2, 5]]
    assert mesh.groups(("x", "y")) == [[0, 1, 2, 3, 4, 5]]


def test_a_mesh_survives_the_ir():
    module = parse_module(MODULE, make_context())
    meshes = [Mesh.from_shape("stage_0", (2, 2)), Mesh.from_shape("stage_1", (4,))]
    for mesh in meshes:
        declare_mesh(module, mesh)
    assert list(meshes_of(module).values()) == meshes
    declare_mesh(module, Mesh.from_shape("stage_0", (8,)))
    assert meshes_of(module)["stage_0"].shape == (8,)
    assert module.operation.verify()


@pytest.mark.parametrize("shape", [(), (2, 2, 2, 2), (0,)])
def test_impossible_mesh_shapes_are_refused(shape):
    with pytest.raises(CompileError):
        Mesh.from_shape("m", shape)


def test_a_sharding_survives_the_ir():
    context = make_context()
    module = parse_module(MODULE, context)
    declare_mesh(module, Mesh.from_shape("stage_0", (2, 2)))
    main = functions(module)["main"]
    add = main.regions[0].blocks[0].operations[0].operation
    wanted = Sharding(((), ("x",)), ("y",))
    set_op_shardings(add, [wanted], "stage_0")
    entries = argument_attributes(main)
    entries[0][SHARDING] = sharding_attribute(Sharding((("x", "y"), ())), "stage_0", context)
    set_argument_attributes(main, entries)
    again = parse_module(print_module(module), context)
    op = functions(again)["main"].regions[0].blocks[0].operations[0].operation
    assert op_shardings(op) == ("stage_0", (wanted,))
    assert value_sharding(op.results[0]) == ("stage_0", wanted)
    assert value_sharding(op.operands[0]) == ("stage_0", Sharding((("x", "y"), ())))


def test_sub_axes_are_refused():
    context = make_context()
    attribute = ir.Attribute.parse('#sdy.sharding<@m, [{"x":(1)2}, {}]>', context)
    with pytest.raises(CompileError, match="sub-axes"):
        read_sharding(attribute)


def test_local_shapes_divide_by_the_extent_of_the_axes():
    mesh = Mesh.from_shape("m", (2, 3))
    assert Sharding((("x", "y"), ())).local_shape((12, 5), mesh) == (2, 5)
    assert not Sharding((("y",), ())).divides((4, 4), mesh)
    with pytest.raises(CompileError, match="not divisible by 3"):
        Sharding((("y",), ())).local_shape((4, 4), mesh)


def test_a_clone_prints_the_same_and_is_independent():
    module = parse_module(MODULE, make_context())
    copy = clone_module(module)
    assert print_module(copy) == print_module(module)
    declare_mesh(copy, Mesh.from_shape("m", (2,)))
    assert print_module(copy) != print_module(module)


@pytest.mark.parametrize(
    "source", [b"", b"   ", b"hello", b"func.func @x( {", b"\xff\xfe", b"ML\xefR", b"ML\xefR\x0dStableHLO_v1.0.0\x00x"]
)
def test_broken_input_is_one_located_error(source):
    with pytest.raises(CompileError) as caught:
        parse_module(source, make_context(), "bad.mlir")
    assert str(caught.value).count("error:") >= 1
