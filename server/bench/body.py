"""The JSON body of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.bench.datasets import Prompt
from server.bench.endpoint import Api

RESERVED = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "stream",
        "stream_options",
        "n",
        "river",
    }
)
"""Fields that the client sets itself, so ``--extra-body`` may not."""


@dataclass(frozen=True, slots=True)
class BodyOptions:
    """What all requests of a run have in common."""

    api: Api = "chat"
    temperature: float = 0.0
    ignore_eos: bool = False
    """vLLM's field: generate ``max_tokens`` tokens whatever the model says."""
    max_completion_tokens: bool = False
    """Name the limit ``max_completion_tokens``, as OpenAI's newer chat models want it."""
    chunk_usage: bool = False
    """Ask for usage in every chunk: vLLM's ``continuous_usage_stats``."""
    cache_salt: bool = False
    """A ``cache_salt`` per request, so that vLLM reuses no prefix."""
    river: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None


def build_body(
    options: BodyOptions,
    model: str,
    prompt: Prompt,
    salt: str,
    river: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One request; ``river`` replaces the field that ``options`` hold."""
    body: dict[str, Any] = {"model": model}
    if options.api == "completions":
        body["prompt"] = prompt.content
    elif isinstance(prompt.content, str):
        body["messages"] = [{"role": "user", "content": prompt.content}]
    else:
        body["messages"] = prompt.content
    body["max_completion_tokens" if options.max_completion_tokens else "max_tokens"] = (
        prompt.max_tokens
    )
    body |= {"temperature": options.temperature, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if options.chunk_usage:
        body["stream_options"]["continuous_usage_stats"] = True
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.cache_salt:
        body["cache_salt"] = salt
    field = options.river if river is None else river
    if field is not None:
        body["river"] = dict(field)
    return body | dict(options.extra or {})
