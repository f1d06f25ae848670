"""The plans of examples/plans: each is what it says, and computes what one device computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.dialect.plan import read_plan
from alpa_mlir.dialect.sharding import SHARDING, Sharding, argument_attributes, read_sharding
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.manual import parse_manual, write_stages
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.runtime.execute import run_plan
from alpa_mlir.tools.plan_summary import summarize
from tests.on_devices import assert_close, run_all

PLANS = Path(__file__).parents[1] / "examples" / "plans"


@dataclass(frozen=True)
class Case:
    """A plan, the model to try it on, and whether its stages split parameters and optimizer state."""

    plan: str
    model: str
    sizes: dict[str, Any]
    parameters: bool | None
    state: bool | None


CASES = [
    Case("data_parallel", "mlp", {}, False, False),
    Case("zero2", "mlp", {}, False, True),
    Case("zero3", "mlp", {}, True, True),
    Case("moe_expert", "moe", {"layers": 1, "moe_every": 1}, None, None),
    Case("gpt_3d", "gpt", {"layers": 2}, None, None),
    Case("wide_resnet_pipeline", "mlp", {"layers": 4}, False, False),
]


def test_all_plans_are_tried() -> None:
    assert {c.plan for c in CASES} == {p.stem for p in PLANS.glob("*.toml")}


def values_of(module: ir.Module) -> list[np.ndarray]:
    """Small normal floats (positive second moments), integers below the vocabulary."""
    rng, found = np.random.default_rng(0), []
    for argument in functions(module)["main"].regions[0].blocks[0].arguments:
        kind = ir.RankedTensorType(argument.type)
        whole = str(kind.element_type).startswith(("i", "ui"))
        drawn = rng.integers(0, 7, kind.shape) if whole else 0.1 * np.abs(rng.normal(size=kind.shape)) + 0.01
        found.append(drawn.astype(np.int32 if whole else np.float32))
    return found


def held(planned: ir.Module) -> dict[str, Sharding]:
    """Of each argument of @main that a stage function takes, by its name, how it is split there."""
    main = functions(planned)["main"]
    names = {a: ir.NameLoc(a.location).name_str for a in main.regions[0].blocks[0].arguments}
    found = {}
    for op in main.regions[0].blocks[0].operations:
        if op.operation.name == "mpmd.fragment_call":
            function = functions(planned)[ir.FlatSymbolRefAttr(op.attributes["callee"]).value]
            for value, entry in zip(op.operands, argument_attributes(function), strict=True):
                if value in names and SHARDING in entry:
                    found[names[value]] = read_sharding(entry[SHARDING])[1]
    return found


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.plan)
def test_it_is_what_it_says_and_equals_one_device(case: Case) -> None:
    model = MODELS[case.model]
    config = replace(model.presets["tiny"], **case.sizes)
    module = parse_module(print_module(lower(model.build(config)), locations=True), make_context())
    path = PLANS / f"{case.plan}.toml"
    cluster = load_cluster("cpu").with_sizes(1, 8 if case.plan == "gpt_3d" else 4)
    manual = parse_manual(path.read_text(), str(path), cluster)
    write_stages(module, manual.stages)
    options = PlanOptions(
        cluster, microbatches=manual.microbatches, layers=manual.layers, schedule=manual.schedule or "auto",
        constrain=manual.constrain, remat="none",
    )  # fmt: skip
    planned = plan(module, options)

    summary = summarize(planned)
    assert summary.step_seconds > 0
    assert [s.devices for s in read_plan(planned).stages.values()] == [s.devices for s in manual.stages]
    shardings = held(planned)
    split = {name for name, s in shardings.items() if s.axes}
    for wanted, prefix in ((case.parameters, "params"), (case.state, "optimizer.first")):
        names = {n for n in shardings if n.startswith(prefix)}
        assert names and wanted in (None, bool(names & split)), (prefix, names & split)
    if case.plan == "moe_expert":
        experts = [s for n, s in shardings.items() if "experts" in n and len(s.dims) == 3]
        assert len(experts) == 6 and {s.dims for s in experts} == {(("x",), (), ())}
        assert all(s.dims[0] == ("x",) for n, s in shardings.items() if n.startswith("batch"))

    inputs = values_of(module)
    assert_close(run_plan(planned, inputs), run_all([module], [inputs])[0], case.plan)
