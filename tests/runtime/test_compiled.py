"""Programs kept from run to run: the same numbers, and compiled again when anything is wrong with what was kept."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import jax
import mlp_plan
import numpy as np
import pytest
import ranks

from alpa_mlir.cache import Store
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.runtime import actions, compiled, executable
from alpa_mlir.runtime.executable import Compiler, jax_mesh
from alpa_mlir.runtime.stage_function import StageFunction, Tensor
from alpa_mlir.runtime.worker import Worker, shared_out

TEXT = """
module {
  sdy.mesh @m = <["x"=2]>
  func.func public @main(%a: tensor<4xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}]>})
      -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}]>}) {
    %0 = stablehlo.add %a, %a : tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}
"""


def double(store: Store, first: int = 0) -> np.ndarray:
    """2·[0, 1, 2, 3] on two devices from `first` on, by a compiler that has seen nothing; the argument is donated."""
    mesh = jax_mesh(Mesh("m", (("x", 2),)), jax.devices()[first : first + 2])
    tensor = Tensor((4,), "f32", Sharding((("x",),)))
    run = Compiler(store).compile(StageFunction("f", lambda: TEXT, (tensor,), (tensor,), (0,)), mesh)
    argument = jax.device_put(np.arange(4, dtype=np.float32), executable.named(mesh, tensor.sharding))
    (result,) = run(argument)
    assert argument.is_deleted()
    assert [s.device for s in result.addressable_shards] == jax.devices()[first : first + 2]
    return np.asarray(result)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is compiled from now on."""
    seen: list[str] = []
    real = executable._compile
    monkeypatch.setattr(executable, "_compile", lambda lower, name: (seen.append(name), real(lower, name))[1])
    return seen


def test_a_program_is_compiled_once_for_its_devices(compilations: list[str], tmp_path: Path) -> None:
    for first, count in ((0, 1), (0, 1), (2, 2), (2, 2)):
        assert double(Store(tmp_path), first).tolist() == [0, 2, 4, 6]
        assert len(compilations) == count


def test_what_does_not_load_is_compiled_again_and_replaced(compilations: list[str], tmp_path: Path) -> None:
    double(Store(tmp_path))
    (name,) = os.listdir(tmp_path)
    whole = Store(tmp_path).get(name)
    assert whole is not None
    for wrong in (b"", b"no pickle", whole[: len(whole) // 2], whole.replace(b"HloModule", b"HloMadule")[:-9]):
        Store(tmp_path).put(name, wrong)
        assert double(Store(tmp_path)).tolist() == [0, 2, 4, 6]
        assert double(Store(tmp_path)).tolist() == [0, 2, 4, 6]
    assert len(compilations) == 5


@pytest.mark.parametrize("what", ["__version__", "XLA_FLAGS", "processor", "source"])
def test_what_decides_a_program_is_in_its_digest(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = jax_mesh(Mesh("m", (("x", 2),)), jax.devices()[:2])
    before = compiled.digest("what", mesh)
    monkeypatch.setattr(compiled, "_surroundings", compiled._surroundings.__wrapped__)
    assert compiled.digest("what", mesh) == before
    if what == "__version__":
        monkeypatch.setattr(jax, "__version__", "0")
    elif what == "XLA_FLAGS":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    elif what == "processor":
        monkeypatch.setattr(compiled, "_processor", lambda: "flags: less")
    else:
        monkeypatch.setattr(compiled, "source_digest", lambda: "other")
    assert compiled.digest("what", mesh) != before


def test_the_command_keeps_programs_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, cache = tmp_path / "plan.mlir", tmp_path / "cache"
    plan.write_text(mlp_plan.plan_text())
    monkeypatch.setenv("ALPA_MLIR_CACHE_DIR", str(cache))
    first = ranks.run(["-n", 4, plan, "--steps", 2, "--no-cache"])
    assert (first.code, first.err, cache.exists()) == (0, "", False)
    losses = [line.split(",")[0] for line in first.out.splitlines()]
    for _ in range(2):
        again = ranks.run(["-n", 4, plan, "--steps", 2])
        assert (again.code, again.err) == (0, "")
        assert [line.split(",")[0] for line in again.out.splitlines()] == losses
        kept = sorted(os.listdir(cache / "programs"))
    # Six stage functions, three accumulations and a concatenation, each once for the two ranks of its stage.
    assert len(kept) == 10
    assert sorted(os.listdir(cache / "programs")) == kept


def test_ranks_that_share_a_submesh_share_its_compiling() -> None:
    assert shared_out({"a": 10, "b": 7, "c": 4, "d": 1}, 2) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert shared_out({"a": 1}, 1) == {"a": 0}


@pytest.mark.parametrize(("platform", "expected"), [("cpu", ["a", "b"]), ("gpu", [])])
def test_only_for_cpus_processes_compile_different_programs(platform: str, expected: list[str]) -> None:
    """For GPUs of several processes XLA tunes each program in all of them at once: apart, they would wait for ever."""
    done: list[str] = []
    devices = np.array([SimpleNamespace(process_index=i, platform=platform) for i in range(2)])
    worker = object.__new__(Worker)
    worker._submeshes = SimpleNamespace(mesh=lambda name: SimpleNamespace(devices=devices))
    worker._compiler = SimpleNamespace(compile=lambda function, mesh: done.append(function.text))
    calls = [actions.Call(name, "m", -1, (), (), name) for name in "ab"]
    functions = {name: SimpleNamespace(text=name) for name in "ab"}
    worker._program = SimpleNamespace(functions=functions, actions=calls)
    for process in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "process_index", lambda process=process: process)
            worker._compile_share()
    assert done == expected
