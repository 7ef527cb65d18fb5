"""The options of ``river-vllm quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from server.cli.arguments import Options, Shown
from server.cli.fields import EngineLimits, OutputFile, PromptFiles


class TextOptions(PromptFiles):
    """Text: like what will be served."""

    tokens: int = Field(default=8192, ge=64)
    """length of the text, prompts and answers together"""
    answer_tokens: NonNegativeInt = 128
    """longest answer in tokens"""


class EngineOptions(EngineLimits):
    """Engine."""

    kv_cache_gib: PositiveFloat = 1.0
    """memory for K and V in GiB"""
    hessian_gib: PositiveFloat = 4.0
    """memory for the Hessians in GiB; with less, the text is read more often"""


class QuantizeOptions(Options):
    """Make the river's 4-bit weights by GPTQ, with a calibration text, for 'serve'.

    The backbone reads prompts and answers; the inputs of each projection decide how its weight is
    rounded. 'serve MODEL --river-quantizer gptq' finds the result, or --river-weights names its
    folder.
    """

    model: Annotated[str, Shown("MODEL", positional=True)]
    """a Hugging Face id or a folder, in bf16 or INT8"""
    group_size: Literal[32, 64, 128] = 128
    """input features that share a scale"""
    integer_zeros: bool = False
    """integer zero points, as vLLM's kernels (Marlin, Machete) need; a little less exact"""
    output: Annotated[Path | None, Shown("DIR")] = None
    """folder for the weights (default: where 'serve' looks for them, beside the model)"""
    json_file: OutputFile | None = Field(default=None, alias="json")
    """settings, folder, and the error of each layer"""
    no_progress: bool = False
    """show no progress (a bar on a terminal, else a line every ten seconds)"""
    text: TextOptions
    engine: EngineOptions

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if self.text.answer_tokens > self.engine.max_model_len - 2:
            raise ValueError(
                f"--answer-tokens {self.text.answer_tokens}: expected less than --max-model-len "
                f"{self.engine.max_model_len} less one"
            )
        return self
