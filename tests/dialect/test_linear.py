"""Which ops are linear in which operands, on ops read from text."""

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, make_context
from alpa_mlir.dialect.linear import copied_operands, is_linear, is_zero

OPS = """
func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>, %h: tensor<4xbf16>,
                %c: tensor<4xcomplex<f32>>, %i: tensor<4xi32>, %p: tensor<4xi1>, %at: tensor<i32>) {
  %zero = stablehlo.constant dense<0.0> : tensor<f32>
  %zeros = stablehlo.broadcast_in_dim %zero, dims = [] : (tensor<f32>) -> tensor<4xf32>
  %false = stablehlo.constant dense<false> : tensor<4xi1>
  %ones = stablehlo.constant dense<1.0> : tensor<4xf32>
  OP
  return
}
"""
IS_LINEAR = [
    ("stablehlo.add %a, %b : tensor<4xf32>", {0, 1}, True),
    ("stablehlo.add %a, %b : tensor<4xf32>", {0}, False),
    ("stablehlo.add %a, %zeros : tensor<4xf32>", {0}, True),
    ("stablehlo.add %a, %ones : tensor<4xf32>", {0}, False),
    ("stablehlo.add %p, %p : tensor<4xi1>", {0, 1}, False),
    ("stablehlo.multiply %a, %b : tensor<4xf32>", {1}, True),
    ("stablehlo.multiply %a, %b : tensor<4xf32>", {0, 1}, False),
    ("stablehlo.divide %a, %b : tensor<4xf32>", {0}, True),
    ("stablehlo.divide %a, %b : tensor<4xf32>", {1}, False),
    ("stablehlo.divide %c, %c : tensor<4xcomplex<f32>>", {0}, True),
    ("stablehlo.divide %i, %i : tensor<4xi32>", {0}, False),
    ("stablehlo.convert %h : (tensor<4xbf16>) -> tensor<4xf32>", {0}, True),
    ("stablehlo.convert %h : (tensor<4xbf16>) -> tensor<4xf16>", {0}, False),
    ("stablehlo.convert %a : (tensor<4xf32>) -> tensor<4xbf16>", {0}, False),
    ("stablehlo.convert %a : (tensor<4xf32>) -> tensor<4xcomplex<f64>>", {0}, True),
    ("stablehlo.convert %c : (tensor<4xcomplex<f32>>) -> tensor<4xcomplex<f64>>", {0}, True),
    ("stablehlo.convert %i : (tensor<4xi32>) -> tensor<4xi64>", {0}, False),
    ("stablehlo.select %p, %a, %zeros : tensor<4xi1>, tensor<4xf32>", {1}, True),
    ("stablehlo.select %p, %a, %b : tensor<4xi1>, tensor<4xf32>", {1}, False),
    ("stablehlo.dynamic_slice %a, %at, sizes = [2] : (tensor<4xf32>, tensor<i32>) -> tensor<2xf32>", {1}, False),
    ("stablehlo.tanh %a : tensor<4xf32>", {0}, False),
]


MODULES = []  # Ops do not keep their module alive.


def ops(op: str) -> list[ir.Operation]:
    module = ir.Module.parse(OPS.replace("OP", f"%r = {op}"), make_context())
    MODULES.append(module)
    return [o.operation for o in functions(module)["main"].regions[0].blocks[0].operations]


@pytest.mark.parametrize(("op", "partial", "expected"), IS_LINEAR)
def test_linear_in_the_partial_operands(op, partial, expected):
    assert is_linear(ops(op)[-2], frozenset(partial)) == expected


def test_the_caller_may_know_more_zeros():
    add = ops("stablehlo.add %a, %b : tensor<4xf32>")[-2]
    assert is_linear(add, frozenset((0,)), zeros=frozenset((1,)))
    assert not is_linear(add, frozenset((0,)), zeros=frozenset((0,)))
    known = ops("stablehlo.add %a, %zeros : tensor<4xf32>")[-2]
    assert not is_linear(known, frozenset((0,)), zeros=frozenset())


def test_zeros_are_numbers():
    zero, zeros, false, ones, *_ = ops("stablehlo.negate %a : tensor<4xf32>")
    assert [is_zero(op.results[0]) for op in (zero, zeros, false, ones)] == [True, True, False, False]


def test_copies():
    assert copied_operands(ops("stablehlo.select %p, %a, %b : tensor<4xi1>, tensor<4xf32>")[-2]) == {1, 2}
    assert copied_operands(ops("stablehlo.negate %a : tensor<4xf32>")[-2]) == frozenset()
