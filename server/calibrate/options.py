"""The options of ``river-vllm calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from river_vllm.config import RiverConfig
from server.cli.arguments import FieldsOf, Options, Shown
from server.cli.fields import EngineLimits, OutputFile, PromptFiles

CHOICES = FieldsOf(
    RiverConfig,
    ("quantizer", "weights", "group_size", "activations", "lm_head", "kernel"),
    "river-",
)


class TargetOptions(Options):
    """Target."""

    target_agreement: float = Field(default=0.98, gt=0, lt=1)
    """share of answer tokens whose likeliest next token is the backbone's, at least"""
    delta: float = Field(default=0.1, gt=0, lt=1)
    """probability with which the guarantee may fail"""
    check: Path | None = None
    """choose nothing: test the settings of this river config on the prompts"""


class PromptOptions(PromptFiles):
    """Prompts like those that will be served: the guarantee is for such prompts."""

    test_prompts: PositiveInt | None = None
    """prompts for the test (default: what the target needs, as far as the files go; all with
    --check)"""
    pilot_prompts: int = Field(default=64, ge=8)
    """other prompts, for choosing candidates"""
    tokens: int = Field(default=16, ge=2)
    """answer tokens per prompt; many short answers prove more than few long ones"""


class EngineOptions(EngineLimits):
    """Engine: give what 'serve' will be given, since the guarantee depends on it."""

    river_config: Annotated[str | None, Shown("FILE")] = None
    """YAML or JSON file of River settings to start from"""
    river: Annotated[dict[str, Any], CHOICES] = Field(default={})


class OutputOptions(Options):
    """Output."""

    output: OutputFile | None = None
    """river config (YAML) for 'serve'"""
    json_file: OutputFile | None = Field(default=None, alias="json")
    """all measured figures"""
    no_progress: bool = False
    """show no progress (a bar on a terminal, else a line every ten seconds)"""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.output and self.json_file and self.output.resolve() == self.json_file.resolve():
            raise ValueError("--output, --json: expected different files")
        return self


class CalibrateOptions(Options):
    """Choose τ for a target agreement, with a finite-sample guarantee.

    The backbone answers prompts, and passes with exits are compared with it along these answers: is
    the likeliest token the same? Candidates are chosen on some of the prompts and tested on the
    others; docs/calibration.md says what is guaranteed. Exit status 0 if settings were shown to
    keep the target (with --check: those of the file), 1 if none were.
    """

    model: Annotated[str, Shown("MODEL", positional=True)]
    """a Hugging Face id or a folder, in bf16 or INT8"""
    target: TargetOptions
    text: PromptOptions
    engine: EngineOptions
    files: OutputOptions

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt that leave room for the answer."""
        return self.engine.max_model_len - self.text.tokens

    @model_validator(mode="after")
    def _check_alone(self) -> Self:
        if self.target.check is None:
            return self
        if self.files.output is not None:
            raise ValueError("--check: chooses nothing, so --output has no place")
        if self.engine.river_config is not None:
            raise ValueError("--check: the file gives all settings, so --river-config has no place")
        return self
