"""Who is asked: address, model, river, and what the server counts meanwhile."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Self

import httpx

from river_vllm.errors import RiverError
from server.eval.options import EvalOptions

_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Side:
    """A server, ready to be asked."""

    base: str
    """With the version prefix, without a slash at the end."""
    model: str
    river: dict[str, Any] | None

    def __str__(self) -> str:
        river = "as the server has it" if self.river is None else self.river
        return f"{self.base}, model {self.model}, river {river}"

    def stats(self) -> dict[str, Any]:
        """The totals of ``/river/stats``; empty where there are none."""
        try:
            answer = _get(f"{self.base.removesuffix('/v1')}/river/stats")
            totals: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return {}
        return totals


@dataclass(frozen=True, slots=True)
class Depth:
    """Decode tokens between two looks at ``/river/stats``."""

    tokens: int
    num_layers: int
    mean_exit_layer: float
    held: int
    """Tokens that had settled and stayed, since leaving would not have paid."""

    @classmethod
    def between(cls, before: dict[str, Any], after: dict[str, Any]) -> Self | None:
        """None where a server tells nothing, or was started anew meanwhile."""
        tokens, layers, held = (
            after.get(name, 0) - before.get(name, 0)
            for name in ("tokens", "backbone_layers", "held_tokens")
        )
        if tokens <= 0:
            return None
        return cls(tokens, after["num_layers"], layers / tokens, held)

    def __str__(self) -> str:
        return (
            f"mean exit layer {self.mean_exit_layer:.2f} of {self.num_layers}, "
            f"{self.held} of {self.tokens} decode tokens held"
        )


def find_sides(options: EvalOptions) -> dict[str, Side]:
    """A and B; each has answered.

    Raises:
        RiverError: a URL or a model is not one, or a server cannot be used.
    """
    base = _base_url("--base-url", options.base_url)
    base_b = base if options.against is None else _base_url("--against", options.against)
    model_b = options.against_model or options.model
    return {
        "A": Side(base, _model("--model", options.model, base), options.river),
        "B": Side(base_b, _model("--against-model", model_b, base_b), options.against_river),
    }


def _base_url(option: str, text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise RiverError(f"{option} = {text!r}: {error}") from None
    path = url.path.rstrip("/")
    if url.scheme not in ("http", "https") or not url.host or path.endswith("/completions"):
        raise RiverError(f"{option} = {text!r}: expected http://HOST:PORT[/v1]")
    return str(url.copy_with(path=path or "/v1")).rstrip("/")


def _model(option: str, given: str | None, base: str) -> str:
    try:
        models = [
            str(row["id"]) for row in _get(f"{base}/models").raise_for_status().json()["data"]
        ]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise RiverError(f"{base}/models does not answer as it should: {error}") from None
    if given is None and len(models) == 1:
        return models[0]
    if given not in models:
        raise RiverError(f"{option} = {given!r}: expected one of {', '.join(models)}")
    return given


def _get(url: str) -> httpx.Response:
    key = os.environ.get("OPENAI_API_KEY")  # where lm-eval looks for it too
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(url, headers=headers, timeout=_SECONDS)
