"""The cache folder, and whether it can be written to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from river_vllm.host import unwritable, user_cache


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


AS_ANOTHER = """
import os, sys
from torch._inductor import cpp_builder
from river_vllm.host import cannot_compile
from river_vllm.config import RiverConfig
from river_vllm.host import unwritable, user_cache
from river_vllm.errors import RiverError
from river_vllm.weights.cache import cache_folders, weights_folder
from server.cli.process import writable_caches

closed, compiler = sys.argv[1:]
cpp_builder.get_cpp_compiler = lambda: compiler
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
os.chdir("/")
print(user_cache(), unwritable(user_cache()), sep=": ")
assert cannot_compile() is None
assert cache_folders("auto", closed + "/model") == [user_cache()]
try:
    weights_folder(RiverConfig(quantizer="gptq"), closed + "/model")
except RiverError:
    pass
with writable_caches():
    assert unwritable(user_cache()) is None
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", [True, False], ids=["a closed home", "no home"])
def test_a_user_without_a_home_that_can_be_entered(tmp_path: Path, home: bool) -> None:
    """As in a container whose user has a number and no name."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    kept = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "RIVER_CACHE_DIR", "HF_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    if home:
        environment["HOME"] = str(closed / "home")
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, str(closed), "/bin/true"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    path, reason = done.stdout.strip().split(": ")
    if home:
        assert (path, reason) == (f"{closed}/home/.cache/river-vllm", "Permission denied")
    else:
        assert (path, reason) == ("/dev/null/~/.cache/river-vllm", "Not a directory")
