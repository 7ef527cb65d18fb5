"""Errors that a user can cause, with the field, the value and the cure in the message."""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import BaseModel, ValidationError

REMOVED = {
    "criterion": "the state transition similarity decides: leave 'cosine' out, and calibrate again "
    "in place of 'norm'",
    "kl": "a calibration is for agreement: leave it out",
    "layer_offsets": "one threshold holds after every layer: leave it out",
    "lm_head_candidates": "the LM head makes 256 logits exact: leave 256 out, and calibrate again "
    "in place of another number",
}
"""Settings of earlier versions, and what to use in their place."""


class RiverError(ValueError):
    """A setting or a model that River cannot serve; the message is meant for the user."""


class UnsupportedModelError(RiverError):
    """River does not support the model or the engine mode.

    Args:
        message: the unsupported model or feature.
        cure: what to do instead, unless the message says so.
    """

    def __init__(
        self, message: str, cure: str = "'vllm serve' without settings of River's serves it"
    ) -> None:
        super().__init__(f"{message}; {cure}" if cure else message)


MAX_ERRORS = 5
MAX_VALUE = 100
"""Characters of a name or a value in an error: both may come from a stranger."""


_REPR = reprlib.Repr()
"""Shows the first values of a list only, and six levels of nesting at most."""
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 2 * MAX_VALUE


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for people: field, value, what is allowed."""
    items = error.errors()
    found = [_describe(item, model) for item in items[:MAX_ERRORS]]
    if len(items) > MAX_ERRORS:
        found.append(f"and {len(items) - MAX_ERRORS} more")
    return "; ".join(found)


def _describe(item: Any, model: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if not name and item["type"] == "value_error":
        return str(item["ctx"]["error"])
    name = shortened(name or "value")
    if item["type"] == "extra_forbidden":
        if (instead := REMOVED.get(item["loc"][-1])) is not None:
            return f"'{name}' was removed; {instead}"
        return f"unknown field '{name}' (allowed: {', '.join(model.model_fields)})"
    value = shortened(_REPR.repr(item["input"]))
    return f"'{name}' = {value}: {item['msg'][:1].lower()}{item['msg'][1:]}"


def shortened(text: str) -> str:
    """``text`` as an error may repeat it."""
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
