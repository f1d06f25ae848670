"""How many layers are made where no number is given: more where the program's state fills most of all memory."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module, print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster, parse_cluster
from alpa_mlir.planner import PlanOptions, plan

HIDDEN, DEPTH = 64, 32
CONFIG = replace(MODELS["mlp"].presets["tiny"], layers=DEPTH, hidden=HIDDEN, batch=32, optimizer="adam")
MIXED = """
name = "mixed"
memory_bandwidth = 1e9
efficiency = 0.5
flops = { f32 = 1e9 }
link = { device = { bandwidth = 4e9, start = 1e-6 }, node = { bandwidth = 1e9, start = 2e-6 } }
[[groups]]
nodes = 1
devices_per_node = 2
memory = "SMALL"
[[groups]]
nodes = 1
devices_per_node = 2
memory = "LARGE"
"""


def program() -> ir.Module:
    return parse_module(print_module(lower(MODELS["mlp"].build(CONFIG))), make_context())


def state_bytes() -> int:
    """Of the weights and biases of all layers and their moments."""
    return sum(v.nbytes for v in jax.tree.leaves(MODELS["mlp"].initial_values(CONFIG, 0)[:2]))


def layers(cluster: Cluster, **options: object) -> int:
    """How many layers the ops of the forward pass are cut into."""
    made = plan(program(), PlanOptions(cluster, **options), stop_after="alpa-layers")
    body = functions(made)["microbatch"].regions[0].blocks[0]
    return 1 + max(alpa.get_int(op, alpa.LAYER) or 0 for op in body.operations)


def equal(part: float, devices: int = 4) -> Cluster:
    """Devices whose memory the state fills to a part."""
    return load_cluster("cpu").with_sizes(1, devices, int(state_bytes() / part / devices))


def mixed(small: float, large: float) -> Cluster:
    """Two devices each that hold so many times the state."""
    sizes = {"SMALL": small * state_bytes(), "LARGE": large * state_bytes()}
    text = MIXED
    for name, size in sizes.items():
        text = text.replace(name, f"{int(size)}B")
    return parse_cluster(text, "mixed.toml")


def test_state_that_fills_most_of_all_memory_gets_twice_as_many_layers() -> None:
    assert (layers(equal(0.35)), layers(equal(0.45))) == (8, 16)
    assert (layers(equal(0.55, devices=1)), layers(equal(0.55 / 4))) == (16, 8)


@pytest.mark.parametrize(("small", "large", "expected"), [(0.3, 0.6, 16), (0.3, 1.2, 8), (1.2, 0.3, 8)])
def test_the_memory_of_all_groups_counts(small: float, large: float, expected: int) -> None:
    assert layers(mixed(small, large)) == expected


def test_a_number_given_is_kept() -> None:
    assert layers(equal(0.55), layers=4) == 4
    assert layers(equal(0.55), stages=2) == 8


def test_settings_are_compared_with_as_many_layers_as_the_plan_has() -> None:
    """On the folded program too, whose own state is less."""
    texts: list[str] = []
    plan(program(), PlanOptions(equal(0.55), schedule="1f1b"), progress=texts.append)
    made = {text.partition("count")[0] for text in texts if text.startswith("alpa-layers")}
    assert made == {"alpa-layers{stages={8} even={true}}"}
