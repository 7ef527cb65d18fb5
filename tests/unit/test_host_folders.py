"""The cache folder, and whether it can be written to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from torch._inductor import cpp_builder

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.host import cannot_compile, unwritable, user_cache
from river_vllm.weights.cache import cache_folders, weights_folder
from server.cli.process import writable_caches
from tests.support.processes import forked


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RIVER_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == tmp_path / ".cache" / "river-vllm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == tmp_path / ".cache" / "river-vllm"
    monkeypatch.setenv("RIVER_CACHE_DIR", "~/elsewhere")
    assert user_cache() == tmp_path / "elsewhere"


def test_a_folder_is_made_or_says_why_it_cannot_be(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new" / "one") is None
    assert list((tmp_path / "new" / "one").iterdir()) == []
    assert unwritable(Path("/proc/none/x")) == "No such file or directory"


def folders_of_another(closed: Path, home: Path | None) -> tuple[Path, str | None]:
    """The cache of a user without a name, and why it cannot be written to."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "RIVER_CACHE_DIR", "HF_HOME"):
        os.environ.pop(name, None)
    if home is not None:
        os.environ["HOME"] = str(home)
    cpp_builder.get_cpp_compiler = lambda: "/bin/true"
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
    os.chdir("/")
    reason = unwritable(user_cache())
    assert cannot_compile() is None
    assert cache_folders("auto", str(closed / "model")) == [user_cache()]
    with suppress(RiverError):
        weights_folder(RiverConfig(quantizer="gptq"), str(closed / "model"))
    with writable_caches():
        assert unwritable(user_cache()) is None
    return user_cache(), reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_that_can_be_entered(tmp_path: Path) -> None:
    """As in a container whose user has a number and no name."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    cache = closed / "home/.cache/river-vllm"
    assert forked(folders_of_another, closed, closed / "home") == (cache, "Permission denied")
    nowhere = Path("/dev/null/~/.cache/river-vllm")
    assert forked(folders_of_another, closed, None) == (nowhere, "Not a directory")
