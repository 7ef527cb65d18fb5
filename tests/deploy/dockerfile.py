"""A Dockerfile as stages of instructions; enough of its grammar for this project's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One ``FROM`` and what follows it."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [value for key, value in self.instructions if key == keyword]

    def last(self, keyword: str) -> str:
        assert self.all(keyword), f"stage {self.name} has no {keyword}"
        return self.all(keyword)[-1]

    def environment(self) -> dict[str, str]:
        pairs = (re.findall(r"(\w+)=(\S+)", value) for value in self.all("ENV"))
        return {name: value for found in pairs for name, value in found}


@dataclass
class Dockerfile:
    """Stages by name, and the global arguments with the values that they stand for."""

    arguments: dict[str, str]
    stages: dict[str, Stage]


def read(path: Path) -> Dockerfile:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    result = Dockerfile({}, {})
    stage: Stage | None = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        keyword, _, value = " ".join(line.split()).partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: result.arguments[match[1]], base)
            stage = result.stages.setdefault(name, Stage(name, base))
        elif keyword == "ARG" and stage is None:
            name, _, default = value.partition("=")
            result.arguments[name] = default
        elif keyword:
            assert stage is not None
            stage.instructions.append((keyword, value))
    return result


def exec_form(value: str) -> list[str]:
    """The words of an instruction in exec form.

    Raises:
        AssertionError: it is in shell form, which puts a shell between signals and the server.
    """
    assert value.startswith("["), f"shell form: {value}"
    words = json.loads(value)
    assert isinstance(words, list)
    return words
