"""Base class of settings whose fields declare the parts of River that they affect."""

from __future__ import annotations

from enum import Flag, auto
from typing import Any

from pydantic import BaseModel, ConfigDict


class Affects(Flag):
    """The parts of River that a setting changes, declared by each field of ``RiverConfig``."""

    NOTHING = 0
    EXITS = auto()
    """Exits alone: a user who gives such a setting, and no K, wants exits."""
    KV = auto()
    """K and V that the river writes: part of the hash of such a block."""
    GRAPH = auto()
    """Traces of the model: part of the key of compiled forwards."""
    COST = auto()
    """The time of a pass: part of the key of saved costs."""
    GUARANTEE = auto()
    """How often a token differs from the backbone's: part of a calibration's guarantee."""
    FILE = auto()
    """Nothing by itself: ``river-vllm calibrate`` writes it into a file, and no option sets it."""
    PLACE = auto()
    """A place on the machine: set by an operator, never by a checkpoint."""


class Settings(BaseModel):
    """Settings whose fields declare their effects: ``Annotated[…, Affects.KV | Affects.COST]``."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name, field in cls.model_fields.items():
            if not any(isinstance(item, Affects) for item in field.metadata):
                raise TypeError(f"{cls.__name__}.{name} does not declare what it affects")

    @classmethod
    def affecting(cls, what: Affects) -> frozenset[str]:
        """Names of the settings that affect any of ``what``."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(item, Affects) and item & what for item in field.metadata)
        )

    def what_affects(self, what: Affects) -> str:
        """The settings that affect ``what``, with their values, as JSON for a key or a hash."""
        return self.model_dump_json(include=set(self.affecting(what)))
