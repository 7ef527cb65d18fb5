"""Bad requests: refused with a client error and OpenAI's object, and the server is as before."""

from __future__ import annotations

from collections import defaultdict

import httpx
import pytest

from tests.support.forms import form
from tests.support.poison import Poison, corpus
from tests.support.server import RiverServer
from tests.support.wellness import assert_well

pytestmark = pytest.mark.engine

PATIENCE = 30.0
"""Seconds for one refusal; all but those that compile a grammar take milliseconds."""

GROUPS: dict[str, list[Poison]] = defaultdict(list)
for index, poison in enumerate(corpus()):
    GROUPS[form(f"{index // 40}", poison.name)].append(poison)


@pytest.mark.parametrize("group", GROUPS)
def test_poison(server: RiverServer, group: str) -> None:
    wrong = {}
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for poison in GROUPS[group]:
            fault = _fault(client, poison)
            if fault:
                wrong[poison.name] = fault
    assert_well(server)
    assert not wrong, "\n".join(f"{name}: {fault}" for name, fault in wrong.items())


def _fault(client: httpx.Client, poison: Poison) -> str | None:
    try:
        response = client.post(poison.path, content=poison.body, headers=poison.headers)
    except httpx.HTTPError as error:
        return repr(error)
    if response.status_code not in poison.allowed:
        return f"{response.status_code}: {response.text[:300]}"
    if response.status_code == 200:
        return None
    error = response.json().get("error")
    if response.status_code == 500 and isinstance(error, dict):
        return None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
        return f"not OpenAI's error object: {response.text[:300]}"
    if error["code"] != response.status_code or not error["message"]:
        return f"its code is not the status, or it says nothing: {error}"
    if len(response.content) > 20_000:
        return f"an answer of {len(response.content)} bytes"
    if "Traceback" in error["message"] or "/site-packages/" in error["message"]:
        return f"tells what is none of the client's business: {error['message']}"
    return None
