"""What users decide is kept, and what cannot be kept is said with the constraints to blame."""

from __future__ import annotations

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import SHARDING, Sharding, argument_attributes, op_shardings, read_sharding
from alpa_mlir.passes.check import CheckShardings
from alpa_mlir.passes.intra.batch import find_batch
from alpa_mlir.passes.intra.constraints import AxisMode, DimPattern, Pattern, Pin, parse_constraints
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.program import Source
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.restrictions import restrict
from alpa_mlir.passes.intra.rules import InResults, obeying
from alpa_mlir.passes.intra.strategies import Strategy
from alpa_mlir.passes.intra.words import needed_text
from alpa_mlir.passes.normalize import Normalize
from alpa_mlir.passes.shard import Shard

STEP = """
func.func public @main(%w: tensor<8x8xf32>, %m: tensor<8x8xf32>, %x: tensor<16x8xf32>)
    -> (tensor<8x8xf32>, tensor<8x8xf32>, tensor<16x8xf32>) {
  %half = stablehlo.convert %w : (tensor<8x8xf32>) -> tensor<8x8xbf16> loc("cast")
  %a = stablehlo.convert %x : (tensor<16x8xf32>) -> tensor<16x8xbf16>
  %y = stablehlo.dot_general %a, %half, contracting_dims = [1] x [0]
    : (tensor<16x8xbf16>, tensor<8x8xbf16>) -> tensor<16x8xf32> loc("forward/dot")
  %g = stablehlo.dot_general %x, %y, contracting_dims = [0] x [0]
    : (tensor<16x8xf32>, tensor<16x8xf32>) -> tensor<8x8xf32> loc("backward/dot")
  %n = stablehlo.add %m, %g : tensor<8x8xf32> loc("moment")
  %v = stablehlo.subtract %w, %n : tensor<8x8xf32> loc("update")
  return %v, %n, %y : tensor<8x8xf32>, tensor<8x8xf32>, tensor<16x8xf32>
}
"""


def step() -> ir.Module:
    module = parse_module(STEP, make_context())
    Normalize(state_args="0-1", batch_args="2").apply(module, [])
    return module


def planned(constrain: str, mesh: str = "2", memory: str = "") -> dict[str, Sharding]:
    """The shardings of arguments, and of ops by the names of their locations, in the best plan."""
    module = step()
    Shard(mesh=mesh, cluster="cpu", constrain=constrain, memory=memory).apply(module, [])
    CheckShardings().apply(module, [])
    main = functions(module)["main"]
    found = {f"arg{i}": read_sharding(e[SHARDING])[1] for i, e in enumerate(argument_attributes(main))}
    for op in main.regions[0].blocks[0].operations:
        shardings = op_shardings(op)
        if op.operation.name != "sdy.reshard" and shardings is not None and isinstance(op.location, ir.NameLoc):
            found[op.location.name_str] = shardings[1][0]
    return found


def dims(*axes: str) -> Sharding:
    return Sharding(tuple(tuple(a) for a in axes))


def test_the_language() -> None:
    found = parse_constraints("arg3,5-6=[{x}, {y,?}]; out0=[]; value(jit(f)/dot*)=[{!x}]; y=zero2")
    whole = Pattern((DimPattern(("x",)), DimPattern(("y",), open=True)))
    assert [(c.what, c.number, c.pattern) for c in found[:3] if isinstance(c, Pin)] == [
        ("arg", 3, whole),
        ("arg", 5, whole),
        ("arg", 6, whole),
    ]
    assert isinstance(found[3], Pin) and (found[3].what, found[3].pattern) == ("out", Pattern(()))
    assert isinstance(found[4], Pin) and found[4].name == "jit(f)/dot*"
    assert str(found[4].pattern) == "[{!x}]" and found[4].where == "constrain:1:33"
    assert found[5] == AxisMode("y=zero2", "constrain:1:60", "y", "zero2")


