"""Memory that is short: told before the first step where the plan predicts it, explained where XLA finds out."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import mlp_plan
import numpy as np
import pytest
import ranks
from jaxlib.mlir import ir

import alpa_mlir
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import read_plan, seal
from alpa_mlir.runtime import memory

SIZE = 1 << 18  # its square in f32 is 275 GB


def outer(weights, x):
    """A product of which the matrix must be stored."""
    product = np.sin(1.0) * x[:, None] * weights[None, :]
    return weights + (product @ weights).sum(), product.sum()


@pytest.fixture(scope="module")
def planned() -> str:
    arguments = (np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32))
    options = {"devices_per_node": 1, "mesh": "1", "microbatches": 1, "memory": 10**13}
    return alpa_mlir.plan(outer, arguments=arguments, roles=("state", "batch"), **options).text


def test_a_plan_that_needs_more_than_there_is_is_refused(planned: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.mlir"
    path.write_text(planned)
    found = ranks.run(["--local", path])
    lines = found.err.splitlines()
    assert (found.code, found.out) == (1, "")
    assert re.fullmatch(
        rf"{path}:1:1: error: host \S+ has .* of memory available, its part of the plan needs .* GB", lines[0]
    )
    assert lines[1].startswith(f"{path}:1:1: note: submesh 0: 1 devices there need 27")
    assert "more devices or stages" in lines[2]
    assert found.err.count("error: ") == 1


def test_what_xla_cannot_allocate_is_explained(planned: str, tmp_path: Path) -> None:
    silent = re.sub(r"(memory_bytes|peak_bytes) = \d+ : i64, |, peak_bytes = \d+ : i64", "", planned)
    module = parse_module(silent, make_context())
    seal(module)
    path = tmp_path / "plan.mlir"
    path.write_text(print_module(module))
    found = ranks.run(["--local", path])
    lines = found.err.splitlines()
    assert (found.code, found.out) == (1, "")
    assert lines[0].startswith(f"{path}:1:1: error: out of memory: ") and "could not be allocated" in lines[0]
    assert re.search(r"the largest program here is @stage_0_[a-z+]+ on stage_0: .* works in 27\d\.\d GB", lines[1])
    assert "Traceback" not in found.err


def test_hosts_are_counted_apart() -> None:
    decoded = read_plan(parse_module(mlp_plan.plan_text(), make_context()))
    fits = [memory.Demand(f"host {name}", 10, {"stage_0": (6, 1)}) for name in ("a", "b")]
    memory.check(fits, decoded, "p:1:1")
    with pytest.raises(CompileError, match="host a has 10 bytes of memory available, its part of the plan needs 12"):
        memory.check([fits[0], memory.Demand("host a", 10, {"stage_0": (6, 1)})], decoded, "p:1:1")
    assert 0 < memory.available_bytes() < 1 << 50


def test_gpus_are_counted_by_what_xla_may_use_of_them() -> None:
    module = parse_module(mlp_plan.plan_text(2, ((0,), (1,))), make_context())
    decoded = read_plan(module)
    stages = [ir.DictAttr(a) for a in ir.ArrayAttr(module.operation.attributes["alpa.stages"])]
    context = module.context
    told = [_with(entry, "peak_bytes", 6, context) for entry in stages]
    module.operation.attributes["alpa.stages"] = ir.ArrayAttr.get(told, context)
    gpu = SimpleNamespace(local_hardware_id=0, device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 12})
    memory.check(memory.gpu_demands(module, decoded, dict.fromkeys((0, 1), gpu), 3), decoded, "p:1:1")
    small = SimpleNamespace(local_hardware_id=0, device_kind="NVIDIA H200", memory_stats=lambda: {"bytes_limit": 11})
    with pytest.raises(CompileError, match=r"GPU 0 \(NVIDIA H200\) of rank 3 has 11 bytes of .* plan needs 12 bytes"):
        memory.check(memory.gpu_demands(module, decoded, dict.fromkeys((0, 1), small), 3), decoded, "p:1:1")
    silent = SimpleNamespace(local_hardware_id=0, device_kind="GPU", memory_stats=lambda: None)
    assert memory.gpu_demands(module, decoded, {0: silent}, 0) == []


def _with(entry: ir.DictAttr, key: str, value: int, context: ir.Context) -> ir.DictAttr:
    known = {entry[i].name: entry[i].attr for i in range(len(entry))}
    number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64, context), value)
    return ir.DictAttr.get({**known, key: number}, context)
