"""What the documentation tells people to type is something that the programs take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from river_vllm.request import RiverField
from server.cli.main import build_parser
from server.http.exchange import GENERATING
from server.http.routes import RiverPatch
from tests.docs.documents import (
    LINK,
    OPTION,
    PAGES,
    ROOT,
    Command,
    blocks,
    commands,
    options_of,
    sections,
)
from tests.support.parser import serve_parser
from tools import reference

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
ELSEWHERE = (
    *("cd", "cp", "curl", "docker", "echo", "git", "grafana"),
    *("guidellm", "kubectl", "lm-eval", "mkdir"),
)
"""Programs whose arguments are not River's to know."""


def river(words: list[str]) -> None:
    if words[0] == "serve":
        serve(words)
        return
    build_parser().parse_args(words)


def vllm(words: list[str]) -> None:
    """Its ``serve`` takes River's setting; its ``bench`` is not River's to know."""
    if words[:2] != ["bench", "serve"]:
        serve(words)


def serve(words: list[str]) -> None:
    serve_parser().parse_args(words[1:])


def make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, re.MULTILINE)
    variables = [*re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE), "PYTHON"]
    for word in words:
        name, is_variable, value = word.partition("=")
        assert name in (variables if is_variable else targets), word
        if name == "ARGS" and "serve" in words:
            serve_parser().parse_args(["MODEL", *value.split()])


def pip(words: list[str]) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = settings["project"]["optional-dependencies"]
    # From a clone or a wheel: the package is on no index.
    named = [extra for word in words for extra in re.findall(r"^(?:\.|.*\.whl)\[([\w,]+)\]", word)]
    assert named
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


def python(words: list[str]) -> None:
    if words[:3] == ["-m", "vllm.entrypoints.openai.api_server", "--model"]:
        serve(["serve", *words[3:]])
    else:
        script = next(word for word in words if word.endswith(".py"))
        assert script.startswith("/opt/river/") or (ROOT / script).is_file(), script


def request(words: list[str]) -> None:
    """A curl of one of River's or vLLM's routes, with a body that is taken."""
    address = next(word for word in words if "://" in word or word.startswith("localhost"))
    path = urlsplit(address).path
    patch = "PATCH" in words
    assert path in ((*GENERATING, "/river") if not patch else ("/river",))
    body: Any = json.loads(words[words.index("-d") + 1])
    if patch:
        RiverPatch.model_validate(body)
    else:
        RiverField.model_validate(body.get("river", {}))


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "river-vllm": river,
    "vllm": vllm,
    "make": make,
    "pip": pip,
    "python": python,
    "python3": python,
    "curl": request,
}


@pytest.mark.parametrize("command", commands(), ids=str)
def test_commands_are_taken(command: Command) -> None:
    program, *words = command.words
    if program in CHECKS:
        CHECKS[program](words)
    elif program not in (*ELSEWHERE, "prometheus", "for", "done"):
        assert (ROOT / program).is_file(), f"{program}: add a check for it"


def test_options_exist() -> None:
    """Wherever a page names an option, in a block or in its text."""
    known = options_of(serve_parser()) | options_of(build_parser())
    foreign = {
        word
        for command in commands()
        for word in OPTION.findall(command.text)
        if command.words[0] not in CHECKS
    }
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = re.findall(r"`((?:river-vllm |-)[^`\n]*)`", text)
        named = {option for code in inline for option in OPTION.findall(code)}
        unknown = named - known - foreign - {"--require-hashes"}
        assert unknown == set(), page.name


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_the_reference_is_the_codes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- reference: " in text
    assert reference.written(text) == text, "make reference"


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language not in ("sh", "bash")], ids=str
)
def test_other_blocks_are_well_formed(block: Any) -> None:
    if block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "json":
        text = block.text if block.text.startswith("{") else f"{{{block.text}}}"
        json.loads(text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    else:
        assert block.language == "text"


def test_links_between_files_hold() -> None:
    """Also those of the pages outside the documentation site, whose build checks its own."""
    for page in PAGES:
        for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not anchor or anchor in sections(target), f"{page.name}: {path}#{anchor}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    words = ("-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html")
    command = [sys.executable, *words, str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