@pytest.mark.parametrize(
    ("pattern", "axes", "allowed"),
    [("{x}", "x", True), ("{x}", "xy", False), ("{x,?}", "xy", True), ("{x,?}", "yx", False), ("{?}", "", True),
     ("{!x}", "y", True), ("{!x}", "yx", False), ("{y,!x}", "y", True), ("{y,!x}", "z", False), ("{}", "x", False)],
)  # fmt: skip
def test_patterns(pattern: str, axes: str, allowed: bool) -> None:
    (pin,) = parse_constraints(f"arg0=[{pattern}]")
    assert isinstance(pin, Pin) and pin.pattern.allows(dims(axes)) is allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arg0", r"constrain:1:1: error: a constraint is written subject=what"),
        ("x=data; arg=[{x}]", r"constrain:1:9: error: 'arg' is no arg0, out0, arg\(name\), value\(name\) or axis"),
        ("x=pipeline", "an axis may be data, zero1, zero2, zero3, tensor"),
        ("arg0=[{x}", "one pair of braces a dimension"),
        ("arg0=[{x},{x}]", "an axis splits one dimension only"),
        ("arg0=[{?,x}]", "axes stand before '\\?'"),
        ("arg0=[{0}]", "'0' is no axis"),
        ("arg5-3=[{x}]", "5-3 is no list of numbers"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        parse_constraints(text)


def test_the_batch_is_found_from_the_factors() -> None:
    program = read_program(step())
    batch = find_batch(program)
    names = {op.op.location.name_str: op.number for op in program.ops if isinstance(op.op.location, ir.NameLoc)}
    assert batch.parameters == {"arg:0"}
    assert batch.before == {names["cast"]}
    assert batch.summed == {names["backward/dot"]}
    assert {n for n in names if names[n] in batch.factors} == {"forward/dot", "backward/dot"}
    assert program.slots["arg:2"].batch_dim == 0 and program.ops[names["moment"]].operands[0] == Source(-1, 0, "arg:1")


def test_pins_are_kept() -> None:
    found = planned("arg0=[{y},{x}]; value(forward/dot)=[{},{y,x}]; arg1=[{!x},{?}]", "2x2")
    assert found["arg0"] == dims("y", "x") and found["forward/dot"] == dims("", "yx")
    assert "x" not in found["arg1"].dims[0]
    assert planned("out0=[{},{x}]")["arg0"] == dims("", "x")


def test_arguments_are_pinned_by_name() -> None:
    module = parse_module(
        STEP.replace("%w: tensor<8x8xf32>", '%w: tensor<8x8xf32> loc("layer/weight")'), make_context()
    )
    Normalize(state_args="0-1", batch_args="2").apply(module, [])
    program = read_program(module)
    mesh = [Mesh.from_shape("m", (2,))]
    found = restrict(program, mesh, parse_constraints("arg(layer/*)=[{x},{}]"))
    assert list(found.slots) == ["arg:0"]
    for name, message in (
        ("other*", "no argument is called other"),
        ("layer/*", "no argument of 1 dimensions is called"),
    ):
        with pytest.raises(CompileError, match=message):
            restrict(program, mesh, parse_constraints(f"arg({name})=[{{x}}]"))


def test_ways_to_use_an_axis() -> None:
    split = [dims("x", ""), dims("", "x")]
    for mode, moment, gradient, parameter in (
        ("data", False, False, False), ("zero1", True, False, False), ("zero2", True, True, False),
        ("zero3", True, True, True),
    ):  # fmt: skip
        found = planned(f"x={mode}")
        assert found["arg2"] == found["forward/dot"] == dims("x", "")
        assert (found["arg1"] in split, found["backward/dot"] in split, found["arg0"] in split) == (
            moment, gradient, parameter,
        )  # fmt: skip
    found = planned("x=tensor")
    assert "x" not in found["arg2"].dims[0] and "x" not in found["forward/dot"].dims[0]


def test_what_cannot_be_split_need_not_stay_a_sum_of_addends() -> None:
    """Under zero2 a loss may be whole: what it is added to may come whole from another stage. A gradient may not."""
    wanted = (InResults(parse_constraints("x=zero2")[0], "x"),)
    whole, addends, split = Sharding(((),)), Sharding(((),), ("x",)), Sharding((("x",),))
    scalar = [Strategy((), (), (s,), (s,), 0.0, 0.0) for s in (Sharding(()), Sharding((), ("x",)))]
    assert obeying(scalar, wanted) == scalar
    gradient = [Strategy((), (), (s,), (s,), 0.0, 0.0) for s in (whole, addends, split)]
    assert obeying(gradient, wanted) == gradient[1:]


def test_clashing_constraints_are_named() -> None:
    with pytest.raises(CompileError, match="constraints clash at arg:0: each can be kept, but not 2 together") as e:
        planned("arg0=[{x},{}]; arg2=[{x},{}]; arg0=[{},{?}]")
    assert [n.message for n in e.value.notes] == ["this one: arg0=[{x},{}]", "this one: arg0=[{},{?}]"]
    with pytest.raises(CompileError, match="constraints clash at arg:0") as e:
        planned("x=data; arg0=[{x},{}]")
    assert [n.message for n in e.value.notes] == ["this one: x=data", "this one: arg0=[{x},{}]"]


@pytest.mark.parametrize(
    ("constrain", "message"),
    [
        ("arg9=[{x}]", "@main uses no argument 9"),
        ("arg0=[{x}]", "arg0 has 2 dimensions, not 1"),
        ("arg0=[{z},{}]", r"there is no axis z \(x are\)"),
        ("y=data", "no mesh has an axis y of more than one device"),
        ("value(nothing)=[{x},{}]", "no op is called nothing"),
        ("value(update)=[{x}]", "no op of 1 dimensions is called update"),
    ],
)
def test_what_is_not_there(constrain: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        planned(constrain)


def test_a_pin_that_does_not_divide() -> None:
    with pytest.raises(CompileError, match=r"arg:0 cannot .* dimension 0 has size 8, which 3 devices along x do not"):
        planned("arg0=[{x},{}]", "3")


def test_too_little_memory_names_the_constraints_to_give_up() -> None:
    """Split, the three arguments take 128 + 128 + 256 bytes; pinned whole, the first two take 512 more."""
    with pytest.raises(CompileError, match=r"does not fit in 0\.0012 MB .* it needs at least") as e:
        planned("arg0=[{},{}]; arg1=[{},{}]; arg2=[{x},{}]", memory="1200")
    notes = [n if isinstance(n, str) else n.message for n in e.value.notes]
    assert any(n.startswith("alive at the peak: arg:0 f32[8, 8], 0.000256 MB") for n in notes)
    assert [n.partition(": ")[2] for n in notes if n.startswith("it would fit without")] in (
        ["arg0=[{},{}]"], ["arg1=[{},{}]"], ["arg0=[{},{}]", "arg1=[{},{}]"],
    )  # fmt: skip


def test_the_least_memory_does_and_less_does_not() -> None:
    pins = "arg0=[{},{}]; arg1=[{},{}]; arg2=[{x},{}]"
    with pytest.raises(DoesNotFit) as e:
        planned(pins, memory="1200")
    planned(pins, memory=f"{e.value.least:.0f}")
    with pytest.raises(DoesNotFit):
        planned(pins, memory=f"{e.value.least - 1:.0f}")
    assert needed_text(e.value.least) in e.value.message
    assert [needed_text(n) for n in (1234561.0, 1234560.0, 12.0)] == ["1.23457 MB", "1.23456 MB", "1.2e-05 MB"]
    assert needed_text(1234560.1) == "1.23457 MB"  # what is said does


def test_all_of_many_constraints_that_must_go_are_named() -> None:
    """The arguments take 256 bytes each where they are pinned whole, half of it split; one may stay."""
    text = "func.func public @main("
    text += ", ".join(f"%a{i}: tensor<8x8xf32>" for i in range(5)) + ") -> tensor<8x8xf32> {\n"
    text += "  %0 = stablehlo.add %a0, %a1 : tensor<8x8xf32>\n"
    text += "".join(f"  %{i - 1} = stablehlo.add %{i - 2}, %a{i} : tensor<8x8xf32>\n" for i in range(2, 5))
    module = parse_module(text + "  return %3 : tensor<8x8xf32>\n}", make_context())
    Normalize(state_args="none", batch_args="none").apply(module, [])
    pins = "; ".join(f"arg{i}=[{{}},{{}}]" for i in range(4)) + "; arg4=[{?},{?}]"
    with pytest.raises(DoesNotFit) as whole:
        Shard(mesh="2", cluster="cpu", constrain=pins, memory="100").apply(module, [])
    limit = whole.value.least - 3 * 128
    with pytest.raises(DoesNotFit) as e:
        Shard(mesh="2", cluster="cpu", constrain=pins, memory=f"{limit:.0f}").apply(module, [])
    named = [n.message for n in e.value.notes if isinstance(n, Remark) and "it would fit without these" in n.message]
    assert len(named) == 3 and not any("arg4" in n for n in named)
