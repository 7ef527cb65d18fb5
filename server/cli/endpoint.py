"""The server that a command sends requests to: address, key, model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from river_vllm.errors import RiverError
from river_vllm.host import text_of

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"

_SECONDS = 30.0
"""Timeout of requests that need no engine."""


class EndpointError(RiverError):
    """An endpoint is unusable: unreachable, refuses the key, or serves no model."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server with its model and request headers."""

    base: str
    """URL with the version prefix, without a slash at the end."""
    model: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


def read_key(variable: str | None, file: Path | None) -> str | None:
    """The API key from ``file``, else from the environment variable, else ``None``.

    ``variable=None`` means ``OPENAI_API_KEY``, which may be unset.

    Raises:
        RiverError: the file or the named variable is missing or empty.
    """
    if file is not None:
        place = f"API key file '{file}'"
        if key := text_of(file, place).strip():
            return key
        raise RiverError(f"{place}: the file is empty")
    key = os.environ.get(variable or DEFAULT_KEY_VARIABLE, "").strip()
    if variable is not None and not key:
        raise RiverError(f"API key: the variable '{variable}' is not set or empty")
    return key or None


def list_models(base: str, headers: dict[str, str]) -> list[str]:
    """The models that the server at ``base`` lists.

    Raises:
        EndpointError: the server is unreachable, refuses, or answers something else.
    """
    try:
        response = httpx.get(f"{base}/models", headers=headers, timeout=_SECONDS)
    except (httpx.HTTPError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise EndpointError(
            f"{base}: cannot be reached: {reason}; start the server, or give its address"
        ) from None
    if response.status_code != 200:
        told = f"{base}/models: HTTP {response.status_code}"
        if response.status_code == 401:
            told += f"; give its key ({DEFAULT_KEY_VARIABLE}, unless an option names another)"
        raise EndpointError(told)
    try:
        return [str(row["id"]) for row in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise EndpointError(f"{base}/models: no list of models in the answer") from None


def find_endpoint(base: str, model: str | None, key: str | None, option: str) -> Endpoint:
    """The endpoint at ``base``, by default with the only model that it lists.

    Args:
        option: the option that names the model, for errors.

    Raises:
        EndpointError: the server lists several models or none, or cannot be used.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if model is None:
        models = list_models(base, headers)
        if len(models) != 1:
            shown = ", ".join(models) or "none"
            raise EndpointError(f"{base}: lists {len(models)} models ({shown}): give {option}")
        (model,) = models
    return Endpoint(base, model, headers)
