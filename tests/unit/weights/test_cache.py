"""Folders of saved weights: which, in what order, and what happens when one is damaged."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from river_vllm.weights.cache import WeightCache, cache_folders
from river_vllm.weights.quantizers import GroupedWeight
from tests.unit.weights.test_packed import grouped

KEY = "0123abcd"


def same(a: GroupedWeight | None, b: GroupedWeight) -> bool:
    return a is not None and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("codes", "scales", "zeros")
    )


def blocked(folder: Path) -> Path:
    """A folder that nobody can make, not even root: there is a file in its place."""
    folder.write_text("not a folder")
    return folder


def test_what_was_put_is_found_by_the_next_start(tmp_path: Path) -> None:
    weight = grouped()
    WeightCache([tmp_path]).put(KEY, weight)
    later = WeightCache([tmp_path])
    assert same(later.get(KEY), weight)
    assert later.found_in == tmp_path
    assert later.get("another") is None
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_all_folders_are_read_and_the_first_writable_is_written(tmp_path: Path) -> None:
    first, second = blocked(tmp_path / "first"), tmp_path / "second"
    cache = WeightCache([first, second])
    cache.put(KEY, grouped())
    assert cache.writes_to == second
    assert same(WeightCache([first, second]).get(KEY), grouped())
    nowhere = WeightCache([first])
    nowhere.put(KEY, grouped())
    assert (nowhere.writes_to, nowhere.get(KEY)) == (None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to a read-only folder")
def test_a_read_only_folder_is_read(tmp_path: Path) -> None:
    WeightCache([tmp_path]).put(KEY, grouped())
    tmp_path.chmod(0o555)
    cache = WeightCache([tmp_path])
    assert same(cache.get(KEY), grouped())
    cache.put("other", grouped())
    assert cache.writes_to is None
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("damage", ["cut", "folder"])
def test_a_damaged_file_is_named_and_made_again(
    damage: str, tmp_path: Path, warnings: list[str]
) -> None:
    cache = WeightCache([tmp_path])
    cache.put(KEY, grouped())
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.unlink()
        path.mkdir()
    assert cache.get(KEY) is None
    assert str(path) in warnings[-1]
    if damage == "cut":
        cache.put(KEY, grouped())
        assert same(cache.get(KEY), grouped())


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    weight = grouped()
    seen: list[bool] = []

    def write() -> None:
        for _ in range(20):
            WeightCache([tmp_path]).put(KEY, weight)
            seen.append(same(WeightCache([tmp_path]).get(KEY), weight))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen) and len(seen) == 80
    assert len(list(tmp_path.iterdir())) == 1


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIVER_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    user = tmp_path / "xdg" / "river-vllm"
    assert cache_folders("off", str(tmp_path)) == []
    assert cache_folders("/some/where", str(tmp_path)) == [Path("/some/where")]
    assert cache_folders("auto", str(tmp_path)) == [tmp_path / "river", user]
    assert cache_folders("auto", "someone/some-model") == [user]


def test_a_folder_that_may_not_be_read_is_said_once(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    cache = WeightCache([tmp_path])
    assert [cache.get(KEY), cache.get("other")] == [None, None]
    assert len(warnings) == 1 and f"'{tmp_path}' cannot be read" in warnings[0]
