"""River data of one HTTP request: the ``river`` field, and the exit layers of its choices."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from river_vllm.modes import mode_of
from river_vllm.modes.mode import Numbers
from river_vllm.request import RiverField, RiverSettings, UnreachableError, resolve
from server.http.errors import FieldError
from server.http.state import RiverState


@dataclass(slots=True)
class RiverExchange:
    """One request's data, shared by middleware and engine client through a context variable."""

    settings: RiverSettings
    num_layers: int
    trace: bool = False
    _calls: int = 0
    _choices: dict[int, list[int]] = field(default_factory=dict)
    _unsent: dict[int, list[int]] = field(default_factory=dict)

    def next_call(self, choices: int) -> int:
        """The index of the first choice of the next engine call.

        An HTTP request makes one call, one per prompt of a list in order, or one per turn between
        the Responses API's own tools.
        """
        first = self._calls
        self._calls += choices
        return first

    def add(self, choice: int, depths: Numbers) -> None:
        """Add the depths of a choice's next tokens."""
        self._choices.setdefault(choice, []).extend(depths.tolist())

    def stream(self, choice: int, layers: Sequence[int]) -> None:
        """Queue the exit layers of a choice's next tokens for a stream with ``trace``."""
        if self.trace and layers:
            self._unsent.setdefault(choice, []).extend(layers)

    def take_unsent(self, choice: int) -> list[int]:
        """The exit layers of the choice's tokens since the last call."""
        return self._unsent.pop(choice, [])

    def trace_of(self, choice: int) -> list[int]:
        """One number per token of a choice: its exit layer; if verified, 1 if drafted, else 0."""
        return mode_of(self.settings).trace(self._depths(choice))

    def whole_trace(self) -> list[int]:
        """The traces of all engine calls, in order. A response without choices may take several
        calls: one before each tool call and one after the last."""
        return [depth for choice in sorted(self._choices) for depth in self.trace_of(choice)]

    def _depths(self, choice: int) -> Numbers:
        return np.array(self._choices.get(choice, []), dtype=np.int16)

    def report(self) -> dict[str, Any]:
        """The ``river`` object of the response."""
        summary = mode_of(self.settings).summary()
        for choice in self._choices:
            summary.add(self._depths(choice))
        return {
            "enabled": self.settings.enabled,
            "mode": self.settings.answered_by,
            **summary.report(self.settings, self.num_layers),
        }


current_exchange: ContextVar[RiverExchange | None] = ContextVar("river_exchange", default=None)
"""The exchange of the HTTP request that is being handled."""


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
