"""The cache folder, and whether it can be written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from river_vllm.folders import unwritable, user_cache


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RIVER_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == tmp_path / ".cache" / "river-vllm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == tmp_path / ".cache" / "river-vllm"
    monkeypatch.setenv("RIVER_CACHE_DIR", "~/elsewhere")
    assert user_cache() == tmp_path / "elsewhere"


def test_a_folder_is_tried_and_made(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new" / "one") is None
    assert list((tmp_path / "new" / "one").iterdir()) == []


def test_a_folder_that_refuses_says_why(tmp_path: Path) -> None:
    assert unwritable(Path("/proc/none/x")) == "No such file or directory"
    (tmp_path / "file").touch()
    assert unwritable(tmp_path / "file" / "x") == "Not a directory"
