"""Tests that the documentation names exist: docs/operate.md says which one holds each claim."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.documents import PAGES, ROOT

NAME = re.compile(r"\b((?:tests/[\w/]*)?test_\w+\.py)|::(test_\w+)")
FILES = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    """``::test_x`` alone is of the file that was named before it."""
    file = ""
    for path, test in NAME.findall(page.read_text(encoding="utf-8")):
        file = path or file
        found = [one.read_text() for one in FILES if str(one).endswith(f"/{file}")]
        assert found, file
        assert not test or any(f"def {test}(" in text for text in found), f"{file}::{test}"
