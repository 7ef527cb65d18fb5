"""Options and values that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import httpx
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)
from pydantic_core import from_json

from server.cli.arguments import Options, Shown


def _base_url(text: str) -> str:
    """The URL ``text``, with the path ``/v1`` if it has none."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("expected http://HOST:PORT or https://HOST[/PREFIX]")
    if url.query or url.fragment or url.userinfo:
        raise ValueError("a query, a fragment or a password is not allowed")
    path = url.path.rstrip("/")
    if path.endswith("/completions"):
        raise ValueError("give the server's base, without a route")
    return str(url.copy_with(path=path or "/v1")).rstrip("/")


def _object(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object, such as {"threshold": 0.9}')
    return value


def _writable(path: Path) -> Path:
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        raise ValueError("expected a file in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError("not writable")
    return path


OutputFile = Annotated[Path, AfterValidator(_writable), Shown("FILE")]
"""A writable file, checked before minutes of work."""

Url = Annotated[str, AfterValidator(_base_url)]
"""URL of a server with the version prefix, without a slash at the end."""
JsonObject = Annotated[dict[str, Any], BeforeValidator(_object), Shown("JSON")]


class EngineLimits(Options):
    """Engine: the text it reads, the memory it takes."""

    revision: str | None = None
    """revision of a hub checkpoint"""
    max_model_len: int = Field(default=1024, ge=64)
    """longest text in tokens; longer prompts are left out"""
    kv_cache_gib: PositiveFloat = 2.0
    """memory for K and V in GiB"""


class PromptFiles(Options):
    """Files of prompts and their answers."""

    prompts: list[Path] = Field(default=[])
    """JSONL rows with messages, question or prompt, or one prompt per line; more than once mixes
    files (default: the model makes up its own)"""
    answers: Annotated[str | None, Shown("FIELD")] = None
    """field of the JSONL rows that holds the answer (default: the model's own, greedy)"""
    half: Literal["first", "second"] | None = None
    """take the rows with odd, or with even line numbers, and leave the others unseen"""
    seed: NonNegativeInt = 0
    """seed of the prompts' order"""

    @model_validator(mode="after")
    def _rows(self) -> Self:
        if not self.prompts and (self.answers or self.half):
            raise ValueError("--answers, --half: name parts of the rows of --prompts FILE")
        return self
