"""Options for the prompts of commands that run a model over them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from server.cli.arguments import Options, Shown


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
