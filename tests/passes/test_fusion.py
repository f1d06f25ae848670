"""What fused ops move through memory (rules T1 to T3), on small functions by hand."""

from __future__ import annotations

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.passes.costs.fusion import Traffic
from alpa_mlir.passes.intra.program_reader import read_program

WIDE, NARROW = "tensor<8x32xf32>", "tensor<8xf32>"
PRODUCT = (
    f"stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : (tensor<8x16xf32>, tensor<16x32xf32>) -> {WIDE}"
)


def moved(body: str, result: str, kind: str = WIDE) -> dict[str, Traffic]:
    """Traffic by the op's result in a function of %a, %b with constants %low, %zero."""
    lines = [line.strip() for line in body.strip().splitlines()]
    text = f"""
      func.func @main(%a: tensor<8x16xf32>, %b: tensor<16x32xf32>) -> {kind} {{
        %low = stablehlo.constant dense<-1.0e9> : tensor<f32>
        %zero = stablehlo.constant dense<0.0> : tensor<f32>
        {chr(10).join(lines)}
        return {result} : {kind}
      }}"""
    ops = read_program(parse_module(text, make_context())).ops[2:]
    return {line.split()[0]: op.kind.traffic for line, op in zip(lines, ops, strict=True)}


def reduced(value: str, reducer: str, init: str, dim: int = 1) -> str:
    result = NARROW if dim == 1 else "tensor<32xf32>"
    return (
        f"stablehlo.reduce({value} init: {init}) applies stablehlo.{reducer} across dimensions = [{dim}] "
        f": ({WIDE}, tensor<f32>) -> {result}"
    )


def spread(value: str) -> str:
    return f"stablehlo.broadcast_in_dim {value}, dims = [0] : ({NARROW}) -> {WIDE}"


def test_t1_softmax_reads_its_operand_three_times_and_stores_the_quotient_alone() -> None:
    found = moved(
        f"""
        %x = {PRODUCT}
        %y = stablehlo.negate %x : {WIDE}
        %max = {reduced("%y", "maximum", "%low")}
        %m = {spread("%max")}
        %lower = stablehlo.subtract %y, %m : {WIDE}
        %exp = stablehlo.exponential %lower : {WIDE}
        %sum = {reduced("%exp", "add", "%zero")}
        %s = {spread("%sum")}
        %part = stablehlo.divide %exp, %s : {WIDE}
        """,
        "%part",
    )
    assert found["%x"] == Traffic((1.0, 1.0), (1.0,), 0.0)
    assert found["%y"] == Traffic((3.0,), (0.0,), 3.0)
    assert (found["%exp"].runs, found["%exp"].writes) == (2.0, (0.0,))
    assert found["%m"].reads == (2.0,) and found["%sum"].writes == (1.0,)
    assert found["%part"] == Traffic((0.0, 0.0), (1.0,), 1.0)


def normalised(more: str = "") -> dict[str, Traffic]:
    return moved(
        f"""
        %x = {PRODUCT}
        %z = {PRODUCT}
        %y = stablehlo.add %x, %z : {WIDE}
        %sum = {reduced("%y", "add", "%zero")}
        %m = {spread("%sum")}
        %d = stablehlo.subtract %y, %m : {WIDE}
        {more or f"%r = stablehlo.negate %d : {WIDE}"}
        """,
        "%r",
    )


def test_t1_a_value_is_stored_where_that_moves_less() -> None:
    """Of two operands: for two kernels both ways move four times its bytes, for three storing moves five, not six."""
    twice = normalised()
    assert (twice["%y"].reads, twice["%y"].writes) == ((2.0, 2.0), (0.0,))
    thrice = normalised(
        f"""%sum2 = {reduced("%d", "add", "%zero")}
        %m2 = {spread("%sum2")}
        %r = stablehlo.multiply %y, %m2 : {WIDE}"""
    )
    assert (thrice["%y"].reads, thrice["%y"].writes) == ((1.0, 1.0), (1.0,))


def test_t2_reductions_over_the_same_dimensions_read_together() -> None:
    for dim, times in ((1, 1.0), (0, 2.0)):
        kind = NARROW if dim == 1 else "tensor<32xf32>"
        found = moved(
            f"""
            %x = {PRODUCT}
            %one = {reduced("%x", "add", "%zero")}
            %two = {reduced("%x", "maximum", "%low", dim)}
            """,
            "%two",
            kind,
        )
        assert found["%one"].reads[0] + found["%two"].reads[0] == times


def test_t3_a_slice_reads_its_part_and_a_transpose_nothing() -> None:
    found = moved(
        f"""
        %x = {PRODUCT}
        %s = stablehlo.slice %x [0:8, 0:4] : ({WIDE}) -> tensor<8x4xf32>
        %n = stablehlo.negate %s : tensor<8x4xf32>
        %t = stablehlo.transpose %n, dims = [1, 0] : (tensor<8x4xf32>) -> tensor<4x8xf32>
        """,
        "%t",
        "tensor<4x8xf32>",
    )
    assert found["%s"].read_bytes([1024.0], [128.0]) == 128.0
    assert found["%n"].writes == (1.0,)
    assert found["%t"].is_fused and found["%t"].reads == (0.0,)


def test_what_another_phase_needs_is_stored_or_computed_again() -> None:
    """The negative of a product is as large as the product: kept; a broadcast is larger than its operand: repeated."""
    forward, backward = ('{alpa.phase = "forward"}', '{alpa.phase = "backward"}')
    found = moved(
        f"""
        %x = {PRODUCT.replace(" : (", f" {forward} : (")}
        %n = stablehlo.negate %x {forward} : {WIDE}
        %sum = {reduced("%n", "add", "%zero").replace(" : (", f" {forward} : (")}
        %s = {spread("%sum").replace(" : (", f" {forward} : (")}
        %y = stablehlo.add %n, %s {forward} : {WIDE}
        %g = stablehlo.multiply %n, %s {backward} : {WIDE}
        """,
        "%g",
    )
    assert found["%n"].writes == (1.0,) and found["%s"].writes == (0.0,)
    assert found["%s"].runs == 1.0  # %y is not used
    assert found["%g"] == Traffic((1.0, 0.0), (1.0,), 1.0)
