"""The path of a request, read exactly as the router reads it.

A guard that reads paths differently can miss a route. With ``--root-path /`` taken off as text,
``/river`` is ``river``: the router finds the route, a list of guarded paths does not.
"""

from __future__ import annotations

from starlette._utils import get_route_path
from starlette.types import Scope


def path_of(scope: Scope) -> str:
    """The path within the application, without ``--root-path`` where the request has it."""
    return get_route_path(scope)


def is_within(path: str, parent: str) -> bool:
    """Whether ``path`` is ``parent`` or lies beneath it."""
    return path == parent or path.startswith(parent + "/")
