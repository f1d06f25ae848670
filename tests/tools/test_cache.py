"""The folder of what was computed before: whole files or none, damage recognised, bounded, never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alpa_mlir.cache import Store, cache_directory


def test_what_was_put_is_found_by_any_process_that_shares_the_folder(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b").put("x", b"value")
    Store(tmp_path / "a" / "b").put("x", b"newer")
    assert Store(tmp_path / "a" / "b").get("x") == b"newer"
    assert Store(tmp_path / "a" / "b").get("y") is None
    assert os.listdir(tmp_path / "a" / "b") == ["x"]


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 40, None])
def test_a_damaged_entry_is_missing_and_deleted(damage: bytes | None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("x", b"value")
    path = tmp_path / "x"
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert store.get("x") is None
    assert not path.exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put("x", b"value")
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.put("x", b"other")
    assert os.listdir(tmp_path) == ["x"]
    assert store.get("x") == b"value"


def test_a_folder_that_cannot_be_written_is_told_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "below")
    store.put("x", b"value")
    assert store.get("x") is None
    assert store.trouble == f"nothing is kept in {tmp_path}/file/below: Not a directory"


def test_the_longest_unused_entries_go_first(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        Store(tmp_path).put(name, b"." * 100)
        os.utime(tmp_path / name, ns=(i, i))
    assert Store(tmp_path).get("a") is not None  # used just now
    Store(tmp_path, limit=300).put("d", b"." * 100)
    assert sorted(os.listdir(tmp_path)) == ["a", "d"]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ALPA_MLIR_CACHE_DIR")
    assert cache_directory() == Path("/home/me/.cache/alpa_mlir")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/alpa_mlir")
    monkeypatch.setenv("ALPA_MLIR_CACHE_DIR", "/chosen")
    assert cache_directory() == Path("/chosen")
