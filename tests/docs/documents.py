"""The documentation as data: its pages, their code blocks, and the commands in them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = sorted([*TOP, *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
"""A link inside the repository: its path, empty within a page, and its anchor, if any."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a shell block."""

    block: Block
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, without variables that are set before it."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        return words

    def __str__(self) -> str:
        return f"{self.block} {self.text[:40]}"


@cache
def sections(page: Path) -> dict[str, str]:
    """The text below each heading of ``page``, its subsections included, by GitHub's anchor."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    headings = list(re.finditer(r"^(#+) (.+)$", text, re.MULTILINE))
    for place, match in enumerate(headings):
        level = len(match[1])
        ends = (later.start() for later in headings[place + 1 :] if len(later[1]) <= level)
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2]).lower()
        anchor = re.sub(r"[^\w -]", "", shown).replace(" ", "-")
        found.setdefault(anchor, text[match.end() : next(ends, len(text))])
    return found


@cache
def blocks() -> list[Block]:
    """Every fenced block that names its language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            inner = "".join(part.removeprefix(match[1]) for part in match[3].splitlines(True))
            found.append(Block(str(page.relative_to(ROOT)), line, match[2], inner))
    return found


@cache
def commands(page: str = "", start: str = "") -> list[Command]:
    """Commands of ``page`` (of all pages) whose text begins with ``start``."""
    return [
        command
        for block in blocks()
        if block.language in ("sh", "bash") and page in block.page
        for command in _split(block)
        if command.text.startswith(start)
    ]


def _split(block: Block) -> Iterator[Command]:
    """Lines, joined where a quote or a backslash leaves one open."""
    text = ""
    for line in block.text.splitlines():
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # an open quote
            text += "\n"
            continue
        if words:
            yield Command(block, text.strip())
        text = ""
    assert not text, f"{block}: a command does not end"


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of ``parser`` and of its commands."""
    found: set[str] = set()
    for action in parser._actions:
        found |= {name for name in action.option_strings if name.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(options_of, action.choices.values()))
    return found
