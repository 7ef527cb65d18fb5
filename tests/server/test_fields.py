"""Wrong requests get OpenAI's error object with the field in it, and harm nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Hi"}]
WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "/v1/chat/completions": ({"messages": MESSAGES}, {"threshold": 1.01}, "river.threshold"),
    "/v1/completions": ({"prompt": "Hi"}, {"tau": 0.9}, "river.tau"),
    "/v1/responses": ({"input": "Hi"}, None, "river"),
}
"""A body, the field beside it, and the parameter of the error; others are in
tests/unit/http/test_field.py."""


@pytest.mark.parametrize("path", WRONG)
def test_wrong_field(server: RiverServer, path: str) -> None:
    body, field, param = WRONG[path]
    response = server.post(path, {"model": NAME, **body, "river": field})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["code"] == 400
    assert param.rsplit(".", 1)[-1] in error["message"]


def test_the_field_is_refused_where_it_is_not_taken(server: RiverServer) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 4}
    response = server.post("/v1/messages", {**body, "river": {"threshold": 0.5}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "river"
    assert server.post("/v1/messages", body).status_code == 200


def test_it_cannot_be_smuggled_past_the_check(server: RiverServer) -> None:
    body = {"model": NAME, "prompt": "Hi", "vllm_xargs": {"river": 5}}
    response = server.post("/v1/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "vllm_xargs.river"


def test_vllms_own_refusals_are_untouched(server: RiverServer) -> None:
    response = server.post("/v1/chat/completions", {"model": NAME, "messages": "no"})
    assert response.status_code == 400
    assert "messages" in response.json()["error"]["message"]
    response = server.post_raw("/v1/chat/completions", "{not json")
    assert response.status_code == 400
    response = server.post("/v1/completions", {"model": "another", "prompt": "Hi"})
    assert response.status_code == 404
