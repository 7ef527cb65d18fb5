"""Refuses JSON values that an engine cannot take, and names the field.

Python's JSON reader accepts ``NaN`` and ``Infinity``, reads ``1e999`` as infinity, and has integers
of any size. vLLM checks only some fields; other values reach the sampler. Integers above 64 bits
fail with status 500 in the transport to the engine (``top_k`` in vLLM 0.32). Lists and objects may
be nested deeper than later readers can follow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from river_vllm.errors import shortened
from server.http.errors import FieldError

MAX_DEPTH = 200
"""Levels of lists and objects; pydantic's JSON reader has the same bound."""
_SUSPICIOUS = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{19}")
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_PARAMETER_DEPTH = 2
"""Integers nested this deep are data, such as a schema's bounds, and stay JSON text."""
_PASSED_ON = frozenset(("vllm_xargs", "kv_transfer_params", "ec_transfer_params"))
"""Objects that vLLM passes to the engine unchanged."""


def refuse_impossible_values(raw: bytes, body: dict[str, Any]) -> None:
    """Check every value of a request body, if its text holds anything unusual.

    One pass; its only memory is the path to the current value.

    Args:
        raw: the text of ``body``.

    Raises:
        FieldError: names the field.
    """
    # Python's reader also takes UTF-16 and UTF-32, where these characters have NUL bytes; UTF-8
    # JSON has none.
    plain = b"\0" not in raw and not _SUSPICIOUS.search(raw)
    if plain and raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return
    path: list[str | int] = []
    open_items: list[Iterator[tuple[str | int, Any]]] = [iter(body.items())]
    while open_items:
        for key, value in open_items[-1]:
            if isinstance(value, dict | list):
                path.append(key)
                if len(path) == MAX_DEPTH:
                    raise FieldError(
                        _name(path), f"'{_name(path)}': more than {MAX_DEPTH} levels of nesting"
                    )
                items = value.items() if isinstance(value, dict) else enumerate(value)
                open_items.append(iter(items))
                break
            if isinstance(value, int | float):
                _check_number(path, key, value)
        else:
            open_items.pop()
            if path:
                path.pop()


def _check_number(path: list[str | int], key: str | int, value: float) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            name = _name([*path, key])
            raise FieldError(name, f"'{name}' = {value}: must be a finite number")
    elif not _LOWEST <= value <= _HIGHEST and (
        len(path) < _PARAMETER_DEPTH or path[0] in _PASSED_ON
    ):
        name = _name([*path, key])
        raise FieldError(name, f"'{name}': an integer must fit into 64 bits")


def _name(path: list[str | int]) -> str:
    return shortened(".".join(map(str, path)))
