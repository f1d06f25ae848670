"""The factors of every op kind, and that splitting a factor computes the same as the whole op.

One row per op kind (`op_kinds.mlir`): the factors themselves, in writing, and each splittable factor put on a mesh
axis of two devices, localised and run against the unsplit op.
"""

import numpy as np
import on_devices
import pytest
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy
from op_kinds import ROWS, last_op, render

from alpa_mlir.dialect.context import functions, make_context, op_id
from alpa_mlir.dialect.factors import OpFactors, added_once, read_factors, splittable
from alpa_mlir.dialect.mesh import Mesh, declare_mesh
from alpa_mlir.dialect.sharding import (
    SHARDING,
    Sharding,
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_op_shardings,
    set_result_attributes,
    sharding_attribute,
)
from alpa_mlir.passes.localize import Localize

MESH = Mesh.from_shape("stage_0", (2,))


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_factors(row):
    module = row.module(make_context())
    factors = read_factors(functions(module)["main"])[op_id(last_op(module))]
    assert render(factors) == row.factors
    assert "sdy.sharding_rule" not in str(module)


def split(module: ir.Module, factors: OpFactors, factor: int, endings: str) -> None:
    """Put axis x on one factor of the last op; everything else is replicated."""
    declare_mesh(module, MESH)
    main = functions(module)["main"]
    last = last_op(module)

    def on(mapping) -> Sharding:
        return Sharding(tuple(("x",) if factor in dim else () for dim in mapping))

    def reshard(value: ir.Value, wanted: Sharding, before: ir.Operation) -> ir.Value:
        with before.location:
            attribute = sharding_attribute(wanted, MESH.name, module.context)
            return sdy.ReshardOp(value, attribute, ip=ir.InsertionPoint(before)).result

    block = main.regions[0].blocks[0]
    for view in list(block.operations)[:-2]:
        set_op_shardings(
            view, [Sharding.replicated(len(ir.RankedTensorType(r.type).shape)) for r in view.results], MESH.name
        )
    for i, mapping in enumerate(factors.operands):
        last.operands[i] = reshard(last.operands[i], on(mapping), last)
    results = [on(mapping) for mapping in factors.results]
    if endings == "partial":
        results = [Sharding(r.dims, ("x",)) for r in results]
    elif endings == "scatter":
        results = [Sharding((("x",), *r.dims[1:])) for r in results]
    set_op_shardings(last, results, MESH.name)
    whole = [Sharding.replicated(len(ir.RankedTensorType(a.type).shape)) for a in block.arguments]
    for read, write, shardings in (
        (argument_attributes, set_argument_attributes, whole),
        (result_attributes, set_result_attributes, results),
    ):
        entries = read(main)
        for entry, sharding in zip(entries, shardings, strict=True):
            entry[SHARDING] = sharding_attribute(sharding, MESH.name, module.context)
        write(main, entries)


def cases():
    """(name, whole module, split module) for each splittable factor of each row and each way its sums end."""
    context = make_context()
    for row in ROWS:
        whole = row.module(context)
        factors = read_factors(functions(whole)["main"])[op_id(last_op(whole))]
        for factor, kind in enumerate(factors.kinds):
            if factors.sizes[factor] < 2 or not splittable(factors, factor, 2):
                continue
            ways = ["whole"]
            if kind == "add":
                ways.append("partial")
                shapes = [tuple(ir.RankedTensorType(r.type).shape) for r in last_op(whole).results]
                if all(s and s[0] % 2 == 0 for s in shapes):
                    ways.append("scatter")
            for way in ways:
                module = row.module(context)
                split(module, factors, factor, way)
                module.operation.verify()
                yield f"{row.name} factor {factor} ({kind}) {way}", whole, module


def test_every_splittable_factor_computes_the_same():
    rng = np.random.default_rng(0)
    found = list(cases())
    names = {row.name for row in ROWS if any(name.startswith(row.name + " ") for name, _, _ in found)}
    inputs = [on_devices.random_inputs(whole, rng) for _, whole, _ in found]
    for _, _, module in found:
        Localize().apply(module, [])
        module.operation.verify()
    expected = on_devices.run_all([whole for _, whole, _ in found], inputs)
    results = on_devices.run_all([module for _, _, module in found], inputs, MESH)
    for (name, _, _), a, b in zip(found, results, expected, strict=True):
        on_devices.assert_close(a, b, name, tolerance=2e-2 if "bf16" in name else 2e-5)
    assert len(found) > 150
    whole = {"while", "case", "if", "rng_bit_generator", "batch_norm_training", "get_dimension_size"}
    assert {row.name for row in ROWS} - names == whole


def test_added_once():
    context = make_context()
    once = {row.name: added_once(last_op(row.module(context))) for row in ROWS}
    assert once["reduce_two"] == (2, 3)
    assert once["scatter_add"] == (0,)
    assert not any(numbers for name, numbers in once.items() if not name.startswith(("reduce_", "scatter")))
