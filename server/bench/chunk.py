"""What one streamed object of ``/v1/chat/completions`` or ``/v1/completions`` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.bench.jsontext import loads

_OUTPUT_FIELDS = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls")


class ChunkError(ValueError):
    """An event whose data is not a JSON object."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One streamed object, reduced to what a measurement needs."""

    choice: bool = False
    """It has a choice, so it may carry a token; a usage-only chunk has none."""
    output: bool = False
    """Its choice carries text, reasoning or a tool call."""
    role_only: bool = False
    """It announces the role and nothing else."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Completion tokens so far, where the chunk has usage."""
    river: dict[str, Any] | None = None
    error: str | None = None
    """The message of an error object sent in the stream."""


def parse_chunk(data: str) -> Chunk:
    """Read the data of one event.

    Raises:
        ChunkError: it is not a JSON object.
    """
    try:
        body = loads(data)
    except ValueError:
        raise ChunkError(f"not JSON: {data[:80]!r}") from None
    if not isinstance(body, dict):
        raise ChunkError(f"not a JSON object: {data[:80]!r}")
    if body.get("error"):
        return Chunk(error=error_message(body))
    usage = _object(body, "usage")
    river = body.get("river")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return Chunk(
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        river=river if isinstance(river, dict) else None,
        **(_read_choice(choice) if isinstance(choice, dict) else {}),
    )


def _read_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    delta = _object(choice, "delta")
    finish_reason = choice.get("finish_reason")
    output = bool(choice.get("text")) or any(delta.get(name) for name in _OUTPUT_FIELDS)
    return {
        "choice": True,
        "output": output,
        "role_only": "role" in delta and not output and finish_reason is None,
        "finish_reason": finish_reason if isinstance(finish_reason, str) else None,
    }


def error_message(body: Mapping[str, Any]) -> str:
    """The message of an OpenAI error object, or of the plainer shapes other servers send."""
    error = body.get("error", body)
    if isinstance(error, Mapping):
        return str(error.get("message") or error.get("detail") or dict(error))
    return str(error)


def _object(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key)
    return value if isinstance(value, Mapping) else {}


def _count(usage: Mapping[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
