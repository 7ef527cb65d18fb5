"""The ``river`` field of a request body: taken out, checked, resolved against the defaults."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from river_vllm.request import RiverField, UnreachableError, resolve
from server.http.errors import FieldError
from server.http.exchange import RiverExchange
from server.http.state import RiverState

FIELD = "river"

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""Endpoints that take the field and report on it."""

OTHERS = (
    "/v1/chat/completions/batch",
    "/v1/messages",
    "/v1/systemone",
    "/inference/v1/generate",
    "/invocations",
    "/generative_scoring",
    "/cohere/v2/chat",
    *(f"{path}/render" for path in (*GENERATING, "/v1/messages", "/cohere/v2/chat")),
)
"""Endpoints that refuse the field: they generate with server defaults or render a request."""


def take_exchange(path: str, body: dict[str, Any], state: RiverState) -> RiverExchange | None:
    """Remove ``river`` from ``body`` and return the request's exchange.

    Returns:
        None for endpoints without the field, and for beam search, whose steps are separate engine
        requests.

    Raises:
        FieldError: names the field, the value and what is allowed.
    """
    xargs = body.get("vllm_xargs")
    if isinstance(xargs, dict) and FIELD in xargs:
        raise FieldError("vllm_xargs.river", "vllm_xargs: use the 'river' field of the body")
    params = body.get("sampling_params")
    extra = params.get("extra_args") if isinstance(params, dict) else None
    if isinstance(extra, dict) and FIELD in extra:
        # /inference/v1/generate takes vLLM's own parameters, not the field.
        raise FieldError(
            "sampling_params.extra_args.river",
            f"sampling_params.extra_args.river is not taken by {path} (the 'river' field is taken "
            f"by: {', '.join(GENERATING)})",
        )
    given = FIELD in body
    raw = body.pop(FIELD, None)
    if path not in GENERATING:
        if given:
            raise FieldError(
                FIELD, f"'{FIELD}' is not taken by {path} (taken by: {', '.join(GENERATING)})"
            )
        return None
    field = _parse(raw) if given else RiverField()
    try:
        settings = resolve(field, state.defaults, state.config, state.num_layers)
    except UnreachableError as error:
        raise FieldError(f"{FIELD}.{error.field}", f"{FIELD}: {error}") from None
    for option in ("background", "use_beam_search"):
        if given and body.get(option):
            raise FieldError(FIELD, f"'{FIELD}' cannot be combined with '{option}'")
    if body.get("use_beam_search"):
        return None
    return RiverExchange(settings, state.num_layers, field.trace)


def _parse(raw: Any) -> RiverField:
    if not isinstance(raw, dict):
        raise FieldError(
            FIELD, f"'{FIELD}' must be an object with {', '.join(RiverField.model_fields)}"
        )
    if len(raw) > len(RiverField.model_fields):
        # Report one unknown name: a body may hold a million.
        raw = {next(name for name in raw if name not in RiverField.model_fields): None}
    try:
        return RiverField.model_validate(raw)
    except ValidationError as error:
        raise FieldError.from_validation(error, FIELD, RiverField) from None
