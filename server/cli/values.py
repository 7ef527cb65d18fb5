"""Types of values that several commands' options share."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import from_json

from server.cli.arguments import Shown


def _base_url(text: str) -> str:
    """The URL ``text``, with the path ``/v1`` if it has none."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("expected http://HOST:PORT or https://HOST[/PREFIX]")
    if url.query or url.fragment or url.userinfo:
        raise ValueError("a query, a fragment or a password is not allowed")
    path = url.path.rstrip("/")
    if path.endswith("/completions"):
        raise ValueError("give the server's base, without a route")
    return str(url.copy_with(path=path or "/v1")).rstrip("/")


def _object(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object, such as {"threshold": 0.9}')
    return value


Url = Annotated[str, AfterValidator(_base_url)]
"""URL of a server with the version prefix, without a slash at the end."""
JsonObject = Annotated[dict[str, Any], BeforeValidator(_object), Shown("JSON")]
