"""``river-vllm models`` and docs/models.md show one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from river_vllm.model.architectures import FAMILIES
from server.cli.main import main
from server.models import markdown

DOCS = Path(__file__).resolve().parents[3] / "docs" / "models.md"
BEGIN, END = "<!-- river-vllm models --markdown -->\n", "<!-- end -->\n"


def test_the_docs_show_the_table_of_the_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == markdown()


def test_markdown_and_the_terminal_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown()
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(family.architecture in shown for family in FAMILIES)


@pytest.mark.parametrize("where", ["standard output", "file"])
def test_json(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.json"
    assert main(["models", "--json", *([str(file)] if where == "file" else [])]) == 0
    printed = capsys.readouterr().out
    document = json.loads(file.read_text() if where == "file" else printed)
    assert [row["architecture"] for row in document["architectures"]] == [
        family.architecture for family in FAMILIES
    ]
    assert document["architectures"][0].keys() == {"architecture", "models", "notes"}
