"""Stage costs kept from planning to planning: found by content, byte-identical plans, damage is no harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alpa_mlir.cache import Store
from alpa_mlir.dialect.context import print_module
from alpa_mlir.lowering import lower
from alpa_mlir.models import MODELS
from alpa_mlir.passes.intra import optimize
from alpa_mlir.passes.memo import digest, remembered, remembering
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.plan import NAME, main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mlp = MODELS["mlp"]
    path = tmp_path_factory.mktemp("cache") / "mlp.mlir"
    path.write_text(print_module(lower(mlp.build(mlp.config(layers=4, hidden=16, batch=16)))))
    return path


def planned(model: Path, output: Path, *words: str) -> bytes:
    fixed = ["--stages", "2", "--microbatches", "4"]
    assert guarded(NAME, main, [str(model), "-o", str(output), *fixed, *words]) == 0
    return output.read_bytes()


def test_plans_are_the_same_with_and_without(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALPA_MLIR_CACHE_DIR", str(folder))
    solved = []
    solve = optimize._solved
    monkeypatch.setattr(optimize, "_solved", lambda *a: solved.append(1) or solve(*a))
    without = planned(model, tmp_path / "a.mlir", "--no-cache")
    assert solved and not folder.exists()
    solved.clear()
    assert planned(model, tmp_path / "b.mlir") == without and solved
    solved.clear()
    # The same program under another name, on a cluster file of another name.
    renamed = tmp_path / "renamed.mlir"
    renamed.write_text(model.read_text().replace("module @", "module @other_"))
    planned(renamed, tmp_path / "c.mlir")
    assert not solved
    entries = sorted((folder / "stages").iterdir())
    assert entries
    entries[0].write_bytes(b"\0" * 40)
    entries[1].write_bytes(entries[1].read_bytes()[:-3])
    assert planned(model, tmp_path / "d.mlir") == without
    assert len(sorted((folder / "stages").iterdir())) == len(entries)


def test_other_rules_and_other_content_are_other_results(tmp_path: Path) -> None:
    store = Store(tmp_path)
    calls = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(3)}

    for version, key, expected in (("1", "a", 1), ("1", "a", 1), ("2", "a", 2), ("2", "b", 3)):
        with remembering(store, version):
            assert remembered(lambda k=key: digest(k), compute)["x"].tolist() == [0, 1, 2]
        assert len(calls) == expected
    assert remembered(lambda: digest("a"), compute)["x"].tolist() == [0, 1, 2] and len(calls) == 4
    for path in tmp_path.iterdir():
        store.put(path.name, b"no arrays")
    with remembering(store, "1"):
        assert remembered(lambda: digest("a"), compute)["x"].tolist() == [0, 1, 2] and len(calls) == 5


def test_a_digest_tells_parts_apart() -> None:
    found = {digest(*parts) for parts in (("a", "b"), ("ab",), (b"a", "b"), (1.0, 2), (1, 2.0), ())}
    assert len(found) == 6
