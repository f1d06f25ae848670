"""Planned = executed: what the shardings ask for, what the localiser writes, and what XLA's optimised program holds.

For each built-in model a whole step of one stage is planned, with constraints that bring all kinds of collectives in,
and its functions are compiled by XLA for CPU devices. The three lists of collectives agree in kind, axes (XLA's are
read from its replica groups) and bytes, before combining. docs/collectives.md lists what may differ elsewhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import clone_module, functions, make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes import all as _registered  # noqa: F401
from alpa_mlir.passes.costs.cluster import load_cluster
from alpa_mlir.passes.local.census import Collective, compiled_collectives, planned_collectives, written_collectives
from alpa_mlir.passes.localize import sharded_functions
from alpa_mlir.passes.parallelize import plan
from alpa_mlir.passes.pipeline import run_pipeline
from alpa_mlir.passes.plan_passes import PlanOptions
from alpa_mlir.runtime.stage_function import extract
from tests.on_devices import compile_all


@dataclass(frozen=True)
class Case:
    """A model, a mesh, and constraints; one layer is enough, for all layers have the same ops."""

    model: str
    mesh: str
    constrain: str
    kinds: tuple[str, ...]
    """Kinds of collectives that must be among the planned ones, so that the comparison is one of something."""
    microbatches: int = 1
    sizes: dict[str, Any] = field(default_factory=dict)


SUMS, PAIRS = ("all_reduce",), ("all_gather", "reduce_scatter")
CASES = [
    Case("mlp", "2x2", "x=zero3; y=tensor", (*PAIRS, "collective_permute"), microbatches=2),
    Case("gpt", "2x2", "x=zero2; y=tensor", (*SUMS, *PAIRS), sizes={"layers": 1}),
    Case("bert", "1x4", "y=tensor", (*SUMS, *PAIRS), sizes={"layers": 1}),
    Case("moe", "4", "", (*SUMS, "all_to_all"), sizes={"layers": 1, "moe_every": 1, "experts": 8}),
    Case("llama", "2x2", "x=tensor; y=tensor", (*SUMS, *PAIRS), sizes={"layers": 1}),
    Case("wide_resnet", "2x2", "x=data; y=tensor", (*SUMS, *PAIRS), sizes={"image": 8, "optimizer": "sgd"}),
]


def split(case: Case) -> ir.Module:
    """The step at level 6, not yet localised."""
    model = MODELS[case.model]
    config = type(model.presets["tiny"])(**{**vars(model.presets["tiny"]), **case.sizes})
    module = parse_module(print_module(lower(model.build(config))), make_context())
    options = PlanOptions(
        load_cluster("unit"), case.mesh, case.microbatches, constrain=case.constrain,
        allow_per_microbatch_statistics=True, remat="none",
    )  # fmt: skip
    return plan(module, options, stop_after="alpa-split")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.model)
def test_collectives_are_those_planned(case: Case) -> None:
    module = split(case)
    local = clone_module(module)
    run_pipeline(local, "alpa-localize", [])
    planned: list[Collective] = []
    for name, mesh, function in sharded_functions(module):
        here = planned_collectives(function, mesh)
        assert written_collectives(functions(local)[name], mesh) == here
        alone = parse_module(extract(local, name).text, make_context())
        text = compile_all([alone], mesh).as_text()
        assert Counter(compiled_collectives(text, mesh)) == Counter(here), name
        planned += here
    assert {c.kind for c in planned} >= set(case.kinds)
