"""Levels 6 and 7 as values: reading, writing back byte for byte, refusing what is malformed."""

from __future__ import annotations

import pytest

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import (
    Free,
    Recv,
    Run,
    Schedule,
    Send,
    check_digest,
    digest,
    read_plan,
    read_schedules,
    seal,
    write_schedules,
)
from alpa_mlir.dialect.sharding import Sharding, result_attributes
from alpa_mlir.dialect.staged import Accumulate, Fragment, MeshTensor, Ref
from alpa_mlir.dialect.staged_main import read_main, write_main

FULL = '!mpmd.mesh_tensor<"stage_0", tensor<16x8xf32>, sharding=<@stage_0, [{"x"}, {}]>>'
PART = '!mpmd.mesh_tensor<"stage_0", tensor<4x8xf32>, sharding=<@stage_0, [{"x"}, {}]>>'
THERE = '!mpmd.mesh_tensor<"stage_1", tensor<4x8xf32>, sharding=<@stage_1, [{"y"}, {}]>>'
PLAN = f"""
module attributes {{alpa.level = "plan", alpa.microbatches = 4 : i64, alpa.cost = 1.5 : f64,
    alpa.stages = [{{mesh = "stage_0", devices = array<i64: 0, 1>}},
                   {{mesh = "stage_1", devices = array<i64: 2, 3>}}]}} {{
  sdy.mesh @stage_0 = <["x"=2]>
  sdy.mesh @stage_1 = <["x"=1, "y"=2]>
  func.func private @stage_0_forward(%a: tensor<4x8xf32> {{sdy.sharding = #sdy.sharding<@stage_0, [{{"x"}}, {{}}]>}})
      -> (tensor<4x8xf32> {{sdy.sharding = #sdy.sharding<@stage_0, [{{"x"}}, {{}}]>}})
      attributes {{mesh_shape = #sdy.mesh<["x"=2]>}} {{
    return %a : tensor<4x8xf32>
  }}
  func.func public @main(%x: {FULL} {{alpa.role = "batch"}}) -> ({THERE} {{jax.result_info = "total"}})
      attributes {{topology = #mpmd.topology<<"stage_0" : <["x"=2]>>, <"stage_1" : <["x"=1, "y"=2]>>>}} {{
    %m = "alpa.microbatch"(%x) {{alpa.dim = 0 : i64, alpa.id = 0 : i64}} : ({FULL}) -> {PART}
    %f = mpmd.fragment_call<mesh="stage_0", origin=["forward"]> @stage_0_forward(%m)
        {{alpa.id = 2 : i64, alpa.phase = "forward", alpa.stage = 0 : i64}} : ({PART}) -> {PART}
    %t = mpmd.transfer {{alpa.id = 3 : i64, alpa.phase = "forward"}} %f : ({PART}) -> {THERE}
    %s = "alpa.accumulate"(%t) {{alpa.combine = "add", alpa.id = 4 : i64}} : ({THERE}) -> {THERE}
    return %s : {THERE}
  }}
  "alpa.schedule"() ({{
    "alpa.run"() {{id = 0 : i64, microbatch = 0 : i64}} : () -> ()
    "alpa.send"() {{id = 3 : i64, microbatch = 0 : i64}} : () -> ()
    "alpa.free"() {{values = array<i64: 2, 0>, microbatch = 0 : i64}} : () -> ()
  }}) {{mesh = "stage_0", kind = "1f1b"}} : () -> ()
  "alpa.schedule"() ({{
    "alpa.recv"() {{id = 3 : i64, microbatch = 0 : i64}} : () -> ()
  }}) {{mesh = "stage_1", kind = "1f1b"}} : () -> ()
}}
"""


