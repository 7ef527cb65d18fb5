"""The installed command, where another ``server`` package comes first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = "import sys; from river_vllm.command import main; sys.exit(main())"


def run(*path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in path]}; {RUN}"]
    return subprocess.run(
        [*command, "--version"], cwd=path[0], capture_output=True, text=True, check=False
    )


def test_another_server_package_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").touch()
    found = run(tmp_path, ROOT)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert str(tmp_path / "server") in found.stderr
