"""What a server says of itself."""

from __future__ import annotations

from typing import Any

import httpx

from server.bench.endpoint import Endpoint
from server.bench.jsontext import loads

ROUTES = ("river", "version")

_SECONDS = 10.0


async def server_info(client: httpx.AsyncClient, endpoint: Endpoint) -> dict[str, Any]:
    """The answers of ``/river`` and ``/version``, beside the API; ``None`` where there is none."""
    root = endpoint.base.removesuffix("/v1")
    return {name: await _get(client, f"{root}/{name}", endpoint.headers) for name in ROUTES}


async def _get(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> Any:
    try:
        response = await client.get(url, headers=headers, timeout=_SECONDS)
        return loads(response.text) if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
