"""Errors that a user can cause, with the field, the value and the cure in the message."""

from __future__ import annotations


class RiverError(ValueError):
    """A setting or a model that River cannot serve; the message is meant for the user."""


class UnsupportedModelError(RiverError):
    """The model or the engine mode has no place for a river.

    Args:
        message: what it is that River cannot carry.
        cure: what to do instead, unless the message says so.
    """

    def __init__(
        self, message: str, cure: str = "'vllm serve' without settings of River's serves it"
    ) -> None:
        super().__init__(f"{message}; {cure}" if cure else message)
