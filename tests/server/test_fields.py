"""Wrong requests get OpenAI's error object with the field in it, and harm nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

WRONG: list[tuple[Any, str]] = [
    ({"threshold": 1.01}, "river.threshold"),
    ({"threshold": -1.5}, "river.threshold"),
    ({"threshold": "0.9"}, "river.threshold"),
    ({"threshold": True}, "river.threshold"),
    ({"threshold": [0.9]}, "river.threshold"),
    ({"threshold": 1e400}, "river.threshold"),
    ({"min_layers": 0}, "river.min_layers"),
    ({"min_layers": 31}, "river.min_layers"),
    ({"min_layers": 2.5}, "river.min_layers"),
    ({"min_layers": 10**30}, "river.min_layers"),
    ({"enabled": "no"}, "river.enabled"),
    ({"trace": 1}, "river.trace"),
    ({"tau": 0.9}, "river.tau"),
    ({"threshold": {"a": {"b": {}}}}, "river.threshold"),
    (None, "river"),
    (0.9, "river"),
    ([], "river"),
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("field", "param"), WRONG, ids=str)
def test_wrong_field(server: RiverServer, path: str, field: Any, param: str) -> None:
    body = json.dumps({"model": NAME, **BODIES[path], "river": field})
    response = server.post_raw(path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["code"] == 400
    assert param.rsplit(".", 1)[-1] in error["message"]


def test_nan_is_refused(server: RiverServer) -> None:
    response = server.post_raw(
        "/v1/completions",
        '{"model": "' + NAME + '", "prompt": "Hi", "river": {"threshold": NaN}}',
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "river.threshold"


def test_the_field_is_refused_where_it_is_not_taken(server: RiverServer) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
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
