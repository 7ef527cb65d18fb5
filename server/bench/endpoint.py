"""Where requests go: address, key, model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from server.bench.chunk import error_message
from server.bench.errors import BenchError, EndpointError

Api = Literal["chat", "completions"]
API_PATHS: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"

_CONNECT_SECONDS = 30.0

_IDLE_SECONDS = 2.0
"""Unused connections close after this. Common servers close theirs after 5 s; reusing one at
that very moment would look like a failure of the server."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server, ready to be asked."""

    base: str
    """With the version prefix, without a slash at the end."""
    model: str
    key: str | None = field(default=None, repr=False)

    def url(self, api: Api) -> str:
        return self.base + API_PATHS[api]

    @property
    def headers(self) -> dict[str, str]:
        return _authorization(self.key)


def base_url(text: str) -> str:
    """``text`` with ``/v1`` where it has no path of its own.

    Raises:
        BenchError: not an http(s) URL, or the address of a single route.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BenchError(f"URL {text!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise BenchError(f"URL {text!r}: expected http://HOST:PORT or https://HOST[/PREFIX]")
    if url.query or url.fragment or url.userinfo:
        raise BenchError(f"URL {text!r}: a query, a fragment or a password is not allowed")
    path = url.path.rstrip("/")
    if path.endswith(tuple(API_PATHS.values())):
        raise BenchError(f"URL {text!r}: give the server's base; --api chooses the route")
    return str(url.copy_with(path=path or "/v1")).rstrip("/")


def read_key(variable: str | None, file: str | None) -> str | None:
    """The API key from ``file``, else from the environment variable, else ``None``.

    ``variable=None`` means the usual one, which may be unset.

    Raises:
        BenchError: what was asked for is missing or empty.
    """
    if file is not None:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BenchError(f"--api-key-file {file!r}: {reason}") from None
        if not key:
            raise BenchError(f"--api-key-file {file!r}: the file is empty")
        return key
    key = os.environ.get(variable or DEFAULT_KEY_VARIABLE, "").strip()
    if variable is not None and not key:
        raise BenchError(f"--api-key-env {variable!r}: the variable is not set or empty")
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
    if model is not None:
        return Endpoint(base, model, key)
    models = await _list_models(client, base, key)
    if len(models) != 1:
        shown = ", ".join(models) or "none"
        raise EndpointError(f"{base}: lists {len(models)} models ({shown}); choose with --model")
    return Endpoint(base, models[0], key)


async def _list_models(client: httpx.AsyncClient, base: str, key: str | None) -> list[str]:
    try:
        response = await client.get(
            f"{base}/models", headers=_authorization(key), timeout=_CONNECT_SECONDS
        )
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise EndpointError(
            f"{base}: cannot be reached: {reason}; start the server, or give its address"
        ) from None
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.status_code != 200:
        reason = error_message(body) if isinstance(body, dict) and body else "no reason given"
        cure = "; give its key by --api-key-file" if response.status_code == 401 else ""
        raise EndpointError(f"{base}/models: HTTP {response.status_code}: {reason}{cure}")
    rows = body.get("data") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise EndpointError(f"{base}/models: no list of models in the answer; name one by --model")
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _authorization(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}
