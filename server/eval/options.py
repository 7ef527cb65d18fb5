"""The options of ``river-vllm eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from server.cli.arguments import Options, Shown
from server.cli.fields import JsonObject, OutputFile, Url

OF_SAMPLES = {"samples", "confidence", "max_loss", "json_file"}
"""Options that apply to the samples of earlier runs."""


class EvalOptions(Options):
    """Say what a river changes in a model's answers: lm-evaluation-harness on two sides, paired."""

    tasks: Annotated[list[str], Shown("TASK", positional=True)] = Field(default=[])
    """tasks of lm-eval that generate text; river_gsm8k and river_gsm8k_chat come with River and
    read --data (default: none, with --samples)"""
    base_url: Annotated[Url, Shown("URL")] = "http://127.0.0.1:8000/v1"
    """server of side A: http://HOST:PORT[/v1]"""
    against: Annotated[Url | None, Shown("URL")] = None
    """server of side B (default: A's)"""
    river: JsonObject | None = None
    """``river`` field of A's requests"""
    against_river: JsonObject | None = None
    """``river`` field of B's requests"""
    model: str | None = None
    """model of A (default: the one that ``/v1/models`` lists)"""
    against_model: str | None = None
    """model of B (default: A's)"""
    data: Path | None = None
    """problems of River's tasks, as JSONL"""
    limit: PositiveInt | None = None
    """the first N problems of a task"""
    num_fewshot: NonNegativeInt | None = None
    """solved examples before a problem (default: the task's)"""
    chat: bool = False
    """send requests to ``/v1/chat/completions``, with the chat template"""
    gen_kwargs: JsonObject | None = None
    """more fields of every request, max_gen_toks among them"""
    concurrency: PositiveInt = 1
    """requests in flight"""
    timeout: Annotated[PositiveInt, Shown("S")] = 600
    """seconds for a request"""
    include_path: Annotated[Path | None, Shown("DIR")] = None
    """more task files for lm-eval"""
    confirm_run_unsafe_code: bool = False
    """run tasks that lm-eval marks as unsafe: programs of the model run on this machine"""
    output: Annotated[Path | None, Shown("DIR")] = None
    """keep lm-eval's results and samples, in DIR/A and DIR/B"""
    samples: Annotated[tuple[Path, Path] | None, Shown("DIR")] = None
    """send no requests: compare two folders of --output, or of lm-eval's --log_samples
    --output_path"""
    confidence: Annotated[float, Shown("C")] = Field(default=0.95, gt=0, lt=1)
    """confidence level of the intervals"""
    max_loss: Annotated[NonNegativeFloat | None, Shown("POINTS")] = None
    """exit status 1 if B loses more percentage points"""
    json_file: OutputFile | None = Field(default=None, alias="json")
    """all figures, and the problems that differ"""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        given = self.model_fields_set
        if self.samples is not None:
            if asking := given - OF_SAMPLES:
                name = min(asking).replace("_", "-")
                option = "TASK" if name == "tasks" else f"--{name}"
                raise ValueError(f"{option}: not with --samples, which asks nothing")
        elif not self.tasks:
            raise ValueError("TASK: expected one or more, or --samples DIR DIR")
        elif not given & {"against", "against_river", "against_model"}:
            raise ValueError(
                "--against: expected it, --against-river or --against-model; one setting alone is "
                "what 'lm-eval run' evaluates"
            )
        if "river" in (self.gen_kwargs or {}):
            raise ValueError("--gen-kwargs: 'river' has options of its own")
        return self
