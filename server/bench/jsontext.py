"""JSON as the standard has it: no NaN, no infinity, no half of a surrogate pair."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def loads(text: str) -> Any:
    """Read what someone sent.

    Raises:
        ValueError: it is not JSON, or nested beyond any use.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def loads_sendable(text: str) -> Any:
    """Read what will be sent on; it must also be encodable as UTF-8.

    Raises:
        ValueError: it is not.
    """
    value = loads(text)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value
