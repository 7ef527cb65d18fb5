"""The client whose requests are timed."""

from __future__ import annotations

import httpx

_CONNECT_SECONDS = 30.0

_IDLE_SECONDS = 2.0
"""Unused connections close after this time. Common servers close theirs after 5 s, and a request
at that moment would fail."""


def make_client() -> httpx.AsyncClient:
    """A client that never queues requests: httpx's limit of 100 connections is lifted.

    It has no read timeout, since whole requests have their own.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_SECONDS
        ),
        headers={"accept-encoding": "identity"},
    )
