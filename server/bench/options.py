"""The options of ``river-vllm bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from server.cli.arguments import Options, Shown
from server.cli.fields import JsonObject, OutputFile, Url

Api = Literal["chat", "completions"]
API_PATHS: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}

MetricName = Literal["ttft", "tpot", "e2e", "requests", "tokens"]

OWN_FIELDS = {"model", "messages", "prompt", "max_tokens", "stream", "stream_options", "n", "river"}
"""Fields of a request that the client sets itself."""


def _gate(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    metric, _, ratio = value.rpartition(":")
    return {"metric": metric or "tpot", "least": ratio}


class Gate(Options):
    """Lowest median ratio of a figure for a successful comparison."""

    metric: MetricName
    least: PositiveFloat


class Rounds(Options):
    """Comparison."""

    rounds: PositiveInt = 20
    """rounds; each sends requests to A and to B"""
    concurrency: PositiveInt = 1
    """requests in flight"""
    block: PositiveInt | None = None
    """requests to each side in a round (default: as many as are in flight)"""
    warmup: NonNegativeInt = 2
    """requests to each side before the first round"""
    wake: NonNegativeInt = 0
    """short requests to a side before each of its turns, which are not measured"""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """confidence level of the intervals"""
    fail_below: list[Annotated[Gate, BeforeValidator(_gate), Shown("[METRIC:]RATIO")]] = Field(
        default=[]
    )
    """exit status 1 if B's median ratio is lower, or if B fails more requests; METRIC is ttft,
    tpot (where none is named), e2e, requests or tokens; may be repeated (default: no limit)"""


class Sides(Options):
    """Where the sides differ."""

    model_a: str | None = None
    """model of A (default: the one that ``/v1/models`` lists)"""
    model_b: str | None = None
    """model of B, likewise"""
    river_a: JsonObject | None = None
    """``river`` field of A's requests"""
    river_b: JsonObject | None = None
    """``river`` field of B's requests"""
    api_key_env: str | None = None
    """variable that holds the API key (default: OPENAI_API_KEY, if set)"""
    api_key_file: Path | None = None
    """file that holds the API key"""
    api_key_env_b: str | None = None
    """variable that holds B's key, where it is another"""
    api_key_file_b: Path | None = None
    """file that holds B's key, where it is another"""


class Requests(Options):
    """Requests."""

    api: Api = "chat"
    """route: ``/v1/chat/completions`` or ``/v1/completions``"""
    prompts: Path | None = None
    """JSONL rows with messages, question or prompt, or one prompt per line (default: random
    words)"""
    prompt_field: str | None = None
    """field of a row that holds its prompt, if it is another"""
    prompt_words: PositiveInt = 128
    """length of a random prompt"""
    output_tokens: PositiveInt = 64
    """``max_tokens`` of a request"""
    temperature: NonNegativeFloat = 0.0
    """temperature of a request"""
    ignore_eos: bool = False
    """generate all of ``max_tokens`` (vLLM, SGLang)"""
    cache_salt: bool = False
    """a ``cache_salt`` per request, so that vLLM's prefix cache answers none of them"""
    extra_body: JsonObject | None = None
    """more fields of every request"""
    timeout: PositiveFloat = 600.0
    """seconds for a whole request"""
    seed: NonNegativeInt = 0
    """seed of the prompts and the bootstrap"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        own = sorted(OWN_FIELDS & set(self.extra_body or {}))
        if own:
            raise ValueError(f"--extra-body: {', '.join(own)}: the client sets it itself")
        if self.prompt_field is not None and self.prompts is None:
            raise ValueError("--prompt-field: only with --prompts")
        return self


class Output(Options):
    """Output."""

    json_file: OutputFile | None = Field(default=None, alias="json")
    """settings, figures, ratios of every round, warnings"""
    html: OutputFile | None = None
    """the terminal's output as a page"""
    no_progress: bool = False
    """show no progress (a bar on a terminal, else a line every ten seconds)"""

    @model_validator(mode="after")
    def _two_files(self) -> Self:
        if self.json_file and self.html and self.json_file.resolve() == self.html.resolve():
            raise ValueError("--json, --html: expected different files")
        return self


class CompareOptions(Options):
    """Ask two endpoints the same by turns, and say how much faster B is.

    Each round is the same requests to A and then to B, the next to B and then to A; docs/bench.md
    says how the figures come about. Exit status 1 if B is slower than --fail-below allows, 130 on
    Ctrl-C, which keeps the rounds that were finished.
    """

    a: Annotated[Url, Shown("A", positional=True)]
    """address of the first server, the reference: http://HOST:PORT[/v1]"""
    b: Annotated[Url, Shown("B", positional=True)]
    """address of the second server"""
    comparison: Rounds
    sides: Sides
    requests: Requests
    output: Output
