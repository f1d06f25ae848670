"""Where a run computes and what carries values: what is there, or what was asked for, or one clear error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import mlp_plan
import pytest
import ranks

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime import layout
from alpa_mlir.runtime.platform import Choice, Surroundings, bind, check_unshared, choose, sharers, visible_gpus

CPU = Surroundings(lambda: "there is no NVIDIA driver (libcuda.so.1)", lambda package: False, lambda: False)
GPU = Surroundings(lambda: 4, lambda package: True, lambda: True)
HIDDEN = Surroundings(lambda: 0, lambda package: True, lambda: True)
UNPLUGGED = Surroundings(lambda: 1, lambda package: False, lambda: False)
WITHOUT_CUPY = Surroundings(lambda: 1, lambda package: package != "cupy", lambda: True)
WITHOUT_NCCL = Surroundings(lambda: 1, lambda package: True, lambda: False)


def test_what_is_there_is_used() -> None:
    assert choose("auto", "auto", 1, CPU) == Choice("cpu", "local")
    assert choose("auto", "auto", 2, CPU) == Choice("cpu", "mpi")
    assert choose("auto", "auto", 2, GPU) == Choice("cuda", "nccl")
    assert choose("auto", "mpi", 2, GPU) == Choice("cuda", "mpi")
    assert choose("cpu", "auto", 2, GPU) == Choice("cpu", "mpi")
    assert choose("cuda", "auto", 1, GPU) == Choice("cuda", "local")
    assert choose("auto", "auto", 1, WITHOUT_NCCL) == Choice("cuda", "local")
    assert choose("auto", "auto", 2, UNPLUGGED) == Choice("cpu", "mpi")


@pytest.mark.parametrize(
    ("platform", "transport", "around", "message"),
    [
        ("cuda", "auto", CPU, "--platform cuda: there is no NVIDIA driver"),
        (
            "cuda",
            "auto",
            Surroundings(lambda: 0, lambda p: True, lambda: True),
            "--platform cuda: the driver shows no GPU",
        ),
        (
            "cuda",
            "auto",
            Surroundings(lambda: 1, lambda p: False, lambda: False),
            "jax has no CUDA plugin here: install alpa_mlir",
        ),
        ("auto", "nccl", CPU, "--transport nccl moves values between GPUs, and the platform is cpu"),
        (
            "cuda",
            "nccl",
            Surroundings(lambda: 1, lambda p: p != "cupy", lambda: True),
            "CuPy, which is not here: install",
        ),
        ("cuda", "auto", WITHOUT_NCCL, "CuPy finds no NCCL library here"),
        ("cpu", "local", CPU, "these are 2 ranks"),
    ],
)
def test_what_cannot_be_is_refused(platform: str, transport: str, around: Surroundings, message: str) -> None:
    with pytest.raises(CompileError) as error:
        choose(platform, transport, 2, around)
    assert message in error.value.message


def test_ranks_of_a_host_take_gpus_in_turn() -> None:
    assert [bind(8, here, 4, 2) for here in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert bind(2, 3, 4, 2) == (0, 1)  # the launcher shows each rank its own
    with pytest.raises(CompileError, match="4 ranks of 2 GPUs each need 8 on their host, which has 6"):
        bind(6, 0, 4, 2)


def test_one_process_may_use_a_gpu_for_several_devices() -> None:
    stages = ((0, 1), (2, 3), (4, 5))
    arranged = layout.Layout(6, 1, ((0,),), stages)
    assert [arranged.folded(gpus) for gpus in (1, 2, 3, 4)] == [None, 2, 3, 4]
    assert layout.Layout(4, 1, ((0,),), ((0,), (1, 2, 3))).folded(2) is None
    assert layout.Layout(3, 1, ((0,),), ((0,), (1,), (2,))).folded(1) == 1


def test_ranks_that_share_a_gpu_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_HOSTID", raising=False)
    apart, shared = [[b"a", b"b"], [b"c", b"d"]], [[b"a"], [b"a"], [b"b"]]
    assert [sharers(own, apart) for own in apart] == [1, 1]
    assert [sharers(own, shared) for own in shared] == [2, 2, 1]
    check_unshared(2, exchanges=False)
    check_unshared(1, exchanges=True)
    with pytest.raises(CompileError, match="2 ranks share a GPU, which NCCL does not do"):
        check_unshared(2, exchanges=True)


def test_jax_is_told_which_gpus_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would guess by the launcher's variables: one GPU for each process."""
    told = {}
    inner = SimpleNamespace(size=2, rank=1)
    world = SimpleNamespace(rank=1, size=2, Split=lambda color, key: inner)
    monkeypatch.setattr(layout, "_own_gpus", lambda *_: ((2, 3), 1))
    monkeypatch.setattr(layout, "_meeting_point", lambda _: "host:1")
    monkeypatch.setattr(layout, "prepare_environment", lambda count, gpus, _: told.update(count=count, gpus=gpus))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *where, **which: told.update(where=where, **which))
    devices = [SimpleNamespace(process_index=i // 2, id=i) for i in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    found = layout.connect(layout.Layout(4, 2, ((0, 1), (0, 1))), world, Choice("cuda", "nccl"))
    assert told.pop("cluster_detection_method") == "deactivate"
    assert told == {"count": 2, "gpus": (2, 3), "where": ("host:1", 2, 1), "local_device_ids": [2, 3]}
    assert list(found) == devices


@pytest.mark.skipif(visible_gpus() not in (0, "there is no NVIDIA driver (libcuda.so.1)"), reason="there are GPUs")
@pytest.mark.parametrize("start", [["--local"], ["-n", 2]])
def test_the_command_says_once_that_there_is_no_gpu(start: list[object], tmp_path: Path) -> None:
    plan = tmp_path / "plan.mlir"
    plan.write_text(mlp_plan.plan_text())
    found = ranks.run([*start, plan, "--platform", "cuda"])
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith(f"{plan}:1:1: error: ") and "--platform cuda: " in found.err
    assert found.err.count("error: ") == 1 and "Traceback" not in found.err
