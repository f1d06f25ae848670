"""Built-in models at level 5 without a solver: replicated stages, or the real passes (tests only)."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
from jaxlib.mlir import ir
from on_devices import random_inputs

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
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
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes import all as every_pass
from alpa_mlir.passes.inter.placement import place
from alpa_mlir.passes.pipeline import parse_pipeline, run_pipeline


def layered(
    name: str, microbatches: int, layers: int, *, train: bool = True, depth: int = 0, batch: int = 0
) -> tuple[ir.Module, list[np.ndarray]]:
    """A tiny built-in step at level 3, and values for its arguments.

    `depth`: layers of the model, `batch`: examples; 0: as they are.

    The optimizer is SGD with momentum: its new state is linear in the gradients, so rounding stays small (Adam's
    first step divides each gradient by its own magnitude).
    """
    model = MODELS[name]
    config = replace(model.presets["tiny"], optimizer="sgd")
    config = replace(config, layers=depth) if depth else config
    config = replace(config, batch=batch) if batch else config
    step = model.build(config) if train else model.build_inference(config)
    module = parse_module(print_module(lower(step)), make_context(), name)
    options = f"count={microbatches} allow-per-microbatch-statistics=true"
    text = f"alpa-normalize,alpa-microbatch{{{options}}},alpa-layers{{count={layers}}}"
    assert every_pass
    run_pipeline(module, parse_pipeline(text), [])
    if train:
        return module, [np.asarray(v) for v in jax.tree.leaves(model.initial_values(config, 0))]
    return module, random_inputs(one_device(module), np.random.default_rng(0))


def replicated(module: ir.Module, stages: int, lanes: int = 0) -> ir.Module:
    """Level 3 → level 5: consecutive layers form stages of one device, everything is replicated there.

    `lanes` devices take the stages in turn (0: each stage has its own).
    """
    lanes = lanes or stages
    layers = 1 + max(alpa.get_int(op, alpa.LAYER) or 0 for f in functions(module).values() for op in alpa.walk(f))
    place(module, [k * stages // layers for k in range(layers)])
    context = module.context
    entries = []
    for s in reversed(range(lanes)):
        declare_mesh(module, Mesh.from_shape(f"stage_{s}", (1,)))
    for s in range(stages):
        devices = ir.DenseI64ArrayAttr.get([s % lanes], context)
        mesh = alpa.string(f"stage_{s % lanes}", context)
        entries.append(ir.DictAttr.get({"devices": devices, "mesh": mesh}, context))
    module.operation.attributes[alpa.STAGES] = ir.ArrayAttr.get(entries, context)
    for name, function in functions(module).items():
        if name != "main":
            _annotate(function, lanes)
    alpa.set_string(module.operation, alpa.LEVEL, "sharded")
    assert module.operation.verify()
    return module


def _annotate(function: ir.Operation, lanes: int) -> None:
    block = function.regions[0].blocks[0]
    arguments = argument_attributes(function)
    stage = {v: int(ir.IntegerAttr(e[alpa.STAGE]).value) for v, e in zip(block.arguments, arguments, strict=True)}
    for entry, value in zip(arguments, block.arguments, strict=True):
        entry[SHARDING] = _whole(value, stage[value] % lanes)
    set_argument_attributes(function, arguments)
    there: dict[tuple[ir.Value, int], ir.Value] = {}
    for view in list(block.operations)[:-1]:
        op = view.operation
        here = alpa.get_int(op, alpa.STAGE)
        assert here is not None
        for user in (op, *alpa.walk(op)):
            for i, value in enumerate(user.operands):
                if stage.get(value, here) != here:
                    user.operands[i] = _reshard(value, here, lanes, op, there)
        set_op_shardings(op, [_replicated(r) for r in op.results], f"stage_{here % lanes}")
        stage.update(dict.fromkeys(op.results, here))
    results = result_attributes(function)
    for entry, value in zip(results, list(block.operations)[-1].operands, strict=True):
        entry[SHARDING] = _whole(value, stage[value] % lanes)
    set_result_attributes(function, results)


def _reshard(
    value: ir.Value, stage: int, lanes: int, user: ir.Operation, there: dict[tuple[ir.Value, int], ir.Value]
) -> ir.Value:
    if (value, stage) not in there:
        attributes = {"sharding": _whole(value, stage % lanes)}
        for name in (alpa.STAGE, alpa.LAYER, alpa.PHASE):
            attributes[name] = user.attributes[name]
        op = ir.Operation.create(
            "sdy.reshard",
            results=[value.type],
            operands=[value],
            attributes=attributes,
            loc=user.location,
            ip=ir.InsertionPoint(user),
        )
        there[value, stage] = op.results[0]
    return there[value, stage]


def _replicated(value: ir.Value) -> Sharding:
    return Sharding.replicated(len(ir.RankedTensorType(value.type).shape))


def _whole(value: ir.Value, lane: int) -> ir.Attribute:
    return sharding_attribute(_replicated(value), f"stage_{lane}", value.type.context)


def one_device(module: ir.Module) -> ir.Module:
    """`@main` of a module of level 5 or below, with what it calls and without shardings."""
    alone = parse_module(print_module(module), make_context())
    main = functions(alone)["main"]
    called = {str(op.attributes["callee"]).lstrip("@") for op in alpa.walk(main) if op.name == "func.call"}
    for view in list(alone.body.operations):
        op = view.operation
        name = ir.StringAttr(op.attributes["sym_name"]).value
        if op.name == "sdy.mesh" or (name != "main" and name not in called):
            op.erase()
    for name in list(alone.operation.attributes):
        if name.startswith("alpa."):
            del alone.operation.attributes[name]
    return alone


def assert_same_step(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Equal up to 1e-4 of each result's largest magnitude (at least 0.01: some gradients are zero but for rounding)."""
    assert len(found) == len(expected)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = max(0.01, float(np.abs(b.astype(np.float64)).max(initial=0)))
        worst = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)) / scale
        assert worst < 1e-4, f"result {number} differs by {worst} of its largest magnitude"
