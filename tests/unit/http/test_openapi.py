"""The API description."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from river_vllm.modes import MODES, mode_of
from river_vllm.request import RiverField
from server.http.exchange import RiverExchange
from server.http.openapi import describe_river
from tests.unit.http.support import DEFAULTS, VERIFIED, L


class ChatCompletionRequest(BaseModel):
    model: str


class ChatCompletionResponse(BaseModel):
    object: str


def test_generating_endpoints_describe_the_field_and_the_report() -> None:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat(body: ChatCompletionRequest) -> ChatCompletionResponse:
        raise NotImplementedError

    describe_river(app)
    found = app.openapi()["components"]["schemas"]
    request = found["ChatCompletionRequest"]["properties"]
    assert set(request) == {"model", "river"}
    assert set(request["river"]["properties"]) == set(RiverField.model_fields)
    assert request["river"]["additionalProperties"] is False
    assert found["ChatCompletionResponse"]["properties"]["river"] == {
        "anyOf": [mode.schema for mode in MODES]
    }


def test_the_described_report_is_the_one_that_is_sent() -> None:
    for settings in (DEFAULTS, VERIFIED):
        described = mode_of(settings).schema["properties"]
        assert set(described) == set(RiverExchange(settings, L).report())
