"""The API description with River's fields in vLLM's own schemas."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from river_vllm.modes import MODES
from river_vllm.request import RiverField

REQUESTS = ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest")
RESPONSES = ("ChatCompletionResponse", "CompletionResponse", "ResponsesResponse")


def describe_river(app: FastAPI) -> None:
    """Add River's fields to the schemas that ``app.openapi`` returns."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        components = schema.get("components", {}).get("schemas", {})
        field = RiverField.model_json_schema()
        report = {"anyOf": [mode.schema for mode in MODES]}
        for name in REQUESTS:
            if name in components:
                components[name].setdefault("properties", {})["river"] = field
        for name in RESPONSES:
            if name in components:
                components[name].setdefault("properties", {})["river"] = report
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
