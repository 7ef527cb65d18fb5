"""The requests of README and of docs/learn.md, sent to a real server as they stand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.documents import Block, Command, blocks, commands
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

MODEL = "models/smollm2-135m"
PAGES = ("README.md", "docs/learn.md")
ASKED = [c for c in commands(start="curl") if c.block.page in PAGES and MODEL in c.text]
CLIENTS = [b for b in blocks() if b.page in PAGES and b.language == "python" and MODEL in b.text]


@pytest.mark.parametrize("command", ASKED, ids=str)
def test_answers_report(command: Command, server: RiverServer) -> None:
    words = command.words
    path = next(word for word in words if "://" in word).partition(":8000")[2]
    body = json.loads(words[words.index("-d") + 1].replace(MODEL, NAME))
    response = server.post(path, body)
    assert response.status_code == 200
    chunks = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    report = json.loads(chunks[-1] if body.get("stream") else response.text)["river"]
    # The default of this server is exits.
    assert set(report) >= {"tokens", "mean_exit_layer", "exit_layers"}


@pytest.mark.parametrize("block", CLIENTS, ids=str)
def test_client_programs(block: Block, server: RiverServer, capsys) -> None:
    program = block.text.replace("http://127.0.0.1:8000", server.url).replace(MODEL, NAME)
    names: dict[str, Any] = {}
    exec(compile(program, str(block), "exec"), names)
    assert "'exit_layers'" in capsys.readouterr().out
