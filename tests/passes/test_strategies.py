"""Strategies of single ops: exactly what the factors allow, each read by the localiser as it was meant."""

from __future__ import annotations

import pytest
from op_kinds import ROWS

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.factors import splittable
from alpa_mlir.dialect.linear import is_linear
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.costs.compute import compute_seconds, product_flops
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.intra.outlines import outlines
from alpa_mlir.passes.intra.program import OpRecord, Program
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.intra.strategies import Enumerator, Strategy, op_strategies, value_shardings
from alpa_mlir.passes.local.device_placement import place

DOT = """
  %0 = stablehlo.dot_general %x, %y, contracting_dims = [1] x [0]
    : (tensor<8x6xf32>, tensor<6x4xf32>) -> tensor<8x4xf32>
"""
MAXIMUM = """
  %c = stablehlo.constant dense<0xFF800000> : tensor<f32>
  %0 = stablehlo.reduce(%x init: %c) applies stablehlo.maximum across dimensions = [0]
    : (tensor<8x6xf32>, tensor<f32>) -> tensor<6xf32>
"""
SORT = """
  %0 = "stablehlo.sort"(%x) <{dimension = 0 : i64}> ({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %1 = stablehlo.compare LT, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>
    stablehlo.return %1 : tensor<i1>
  }) : (tensor<8x6xf32>) -> tensor<8x6xf32>
"""


def read(body: str) -> Program:
    text = f"func.func @main(%x: tensor<8x6xf32>, %y: tensor<6x4xf32>) {{ {body} return }}"
    return read_program(parse_module(text, make_context()))


def strategies(program: Program, shape: tuple[int, ...], partial: bool = False) -> tuple[OpRecord, list[Strategy]]:
    mesh = Mesh.from_shape("m", shape)
    cluster = load_cluster("cpu", devices_per_node=8)
    op = program.ops[-1]
    return op, list(Enumerator(mesh_links(mesh, cluster), cluster).of_op(op, partial).strategies)


def key(strategy: Strategy) -> tuple[str, ...]:
    return tuple(s.text("m") for s in (*strategy.operands, *strategy.results))


def test_a_product_on_one_axis() -> None:
    _, found = strategies(read(DOT), (2,))
    texts = {" ".join(k).replace("@m, ", "").replace('"', "") for k in map(key, found)}
    assert texts == {
        "<[{}, {}]> <[{}, {}]> <[{}, {}]>",
        "<[{x}, {}]> <[{}, {}]> <[{x}, {}]>",
        "<[{}, {}]> <[{}, {x}]> <[{}, {x}]>",
        "<[{}, {x}]> <[{x}, {}]> <[{}, {}]>",
        "<[{}, {x}]> <[{x}, {}]> <[{x}, {}]>",
        "<[{}, {x}]> <[{x}, {}]> <[{}, {x}]>",
    }


def test_a_product_may_leave_addends_where_asked() -> None:
    _, found = strategies(read(DOT), (2,), partial=True)
    assert [s.results[0] for s in found if s.results[0].partial] == [Sharding(((), ()), ("x",))]
    assert all(s.communication == 0.0 for s in found if s.results[0].partial)


def test_only_sizes_that_divide() -> None:
    _, found = strategies(read(DOT), (4,))
    assert {s.factor_axes for s in found} == {((), (), ()), (("x",), (), ()), ((), ("x",), ())}


def test_a_maximum_ends_in_all_reduce_only() -> None:
    _, found = strategies(read(MAXIMUM), (2,))
    ended = [s for s in found if s.ending]
    assert [(step.kind, s.results[0].is_replicated) for s in ended for step in s.ending] == [("all_reduce", True)]


def test_sorted_dimensions_stay_whole() -> None:
    _, found = strategies(read(SORT), (2,))
    assert {s.results[0].dims for s in found} == {((), ()), ((), ("x",))}


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 1), (2, 2), (2, 2, 2)], ids=str)
def test_the_localiser_reads_every_strategy_of_every_op_kind_as_meant(shape: tuple[int, ...]) -> None:
    """Each strategy, partial operands and results included, in every order of axes where only those are few."""
    context, mesh, cluster = make_context(), Mesh.from_shape("m", shape), load_cluster("cpu", devices_per_node=8)
    enumerator = Enumerator(mesh_links(mesh, cluster), cluster)
    for row in ROWS:
        program = read_program(row.module(context))
        op = program.ops[-1]
        everything = tuple(range(op.captured))
        carried = everything if len(op.result_types) == 1 and is_linear(op.op, frozenset(everything)) else ()
        strategies = op_strategies(op, enumerator, True, carried, len(shape) == 2)
        assert strategies and strategies[0].factor_axes == ((),) * len(op.factors.sizes), row.name
        sized = [f for f, n in enumerate(op.factors.sizes) if n > 1]
        for s in strategies:
            placed = place(op.op, op.factors, s.operands[: op.captured], s.results, mesh)
            assert [placed.axes[f] for f in sized] == [s.factor_axes[f] for f in sized], row.name
            assert tuple(step for steps in placed.endings for step in steps) == s.ending, row.name
            assert placed.carried == tuple(a for a in mesh.axis_names if any(a in o.partial for o in s.operands))


