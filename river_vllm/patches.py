"""Every function of vLLM that River replaces: the reason, where upstream, and what ends it.

``tests/unit/test_patches.py`` has a test for each that fails once vLLM no longer needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from river_vllm.request import EXTRA_ARGS_KEY

UNREAD_FIELD = (
    f"'{EXTRA_ARGS_KEY}' is taken by River's HTTP server only; this front end is another "
    "(vllm run-batch, Ray, or a vLLM server without VLLM_PLUGINS=river). Leave the field out, and "
    "the engine's own settings hold"
)


def unread_fields_are_refused() -> None:
    """A request whose ``river`` field nothing has taken is refused, with status 400.

    vLLM 0.32 ignores fields that it does not know. River's middleware takes this one out of a
    body; a front end without it would answer with the engine's settings as if they were asked for.
    Called where a configuration with a river is made, which is in the front end's process.

    Ends with the vLLM release that lets a plugin see a request's fields, or refuses unknown ones.
    Upstream: https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/serve/engine/protocol.py
    (``OpenAIBaseModel``).
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        for name in ("to_sampling_params", "to_beam_search_params"):
            inner = getattr(request, name, None)
            if inner is not None and not hasattr(inner, "__wrapped__"):
                setattr(request, name, _refusing(inner))


def _refusing(inner: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.exceptions import VLLMValidationError

    @functools.wraps(inner)
    def parameters(request: Any, *args: Any, **options: Any) -> Any:
        if EXTRA_ARGS_KEY in (request.model_extra or {}):
            raise VLLMValidationError(UNREAD_FIELD, parameter=EXTRA_ARGS_KEY)
        return inner(request, *args, **options)

    return parameters
