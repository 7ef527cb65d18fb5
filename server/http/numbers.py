"""Numbers that JSON text can spell and an engine cannot take: refused by name before they travel.

Python's JSON reader accepts ``NaN`` and ``Infinity``, reads ``1e999`` as infinity, and has integers
of any size. vLLM checks some of its fields for them; others reach the sampler, or fail with status
500 on the way to the engine, whose transport takes 64 bits (``top_k`` in vLLM 0.32).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from river_vllm.config import shortened
from server.http.errors import FieldError

_SUSPICIOUS = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{19}")
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_PARAMETER_DEPTH = 2
"""Parameters, and what stands in a list of them; integers further in are data, such as a schema's
bounds, and never leave their text."""


def refuse_impossible_numbers(raw: bytes, body: dict[str, Any]) -> None:
    """Look at every number of a request body, if its text holds anything unusual.

    Raises:
        FieldError: names the field.
    """
    if not _SUSPICIOUS.search(raw):
        return
    for path, value in _leaves(body):
        name = shortened(".".join(path))
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldError(name, f"'{name}' = {value}: must be a finite number")
        parameter = isinstance(value, int) and len(path) <= _PARAMETER_DEPTH
        if parameter and not _LOWEST <= value <= _HIGHEST:
            raise FieldError(name, f"'{name}': an integer must fit into 64 bits")


def _leaves(body: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no container, and where it is; a stack, because bodies may be deep."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), body)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending += [((*path, str(key)), item) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [((*path, str(index)), item) for index, item in enumerate(value)]
        else:
            yield path, value
