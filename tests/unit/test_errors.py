"""Errors that a user can cause."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from river_vllm.errors import RiverError, UnsupportedModelError


def test_one_class_catches_every_refusal() -> None:
    assert issubclass(UnsupportedModelError, RiverError)


def test_a_refusal_passes_through_pydantic_as_a_validation_error() -> None:
    """vLLM runs the configuration hook inside a pydantic validator."""

    class Config(BaseModel):
        @model_validator(mode="after")
        def check(self) -> Config:
            raise UnsupportedModelError("no place for a river")

    with pytest.raises(ValidationError) as error:
        Config()
    assert isinstance(error.value.errors()[0]["ctx"]["error"], UnsupportedModelError)
