"""The API description with River's fields in vLLM's own schemas."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from river_vllm.request import RiverField

REQUESTS = ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest")
RESPONSES = ("ChatCompletionResponse", "CompletionResponse", "ResponsesResponse")

VERIFIED_REPORT: dict[str, Any] = {
    "type": "object",
    "description": "What became of the river's drafts (--river-verify).",
    "properties": {
        "enabled": {"type": "boolean"},
        "mode": {"type": "string", "enum": ["verified"]},
        "num_layers": {"type": "integer"},
        "tokens": {"type": "integer", "description": "tokens generated in decode steps"},
        "steps": {"type": "integer", "description": "decode steps: passes of the backbone"},
        "tokens_per_step": {"type": ["number", "null"]},
        "drafted": {"type": "integer", "description": "tokens that the backbone checked"},
        "accepted": {"type": "integer", "description": "drafted tokens in the answer"},
        "acceptance": {"type": ["number", "null"]},
    },
}

REPORT: dict[str, Any] = {
    "type": "object",
    "description": "How deep the tokens of this response ran.",
    "properties": {
        "enabled": {"type": "boolean"},
        "mode": {"type": "string", "enum": ["exit", "backbone"]},
        "threshold": {"type": "number"},
        "num_layers": {"type": "integer", "description": "L: a token at L never exited"},
        "tokens": {"type": "integer", "description": "tokens generated in decode steps"},
        "mean_exit_layer": {"type": ["number", "null"]},
        "exit_layers": {
            "type": "object",
            "description": "exit layer (backbone layers run) to number of tokens",
            "additionalProperties": {"type": "integer"},
        },
        "held": {
            "type": "integer",
            "description": "tokens that ran on only because leaving would not have paid",
        },
    },
}


def describe_river(app: FastAPI) -> None:
    """Extend ``app.openapi``; computed once, as FastAPI does."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        components = schema.get("components", {}).get("schemas", {})
        field = RiverField.model_json_schema()
        report = {"anyOf": [REPORT, VERIFIED_REPORT]}
        for name in REQUESTS:
            if name in components:
                components[name].setdefault("properties", {})["river"] = field
        for name in RESPONSES:
            if name in components:
                components[name].setdefault("properties", {})["river"] = report
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
