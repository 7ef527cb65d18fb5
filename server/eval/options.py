"""What ``river-vllm eval`` can be asked: one model, from which ``--help`` is made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError, model_validator

from river_vllm.errors import RiverError
from server.cli.files import OutputFile

Object = Json[dict[str, Any]]


class EvalOptions(BaseModel):
    """A field's title stands for its value in ``--help``; without one it is a switch."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    tasks: list[str] = Field(
        [],
        title="TASK",
        description="tasks of lm-eval that generate text; river_gsm8k, river_humaneval and the "
        "same with _chat at the end come with River and read --data",
    )
    base_url: str = Field(
        "http://127.0.0.1:8000", title="URL", description="server of side A: http://HOST:PORT[/v1]"
    )
    against: str | None = Field(None, title="URL", description="server of side B (default: A's)")
    river: Object | None = Field(None, title="JSON", description="River's request field of A")
    against_river: Object | None = Field(None, title="JSON", description="that of B")
    model: str | None = Field(
        None, title="NAME", description="model of A (default: the one that /v1/models lists)"
    )
    against_model: str | None = Field(None, title="NAME", description="that of B (default: A's)")
    data: Path | None = Field(None, title="FILE", description="problems of River's tasks, as JSONL")
    limit: int | None = Field(None, ge=1, title="N", description="the first N problems of a task")
    num_fewshot: int | None = Field(
        None, ge=0, title="N", description="solved examples before a problem (default: the task's)"
    )
    chat: bool = Field(False, description="ask by /v1/chat/completions, with the chat template")
    gen_kwargs: Object = Field(
        {}, title="JSON", description="more fields of every request, max_gen_toks among them"
    )
    concurrency: int = Field(1, ge=1, title="N", description="requests in flight")
    timeout: int = Field(600, ge=1, title="S", description="seconds for a request")
    include_path: Path | None = Field(None, title="DIR", description="more task files for lm-eval")
    confirm_run_unsafe_code: bool = Field(
        False,
        description="run programs of the model even where nothing isolates them, and tasks that "
        "lm-eval marks as unsafe",
    )
    output: Path | None = Field(
        None, title="DIR", description="keep lm-eval's results and samples, in DIR/A and DIR/B"
    )
    samples: tuple[Path, Path] | None = Field(
        None,
        title="DIR",
        description="ask nothing: compare what --output or lm-eval's "
        "--log_samples --output_path has left in two folders",
    )
    confidence: float = Field(0.95, gt=0, lt=1, title="C", description="of intervals")
    max_loss: float | None = Field(
        None, ge=0, title="POINTS", description="exit status 1 if B loses more percentage points"
    )
    json_file: OutputFile | None = Field(
        None, title="FILE", alias="json", description="all figures, and the problems that differ"
    )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        given, saved = self.model_fields_set, self.samples is not None
        asking = given - {"samples", "confidence", "max_loss", "json_file"}
        if saved and asking:
            raise ValueError(f"{_option(min(asking))}: not with --samples, which asks nothing")
        if not saved and not self.tasks:
            raise ValueError("TASK: expected one or more, or --samples DIR DIR")
        if not saved and not given & {"against", "against_river", "against_model"}:
            raise ValueError(
                "--against: expected it, --against-river or --against-model; one setting alone is "
                "what 'lm-eval run' evaluates"
            )
        if "river" in self.gen_kwargs:
            raise ValueError("--gen-kwargs: 'river' has options of its own")
        return self


def _option(name: str) -> str:
    if name == "tasks":
        return "TASK"
    return "--" + (EvalOptions.model_fields[name].alias or name).replace("_", "-")


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field; values stay texts, which the model reads."""
    for name, field in EvalOptions.model_fields.items():
        default = f" (default: {field.default})" if field.default else ""
        settings: dict[str, Any] = {"help": f"{field.description}{default}"}
        if name == "tasks":
            parser.add_argument(name, nargs="*", metavar=field.title, **settings)
            continue
        if field.title is None:
            settings["action"] = "store_true"
        else:
            settings |= {"metavar": field.title, "nargs": 2 if name == "samples" else None}
        parser.add_argument(_option(name), default=argparse.SUPPRESS, **settings)


def read_options(args: argparse.Namespace) -> EvalOptions:
    """The options that were given.

    Raises:
        RiverError: names the option, the value and what is allowed.
    """
    given = {name: value for name, value in vars(args).items() if value != []}
    try:
        return EvalOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            name = str(first["loc"][0]).replace("_", "-")
            reason = f"--{name} = {first['input']!r}: {reason}"
        raise RiverError(reason) from None
