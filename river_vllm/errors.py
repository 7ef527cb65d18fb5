"""Errors that a user can cause, with the field, the value and the cure in the message."""

from __future__ import annotations


class RiverError(ValueError):
    """A setting or a model that River cannot serve; the message is meant for the user."""


class UnsupportedModelError(RiverError):
    """The model or the engine mode has no place for a river."""
