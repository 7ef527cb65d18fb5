"""Where requests go: address, key, model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from river_vllm.errors import RiverError

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"

_CONNECT_SECONDS = 30.0

_IDLE_SECONDS = 2.0
"""Unused connections close after this. Common servers close theirs after 5 s; reusing one at
that very moment would look like a failure of the server."""


class EndpointError(Exception):
    """The endpoint cannot be used at all: unreachable, refuses the key, serves no model."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server, ready to be asked."""

    base: str
    """With the version prefix, without a slash at the end."""
    model: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


def read_key(variable: str | None, file: Path | None) -> str | None:
    """The API key from ``file``, else from the environment variable, else ``None``.

    ``variable=None`` means the usual one, which may be unset.

    Raises:
        RiverError: what was asked for is missing or empty.
    """
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RiverError(f"API key file '{file}': {reason}") from None
        if not key:
            raise RiverError(f"API key file '{file}': the file is empty")
        return key
    key = os.environ.get(variable or DEFAULT_KEY_VARIABLE, "").strip()
    if variable is not None and not key:
        raise RiverError(f"API key: the variable '{variable}' is not set or empty")
    return key or None


def make_client() -> httpx.AsyncClient:
    """A client that never queues requests on its own: httpx's 100 connections are lifted.

    It has no time-out for reading, since whole requests have their own.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_SECONDS
        ),
        headers={"accept-encoding": "identity"},
    )


async def find_endpoint(
    client: httpx.AsyncClient, base: str, model: str | None, key: str | None
) -> Endpoint:
    """The endpoint at ``base``; without ``model``, the only one that it lists.

    Raises:
        EndpointError: it cannot be reached, refuses, or the model has to be named.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if model is not None:
        return Endpoint(base, model, headers)
    try:
        response = await client.get(f"{base}/models", headers=headers, timeout=_CONNECT_SECONDS)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EndpointError(
            f"{base}: cannot be reached: {reason}; start the server, or give its address"
        ) from None
    if response.status_code != 200:
        cure = "; give its key by --api-key-file" if response.status_code == 401 else ""
        raise EndpointError(f"{base}/models: HTTP {response.status_code}{cure}")
    try:
        models = [str(row["id"]) for row in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise EndpointError(f"{base}/models: no list of models in the answer") from None
    if len(models) != 1:
        shown = ", ".join(models) or "none"
        raise EndpointError(f"{base}: lists {len(models)} models ({shown}): --model-a or --model-b")
    return Endpoint(base, models[0], headers)
