"""README's figures are those of the pages to which it links, whose tables the experiments print."""

from __future__ import annotations

import re

import pytest

from tests.docs.documents import FENCE, LINK, ROOT, sections

FIGURE = re.compile(r"(\d[\d.,]*\d|\d)(?=x| %| MiB| times| s\b)|(?<=\| )([\d.,]+\d)(?= \|)")
"""A number with its unit, or alone in a cell of a table."""
README = FENCE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))


def claims() -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of tables and paragraphs, each with links to its data: a row's own or, if it has none,
    those of the paragraph before its table."""
    found, before = [], ""
    for block in re.split(r"\n\n+", README):
        if not block.startswith("|"):
            before = block
        for part in block.splitlines() if block.startswith("|") else [block]:
            links = [link for link in LINK.findall(part) if link[1]]
            found.append((part, links or [link for link in LINK.findall(before) if link[1]]))
    return [claim for claim in found if FIGURE.search(claim[0])]


@pytest.mark.parametrize(("text", "links"), claims(), ids=lambda value: str(value)[:40])
def test_figures_are_in_the_linked_sections(text: str, links: list[tuple[str, str]]) -> None:
    data = "".join(sections(ROOT / path)[anchor] for path, anchor in links)
    figures = {number for match in FIGURE.findall(text) for number in match if number}
    plain = {figure for figure in figures if not re.search(rf"(?<![\d.,]){figure}(?![\d])", data)}
    assert plain == set(), text


def test_most_of_readmes_tables_have_figures() -> None:
    assert len(claims()) > 15
