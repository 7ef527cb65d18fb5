"""A command of ``river-vllm`` as a user runs it, in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main


@dataclass
class Ran:
    """What it left."""

    status: int
    out: str
    err: str
    document: Any
    """What ``--json`` wrote; None where it wrote nothing."""


def run(
    command: tuple[str, ...], words: tuple[object, ...], file: Path, capture: pytest.CaptureFixture
) -> Ran:
    file.unlink(missing_ok=True)
    try:
        status = main([*command, *map(str, words), "--json", str(file)])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    output = capture.readouterr()
    document = json.loads(file.read_text()) if file.exists() else None
    return Ran(status, output.out, output.err, document)
