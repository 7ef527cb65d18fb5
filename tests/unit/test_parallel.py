"""Which files of tests run in one process."""

from __future__ import annotations

import re

from tests.support.checkpoints import ROOT
from tests.support.parallel import TOGETHER

TESTS = ROOT / "tests"
ASKS = re.compile(r"^def test_\w+\([^)]*\bserver: RiverServer", re.MULTILINE)


def test_the_files_are_there() -> None:
    listed = [TESTS / f"{name}.py" for names in TOGETHER.values() for name in names.split()]
    assert [path for path in listed if not path.is_file()] == []


def test_the_sessions_server_is_started_in_one_process() -> None:
    asking = {
        str(path.relative_to(TESTS).with_suffix(""))
        for path in TESTS.rglob("test_*.py")
        if ASKS.search(path.read_text(encoding="utf-8"))
    }
    assert asking == set(TOGETHER["server"].split())
