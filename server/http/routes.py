"""River's own routes, and its fields in the API description of vLLM's."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from river_vllm.modes import MODES
from river_vllm.request import RiverField, unreachable
from server.http.errors import SHUTTING_DOWN, FieldError, error_response
from server.http.state import RiverState, refresh

router = APIRouter(tags=["river"])


class RiverPatch(BaseModel):
    """Settings that can be changed while the server runs."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    threshold: float = Field(
        ge=-1.0,
        le=1.0,
        description="default threshold of exits, for requests that arrive from now on",
    )


def _state(request: Request) -> RiverState | None:
    return getattr(request.app.state, "river", None)


@router.get("/river", summary="The river in force")
async def describe(request: Request) -> dict[str, Any]:
    state = _state(request)
    if state is None:
        return {"active": False}
    await refresh(request.app.state.engine_client, state)
    adapters = list(request.app.state.openai_serving_models.lora_requests)
    return {**state.describe(), "adapters": adapters}


@router.get("/river/stats", summary="Totals since the start")
async def stats(request: Request) -> Response:
    state = _state(request)
    if state is None:
        return _inactive()
    return JSONResponse({"server": state.identity, **state.metrics.totals()})


@router.patch(
    "/river",
    summary="Change the default threshold",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": RiverPatch.model_json_schema()}},
        }
    },
)
async def patch(request: Request) -> Response:
    state = _state(request)
    if state is None:
        return _inactive()
    if not state.single_process:
        return error_response(
            "the default threshold can be changed live with one API server process only "
            "(--api-server-count 1); requests can bring their own",
            HTTPStatus.CONFLICT,
        )
    try:
        change = RiverPatch.model_validate_json(await request.body())
    except ValidationError as error:
        wrong = FieldError.from_validation(error, "body", RiverPatch)
        return error_response(str(wrong), param=wrong.param)
    changed = replace(state.defaults, threshold=change.threshold)
    if reason := unreachable(changed, state.config, state.num_layers):
        return error_response(str(reason), param=f"body.{reason.field}")
    state.set_threshold(change.threshold)
    return JSONResponse(state.describe())


@router.get("/ready", summary="200 while the engine makes progress")
async def ready(request: Request) -> Response:
    state = _state(request)
    client = getattr(request.app.state, "engine_client", None)
    if client is not None and client.errored:
        return error_response("the engine has failed", HTTPStatus.SERVICE_UNAVAILABLE)
    if state is not None and state.ending.begun:
        return error_response(SHUTTING_DOWN, HTTPStatus.SERVICE_UNAVAILABLE)
    if state is not None and not state.progress.ready:
        return error_response(
            f"work waits and the engine has made no progress for "
            f"{state.progress.stalled_for():.0f} s",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )
    return JSONResponse({"ready": True})


def _inactive() -> Response:
    return error_response("this server's model has no river", HTTPStatus.NOT_FOUND)


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
        added = dict.fromkeys(REQUESTS, field) | dict.fromkeys(RESPONSES, report)
        for name in added.keys() & components.keys():
            components[name].setdefault("properties", {})["river"] = added[name]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