def test_writes_long_lists_of_dead_values_as_ranges() -> None:
    module = parse_module(PLAN, make_context())
    lists = [
        tuple(Ref(2, k) for k in range(1000)),
        (*(Ref(2, k) for k in range(3)), Ref(2, 5), *(Ref(3, k) for k in range(7, 17))),
        (Ref(3, 5), Ref(3, 6), Ref(3, 7), Ref(3, 8), Ref(2, 0)),
    ]
    lane = tuple(Free(values, m) for m, values in enumerate(lists))
    write_schedules(module, [Schedule("stage_0", "1f1b", lane)])
    text = print_module(module)
    assert "ranges = array<i64: 2, 0, 999>, values = array<i64>" in text
    assert "ranges = array<i64: 3, 7, 16>, values = array<i64: 2, 0, 2, 1, 2, 2, 2, 5>" in text
    assert "values = array<i64: 3, 5, 3, 6, 3, 7, 3, 8, 2, 0>" in text
    assert read_schedules(parse_module(text, make_context()))[0].instructions == lane


def test_reads_a_plan() -> None:
    plan = read_plan(parse_module(PLAN, make_context()))
    assert plan.cost == 1.5
    assert plan.main.microbatches == 4
    assert plan.stages["stage_1"].devices == (2, 3)
    assert plan.main.result_names == ("total",)
    call = plan.main.step(2)
    assert isinstance(call, Fragment) and call.operands == (Ref(0, 0),) and call.function == "stage_0_forward"
    total = plan.main.step(4)
    assert isinstance(total, Accumulate) and total.combine == "add"
    assert [plan.main.per_microbatch(Ref(n, 0)) for n in (0, 2, 3, 4)] == [True, True, True, False]
    assert plan.schedules[0].instructions == (Run(0, 0), Send(3, 0), Free((Ref(2, 0),), 0))
    assert plan.schedules[1].instructions == (Recv(3, 0),)


def test_writes_back_the_same_bytes() -> None:
    module = parse_module(PLAN, make_context())
    before = print_module(module)
    main, schedules = read_main(module), read_schedules(module)
    old = functions(module)["main"]
    entries = result_attributes(old)
    old.erase()
    write_main(module, main, entries)
    write_schedules(module, schedules)
    assert module.operation.verify()
    assert print_module(module) == before


@pytest.mark.parametrize("element", ["f32", "bf16", "i1", "ui32", "complex<f32>", "f8E4M3FN"])
@pytest.mark.parametrize("shape", [(), (8,), (8, 4, 2)])
def test_mesh_tensor_round_trip(element: str, shape: tuple[int, ...]) -> None:
    context = make_context()
    dims = ((("x", "y"), (), ("z",)))[: len(shape)]
    for partial in ((), ("w",)):
        kind = MeshTensor("stage_0", shape, element, Sharding(dims, partial))
        assert MeshTensor.read(kind.type(context)) == kind


def test_digest_is_a_fixpoint_of_printing_and_sees_changes() -> None:
    module = parse_module(PLAN, make_context())
    with pytest.raises(CompileError, match=r"no alpa\.digest"):
        check_digest(module)
    seal(module)
    again = parse_module(print_module(module), make_context())
    check_digest(again)
    assert digest(again) == digest(module)
    alpa.set_int(again.operation, alpa.MICROBATCHES, 8)
    with pytest.raises(CompileError, match="was changed"):
        check_digest(again)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpa.id = 3", "alpa.id = 2", "needs an alpa.id above 2, got 2"),
        (', alpa.phase = "forward"} %f', "} %f", r"mpmd\.transfer needs alpa\.phase"),
        ('"stage_1", tensor<4x8xf32>, sharding=<@stage_1', '"stage_9", tensor<4x8xf32>, sharding=<@stage_9', "stage_9"),
        ("array<i64: 2, 3>", "array<i64: 1, 2>", "belongs to two submeshes"),
        ('alpa.level = "plan"', 'alpa.level = "split"', "not a plan"),
        ("id = 3 : i64, microbatch", "number = 3 : i64, microbatch", "not an instruction"),
    ],
)
def test_refuses(old: str, new: str, message: str) -> None:
    assert old in PLAN
    with pytest.raises(CompileError, match=message):
        read_plan(parse_module(PLAN.replace(old, new), make_context()))
