"""Splitting each op into parts and joining the parts gives the whole op's result, on one device."""

import jax
import numpy as np
import pytest
from jax.extend import backend
from jaxlib import _jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from alpa_mlir.dialect.context import functions, make_context, op_id, print_module
from alpa_mlir.dialect.factors import PASS, OpFactors, read_factors, shape_of, splittable
from alpa_mlir.passes.local.shrink import cut, integer, shrink_op, tensor_type

MODULES = {
    "iota": "%r = stablehlo.iota dim = 0 : tensor<8x6xi32>",
    "iota_float": "%r = stablehlo.iota dim = 1 : tensor<4x8xf32>",
    "constant": "%r = stablehlo.constant dense<[[1, 2], [3, 4], [5, 6], [7, 8]]> : tensor<4x2xi32>",
    "splat": "%r = stablehlo.constant dense<3.5> : tensor<8x2xf32>",
    "slice": "%r = stablehlo.slice %a [0:8, 1:6:2] : (tensor<8x6xf32>) -> tensor<8x3xf32>",
    "dynamic_slice": "%r = stablehlo.dynamic_slice %a, %i, %j, sizes = [8, 3] "
    ": (tensor<8x6xf32>, tensor<i32>, tensor<i32>) -> tensor<8x3xf32>",
    "gather": '%r = "stablehlo.gather"(%a, %ids) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], '
    "collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, slice_sizes = array<i64: 1, 6>}> "
    ": (tensor<8x6xf32>, tensor<4x1xi32>) -> tensor<4x6xf32>",
    "convolution": "%r = stablehlo.convolution(%img, %ker) dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f], "
    "window = {pad = [[1, 1], [1, 1]]} {batch_group_count = 1 : i64, feature_group_count = 4 : i64} "
    ": (tensor<4x5x5x8xf32>, tensor<3x3x2x8xf32>) -> tensor<4x5x5x8xf32>",
    "reduce": "%z = stablehlo.constant dense<0.0> : tensor<f32>  "
    "%r = stablehlo.reduce(%a init: %z) applies stablehlo.add across dimensions = [1] "
    ": (tensor<8x6xf32>, tensor<f32>) -> tensor<8xf32>",
    "dot": "%r = stablehlo.dot_general %a, %a, contracting_dims = [1] x [1] "
    ": (tensor<8x6xf32>, tensor<8x6xf32>) -> tensor<8x8xf32>",
    "broadcast": "%r = stablehlo.broadcast_in_dim %a, dims = [0, 2] : (tensor<8x6xf32>) -> tensor<8x4x6xf32>",
    "reshape": "%r = stablehlo.reshape %a : (tensor<8x6xf32>) -> tensor<2x4x6xf32>",
}
HEAD = (
    "func.func public @main(%a: tensor<8x6xf32>, %i: tensor<i32>, %j: tensor<i32>, %ids: tensor<4x1xi32>, "
    "%img: tensor<4x5x5x8xf32>, %ker: tensor<3x3x2x8xf32>)"
)
RESULT = {
    "iota": "8x6xi32", "iota_float": "4x8xf32", "constant": "4x2xi32", "splat": "8x2xf32", "slice": "8x3xf32",
    "dynamic_slice": "8x3xf32", "gather": "4x6xf32", "convolution": "4x5x5x8xf32", "reduce": "8xf32", "dot": "8x8xf32",
    "broadcast": "8x4x6xf32", "reshape": "2x4x6xf32",
}  # fmt: skip


def arguments() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    draw = lambda *s: rng.standard_normal(s).astype(np.float32)  # noqa: E731
    return [
        draw(8, 6),
        np.int32(0),
        np.int32(2),
        np.array([[3], [7], [0], [3]], np.int32),
        draw(4, 5, 5, 8),
        draw(3, 3, 2, 8),
    ]


def run(module: ir.Module) -> np.ndarray:
    device = jax.devices("cpu")[0]
    program = device.client.compile_and_load(
        print_module(module), _jax.DeviceList((device,)), backend.get_compile_options(1, 1)
    )
    inputs = [jax.device_put(v, device) for v in arguments()]
    return np.asarray(program.execute_sharded(inputs).disassemble_into_single_device_arrays()[0][0])


def parse(name: str) -> ir.Module:
    text = f"{HEAD} -> tensor<{RESULT[name]}> {{ {MODULES[name]}  return %r : tensor<{RESULT[name]}> }}"
    return ir.Module.parse(text, make_context())


def op_under_test(module: ir.Module) -> tuple[ir.Operation, OpFactors]:
    """The op whose result @main returns, and its factors."""
    function = functions(module)["main"]
    *_, end = function.regions[0].blocks[0].operations
    op = end.operation.operands[0].owner.operation
    return op, read_factors(function)[op_id(op)]


def split_in_two(module: ir.Module, factor: int) -> None:
    """Replace the op under test by two halves along `factor`, concatenated where it stands in the result."""
    op, factors = op_under_test(module)
    ip, halves = ir.InsertionPoint(op), []
    dim = next(d for d, fs in enumerate(factors.results[0]) if factor in fs)
    shape = shape_of(op.results[0])
    local = tuple(n // 2 if d == dim else n for d, n in enumerate(shape))
    with ip, op.location:
        scalar = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
        for part in (0, 1):
            operands = [
                half(v, m, factor, part, scalar, ip) for v, m in zip(op.operands, factors.operands, strict=True)
            ]
            start = integer(part * local[dim], scalar)
            halves += shrink_op(op, operands, [local], ip, {dim: start}.get)
        joined = stablehlo.concatenate(halves, dim)
    op.results[0].replace_all_uses_with(joined)
    assert module.operation.verify()


def half(value: ir.Value, mapping, factor: int, part: int, scalar: ir.Type, ip: ir.InsertionPoint) -> ir.Value:
    local = [n // 2 if factor in fs else n for n, fs in zip(shape_of(value), mapping, strict=True)]
    starts = {d: integer(part * local[d], scalar) for d, fs in enumerate(mapping) if factor in fs}
    return cut(value, local, starts, ip, ir.Location.unknown(value.context)) if starts else value


def cases() -> list[tuple[str, int]]:
    found = []
    for name in MODULES:
        module = parse(name)
        _, factors = op_under_test(module)
        majors = [fs[0] for fs in factors.results[0] if fs]
        found += [(name, f) for f in majors if factors.kinds[f] == PASS and splittable(factors, f, 2)]
    return found


@pytest.mark.parametrize(("name", "factor"), cases())
def test_two_halves_make_the_whole(name: str, factor: int) -> None:
    expected = run(parse(name))
    module = parse(name)
    split_in_two(module, factor)
    np.testing.assert_allclose(run(module), expected, rtol=1e-5)


def test_unshrunk_results_keep_their_type() -> None:
    module = parse("dot")
    op, _ = op_under_test(module)
    with op.context:
        (result,) = shrink_op(op, list(op.operands), [(8, 8)], ir.InsertionPoint(op), lambda _: None)
    assert result.type == op.results[0].type == tensor_type((8, 8), op.results[0])
