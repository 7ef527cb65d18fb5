"""Schemathesis over the server's own OpenAPI: nothing that fits it, or nearly, is an error 5xx.

But 501, with which vLLM says that the model has not got what a route is for.
"""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.support.forms import form
from tests.support.server import RiverServer
from tests.support.wellness import assert_well

pytestmark = pytest.mark.engine

EXAMPLES = form(short=4, long=100)
NEGATIVE_EXAMPLES = form(short=25, long=300)
RIVER = ("/river", "/river/stats", "/ready")


@pytest.fixture(scope="module")
def operations(server: RiverServer) -> list[Any]:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.skipif(form(True, False), reason="long form only (make reliability)")
def test_what_fits_the_schema_is_no_server_error(
    server: RiverServer, operations: list[Any]
) -> None:
    found = {}
    for operation in operations:
        found.update(_failures(server, operation, GenerationMode.POSITIVE, EXAMPLES))
    assert not found
    assert_well(server)


def test_what_does_not_fit_is_refused_on_rivers_routes(
    server: RiverServer, operations: list[Any]
) -> None:
    before = server.get("/river").json()
    mine = [operation for operation in operations if operation.path in RIVER]
    assert {operation.path for operation in mine} == set(RIVER)
    found = {}
    for operation in mine:
        found.update(_failures(server, operation, GenerationMode.NEGATIVE, NEGATIVE_EXAMPLES))
    assert not found
    assert server.get("/river").json() == before, "a wrong request has changed the dial"
    assert_well(server)


def _failures(
    server: RiverServer, operation: Any, mode: GenerationMode, examples: int
) -> dict[str, str]:
    """Requests to one route that got a status of 5xx; the first is enough."""
    strategy = operation.as_strategy(generation_mode=mode)
    found: dict[str, str] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def call(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            _shorten(operation.path, case.body)
        response = case.call(base_url=server.url, timeout=60)
        failed = response.status_code >= 500 and response.status_code != HTTPStatus.NOT_IMPLEMENTED
        if failed and len(found) < 3:
            request = f"{case.method} {case.formatted_path} {case.body!r}"
            found[request[:600]] = f"{response.status_code}: {response.text[:300]}"

    with contextlib.suppress(Unsatisfiable):  # there is no wrong way to call it
        call()
    return found


def _shorten(path: str, body: Any) -> None:
    """A generated limit may be anything up to the context's length; answers are not the point."""
    if not isinstance(body, dict):
        return
    body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = 16
    for field in ("max_completion_tokens", "n", "use_beam_search", "min_tokens", "background"):
        body.pop(field, None)