def one_by_one(op: OpRecord, enumerator: Enumerator, carried: tuple[int, ...]) -> list[Strategy]:
    """The undominated strategies of an op, each looked at by itself."""
    mesh, table, found = enumerator.mesh, enumerator.table, dict[tuple[object, ...], Strategy]()
    for o in outlines(op.kind, tuple(n for n, size in mesh.axes if size > 1), True, carried, False):
        if not all(splittable(op.factors, f, mesh.extent(axes)) for f, axes in enumerate(o.held) if axes):
            continue
        read = [t.bytes / mesh.extent(s.axes) for s, t in zip(o.operands, op.operand_types, strict=True)]
        written = [t.bytes / mesh.extent(s.axes) for s, t in zip(o.whole, op.result_types, strict=True)]
        seconds, flops, traffic = 0.0, 0.0, op.kind.traffic
        if op.kind.compute == "product":
            flops = product_flops(op.factors, [t.shape for t in op.operand_types], op.result_types[0].shape)
            flops /= mesh.extent(tuple(a for axes in o.held for a in axes))
        if op.result_types and not op.is_source:
            computed = traffic.runs * sum(read[:1] if op.kind.compute == "reduction" else written)
            moved = traffic.read_bytes(read, written), traffic.written_bytes(written)
            dtype = (*op.operand_types, *op.result_types)[0].dtype
            seconds = compute_seconds(enumerator.cluster, dtype, flops, *moved, computed)
        for results in o.endings:
            if o.scattered and not results[0].divides(op.result_types[0].shape, mesh):
                continue
            pairs = zip(o.partial, results, op.result_types, strict=True)
            ended = sum(table.pair(table.number(p), table.number(r)).at(t.bytes) for p, r, t in pairs)
            made = Strategy(o.held, o.operands, results, o.partial, seconds, ended)
            best = found.setdefault((made.operands, made.results), made)
            if seconds + ended < best.compute + best.communication:
                found[made.operands, made.results] = made
    return list(found.values())


@pytest.mark.parametrize("shape", [(2,), (3,), (2, 2), (4, 2), (2, 2, 2)], ids=str)
def test_strategies_reckoned_at_once_are_those_reckoned_one_by_one(shape: tuple[int, ...]) -> None:
    """To the last bit, for every kind of op."""
    context, mesh, cluster = make_context(), Mesh.from_shape("m", shape), load_cluster("dgx-h100")
    enumerator = Enumerator(mesh_links(mesh, cluster), cluster)
    for row in ROWS:
        program = read_program(row.module(context))
        for op in program.ops:
            everything = tuple(range(op.captured))
            linear = len(op.result_types) == 1 and is_linear(op.op, frozenset(everything))
            for carried in {(), everything if linear else ()}:
                found = enumerator.of_op(op, True, carried)
                assert list(found.strategies) == one_by_one(op, enumerator, carried), row.name
                assert found.seconds.tolist() == [s.compute + s.communication for s in found.strategies]
                for k, t in enumerate(op.result_types):
                    held = [t.bytes / mesh.extent(s.results[k].axes) for s in found.strategies]
                    assert found.bytes[k].tolist() == held
                numbers = [[enumerator.table.number(x) for x in s.operands] for s in found.strategies]
                assert [list(n) for n in zip(*found.operands, strict=True)] == numbers or not found.operands


def test_shardings_of_a_value() -> None:
    mesh = Mesh.from_shape("m", (2, 2))
    assert len(value_shardings((8, 6), mesh)) == 8
    assert Sharding(((), ("x", "y"))) not in value_shardings((8, 6), mesh)
    assert value_shardings((), mesh) == [Sharding(())]


def test_on_three_axes_sums_end_alike() -> None:
    """A gradient sums over examples and positions: on two axes each sum may end in its own way."""
    gradient = """
      %0 = stablehlo.dot_general %x, %y, contracting_dims = [0, 1] x [0, 1]
        : (tensor<8x8x8xf32>, tensor<8x8x8xf32>) -> tensor<8x8xf32>
    """
    text = f"func.func @main(%x: tensor<8x8x8xf32>, %y: tensor<8x8x8xf32>) {{ {gradient} return }}"
    program = read_program(parse_module(text, make_context()))

    kinds = program.ops[-1].factors.kinds
    assert sum(k == "add" for k in kinds) == 2
    reductions = [f for f, k in enumerate(kinds) if k == "add"]
    for shape, alike in (((2, 2), False), ((2, 2, 2), True)):
        _, found = strategies(program, shape)
        summed = [[a for f in reductions for a in s.factor_axes[f]] for s in found]
        ended = [
            {next((d for d, held in enumerate(s.results[0].dims) if a in held), -1) for a in axes}
            for s, axes in zip(found, summed, strict=True)
        ]
        assert any(len(axes) > 1 for axes in summed)
        assert all(len(ways) <= 1 for ways in ended) == alike


def test_strategies_stand_in_the_same_order_whatever_was_met_before() -> None:
    """Optima are remembered as numbers of strategies."""
    mesh, cluster = Mesh.from_shape("m", (2, 2)), load_cluster("cpu")
    program = read(DOT)
    op = program.ops[-1]
    found = []
    for met in (value_shardings((8, 4), mesh), value_shardings((8, 4), mesh)[::-1]):
        enumerator = Enumerator(mesh_links(mesh, cluster), cluster)
        numbers = [enumerator.table.number(s) for s in met]
        made = enumerator.of_op(op, partial=True)
        assert set(made.results[0]) > set(numbers)
        copies = enumerator.of_copy(op.result_types[0], made.results[0])
        stored = enumerator.of_value(op.result_types[0], partial=True)
        found.append([tuple(one.strategies) for one in (made, copies, stored)])
    assert found[0] == found[1]
